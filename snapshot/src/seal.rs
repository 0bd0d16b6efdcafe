//! Checksums inside a snapshot, and why they are what they are.
//!
//! A snapshot's name is the SHA-256 of its header; the header holds a tag of the index, the index holds a
//! tag of every section and of the table of page tags, so the name covers every byte of the file. Only
//! those 104 header bytes are hashed by SHA-256. The rest is tagged with **HighwayHash-256, keyed with a
//! salt that the writer draws for each snapshot** after the memory has stopped changing:
//!
//! - Cost decides. Measured by single-stepping over 64 KiB: SHA-256 with SHA-NI 2.6 instructions a byte,
//!   BLAKE3 2.5 with AVX2 and 1.05 with AVX-512, HighwayHash 0.5, CRC-32 0.06. A
//!   128 MiB Linux guest has by estimate 20 MiB that are not zero: BLAKE3 alone would cost more than the whole save may.
//! - CRC is no option: its collisions are linear algebra, and a tenant writes the memory.
//! - What a tenant could gain from a collision is a snapshot of its own taken for somebody else's, or one
//!   taken for another of its own. Without the key, which did not exist while it ran, it can aim at
//!   neither, and with the salt in the header two snapshots never get one name even if all else is equal.
//!   That gives up deduplication of whole snapshots, which would never happen: memory holds clocks,
//!   addresses and random bytes. Pages are shared by layers instead.
//! - What the tags are not: proof against somebody who can write into the store. The salt is in the file, and
//!   HighwayHash makes no promise once the key is known. The store is private to its owner (directory 0700,
//!   files 0400); bytes that cross a boundary of trust need the [`Digest`](crate::Digest) of the file as a whole.

use std::io;

use highway::{HighwayHash, HighwayHasher, Key};
use serde::{Deserialize, Serialize};

/// The key of one snapshot's checksums, and what makes its name unique.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt")
    }
}

impl Salt {
    /// A salt that nobody could have known before.
    ///
    /// # Errors
    /// Those of getrandom(2).
    pub fn random() -> io::Result<Self> {
        let mut raw = [0; 32];
        let n = rustix::rand::getrandom(&mut raw, rustix::rand::GetRandomFlags::empty())?;
        if n == raw.len() { Ok(Self(raw)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// A chosen salt, for writers whose output must be reproducible and whose memory no tenant wrote.
    #[must_use]
    pub const fn fixed(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn key(&self) -> Key {
        Key(std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| self.0[i * 8 + j]))))
    }
}

/// The checksum of one part of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Tag([u8; 32]);

impl Tag {
    pub(crate) const LEN: usize = 32;

    pub(crate) const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a tag covers; hashed first, so that no part can stand in for another.
#[derive(Clone, Copy)]
pub(crate) enum Domain {
    Section = 1,
    Pages = 2,
    Tags = 3,
    Index = 4,
}

/// Computes one [`Tag`].
pub(crate) struct Sealer(HighwayHasher);

impl Sealer {
    /// `number` tells parts of one domain apart: the chunk of pages, the section's place.
    pub(crate) fn new(salt: &Salt, domain: Domain, number: u64) -> Self {
        let mut first = [0; 32];
        first[..8].copy_from_slice(&(domain as u64).to_le_bytes());
        first[8..16].copy_from_slice(&number.to_le_bytes());
        let mut hasher = HighwayHasher::new(salt.key());
        hasher.append(&first);
        Self(hasher)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.append(bytes);
    }

    pub(crate) fn finish(self) -> Tag {
        let words = self.0.finalize256();
        Tag(std::array::from_fn(|i| words[i / 8].to_le_bytes()[i % 8]))
    }

    /// The tag of bytes that are all there.
    pub(crate) fn tag(salt: &Salt, domain: Domain, number: u64, bytes: &[u8]) -> Tag {
        let mut sealer = Self::new(salt, domain, number);
        sealer.update(bytes);
        sealer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt::fixed([7; 32]);

    #[test]
    fn parts_and_salts_do_not_stand_in_for_each_other() {
        let tag = Sealer::tag(&SALT, Domain::Pages, 0, b"x");
        assert_eq!(tag, Sealer::tag(&SALT, Domain::Pages, 0, b"x"));
        assert_ne!(tag, Sealer::tag(&SALT, Domain::Pages, 1, b"x"));
        assert_ne!(tag, Sealer::tag(&SALT, Domain::Section, 0, b"x"));
        assert_ne!(tag, Sealer::tag(&Salt::fixed([8; 32]), Domain::Pages, 0, b"x"));
        assert_ne!(tag, Sealer::tag(&SALT, Domain::Pages, 0, b"x\0"));
    }

    #[test]
    fn the_simd_and_the_portable_hash_agree() {
        // A snapshot written with AVX2 must verify without it.
        let bytes: Vec<u8> = (0..5000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut portable = highway::PortableHash::new(SALT.key());
        let mut first = [0; 32];
        first[0] = Domain::Index as u8;
        portable.append(&first);
        portable.append(&bytes);
        let words = portable.finalize256();
        let expected = Tag(std::array::from_fn(|i| words[i / 8].to_le_bytes()[i % 8]));
        assert_eq!(Sealer::tag(&SALT, Domain::Index, 0, &bytes), expected);
    }

    #[test]
    fn random_salts_differ() {
        assert!(Salt::random().unwrap() != Salt::random().unwrap());
    }
}
