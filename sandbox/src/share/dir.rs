//! Reading directories, with cookies that stay good while the directory changes.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::{Attr, Links, OpenFile, Share};

/// Bytes of entries that are taken from the host at a time.
const BUFFER_BYTES: usize = 32 << 10;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; never `.` or `..`.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u64,
    /// Type, `Unknown` where the host's file system does not say.
    pub kind: FileType,
    /// Hand this to [`Dir::read`] to go on after this entry.
    pub cookie: u64,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    file: OpenFile,
}

impl Share {
    /// Opens the directory `path` for reading.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open_dir_at(&self, path: &[u8], links: Links) -> Result<Dir, Errno> {
        Ok(Dir { file: self.open(path, links, OFlags::RDONLY | OFlags::DIRECTORY, 0)? })
    }
}

impl Dir {
    /// The host's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }

    /// What `stat` said when it was opened.
    #[must_use]
    pub fn attr_at_open(&self) -> &Attr {
        self.file.attr_at_open()
    }

    /// What `stat` says now.
    ///
    /// # Errors
    /// What `statx(2)` says.
    pub fn stat(&self) -> Result<Attr, Errno> {
        self.file.stat()
    }

    /// Reads entries after `cookie` (0 is the start) until `take` returns false (that entry is then not consumed) or
    /// the directory ends. Cookies are the host file system's own, so they survive changes and a re-open.
    ///
    /// # Errors
    /// What `getdents64(2)` says; `EINVAL` for a cookie that is not one.
    pub fn read(&mut self, cookie: u64, mut take: impl FnMut(DirEntry) -> bool) -> Result<(), Errno> {
        if cookie > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        seek(self.file.fd(), SeekFrom::Start(cookie))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut entries = RawDir::new(self.file.fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let entry = DirEntry {
                name: name.to_vec(),
                ino: entry.ino(),
                kind: entry.file_type(),
                cookie: entry.next_entry_cookie(),
            };
            if !take(entry) {
                break;
            }
        }
        Ok(())
    }
}
