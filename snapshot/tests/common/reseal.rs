//! Gives a mutated snapshot valid checksums again, as somebody with bad intentions would, so that tests reach
//! the code behind them. Written from the drawing in `format.rs`, not with the crate's own code.

use highway::{HighwayHash, HighwayHasher, Key};

pub(crate) const HEADER_LEN: usize = 104;

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let raw = bytes.get(at..at + 8)?;
    usize::try_from(u64::from_le_bytes(raw.try_into().ok()?)).ok()
}

pub(crate) fn tag(salt: &[u8], domain: u64, number: u64, content: &[u8]) -> [u8; 32] {
    let key = std::array::from_fn(|i| u64::from_le_bytes(salt[i * 8..i * 8 + 8].try_into().unwrap()));
    let mut hasher = HighwayHasher::new(Key(key));
    let mut first = [0; 32];
    first[..8].copy_from_slice(&domain.to_le_bytes());
    first[8..16].copy_from_slice(&number.to_le_bytes());
    hasher.append(&first);
    hasher.append(content);
    let words = hasher.finalize256();
    std::array::from_fn(|i| words[i / 8].to_le_bytes()[i % 8])
}

/// Writes the file's true length and the true tag of its index into the header, where both have a place.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let len = bytes.len();
    if len < HEADER_LEN {
        return;
    }
    bytes[16..24].copy_from_slice(&(len as u64).to_le_bytes());
    let Some(index) = word(bytes, 32).filter(|&at| at <= len) else { return };
    let tag = tag(&bytes[40..72], 4, 0, &bytes[index..]);
    bytes[72..104].copy_from_slice(&tag);
}
