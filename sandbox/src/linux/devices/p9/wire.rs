//! Numbers, strings and qids of 9P: little-endian, strings with their length in two bytes.

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::share::Attr;

/// Bytes before a message's own fields: size, type, tag.
pub(crate) const HEADER: usize = 7;

/// Takes a message apart. What is missing is `EINVAL`: a driver that sends less than it says is broken.
pub(crate) struct Decoder<'a>(pub(crate) &'a [u8]);

impl<'a> Decoder<'a> {
    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::INVAL)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Errno> {
        self.array::<1>().map(|bytes| bytes[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let length = self.u16()?;
        self.bytes(length.into())
    }
}

/// Puts a reply together.
#[derive(Default)]
pub(crate) struct Encoder(pub(crate) Vec<u8>);

impl Encoder {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A string. Ours are names and link texts of the host, at most 4095 bytes; what is longer is cut.
    pub(crate) fn string(&mut self, text: &[u8]) {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.u16(length);
        self.0.extend(&text[..length.into()]);
    }

    /// What names a file on the server: type, version (we keep none), inode number.
    pub(crate) fn qid(&mut self, kind: FileType, ino: u64) {
        self.u8(match kind {
            FileType::Directory => 0x80,
            FileType::Symlink => 0x02,
            _ => 0,
        });
        self.u32(0);
        self.u64(ino);
    }

    pub(crate) fn qid_of(&mut self, attr: &Attr) {
        self.qid(attr.kind(), attr.id.ino);
    }
}
