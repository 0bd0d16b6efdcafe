//! Whether pages are zero, 32 bytes at a time where the processor can.

/// Whether all bytes are zero. Most pages that are not say so in their first cache lines; the rest of the
/// loop is one vector `or` per register, without branches.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    let (head, tail) = page.split_at(page.len().min(128));
    or(head) == 0 && or_all(tail) == 0
}

fn or_all(bytes: &[u8]) -> u8 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function demands.
        return unsafe { or_avx2(bytes) };
    }
    or(bytes)
}

/// The same loop, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn or_avx2(bytes: &[u8]) -> u8 {
    or(bytes)
}

#[inline(always)]
fn or(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |all, byte| all | byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_makes_a_page_not_zero() {
        let mut page = vec![0; 4096];
        assert!(is_zero(&page) && is_zero(&page[..100]) && is_zero(&[]));
        for at in 0..4096 {
            page[at] = 1 << (at % 8);
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }

    #[test]
    fn both_loops_agree() {
        for len in [0, 1, 31, 32, 33, 4000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 7) as u8).collect();
            assert_eq!(or(&bytes), or_all(&bytes));
        }
    }
}
