//! Randomness: always the host's, never a state of ours, so that no snapshot can repeat it.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::transfer::Sink;

/// Fills all of `bytes`.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Most random bytes that one read gives, as in Linux before 5.18 (`drivers/char/random.c`).
const MOST: usize = (32 << 20) - 1;

/// Fills `sink`, up to a limit; returns how many bytes that were.
pub(crate) fn fill_all(sink: &mut dyn Sink) -> Result<usize, Errno> {
    let mut piece = [0; 4096];
    let mut done = 0;
    while sink.room() > 0 && done < MOST {
        let n = sink.room().min(piece.len()).min(MOST - done);
        fill(&mut piece[..n])?;
        match sink.put(&piece[..n]) {
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// A fresh random UUID (RFC 9562 version 4) as text.
pub(crate) fn uuid() -> String {
    let mut b = [0; 16];
    fill(&mut b).expect("getrandom with a small buffer does not fail once the host is up");
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    #[test]
    fn uuids_are_of_version_4_and_differ() {
        let (a, b) = (super::uuid(), super::uuid());
        assert_eq!((a.len(), &a[14..15]), (36, "4"));
        assert_ne!(a, b);
    }
}
