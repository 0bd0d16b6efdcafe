mod calls;
mod escapes;
mod leap;
mod limits;
mod model;
mod reset;

use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::share::Attr;

pub(super) const CWD: i32 = libc::AT_FDCWD;

/// Files over the host directory `root`, with shares of (host path, target, read-only).
pub(super) fn files_with(root: Option<&Path>, shares: &[(&Path, &str, bool)]) -> Files {
    let shares = shares.iter().map(|(source, target, read_only)| function::Share {
        source: source.to_path_buf(),
        target: (*target).to_owned(),
        read_only: *read_only,
    });
    let config = FilesConfig {
        root: root.map(Path::to_path_buf),
        shares: shares.collect(),
        private_bytes: 8 << 20,
        ..FilesConfig::new()
    };
    Files::new(&config).unwrap()
}

pub(super) fn empty() -> Files {
    files_with(None, &[])
}

impl Files {
    pub(super) fn test_open(&mut self, path: &str, flags: i32) -> Result<i32, Errno> {
        self.open(CWD, path.as_bytes(), flags as u32, 0o644, Limits::default())
    }

    pub(super) fn test_read(&mut self, fd: i32, n: usize) -> Result<Vec<u8>, Stop> {
        let mut buffer = vec![0; n];
        let n = self.read(fd, &mut buffer.as_mut_slice(), None)?;
        buffer.truncate(n);
        Ok(buffer)
    }

    pub(super) fn test_write(&mut self, fd: i32, mut bytes: &[u8]) -> Result<usize, Stop> {
        self.write(fd, &mut bytes, None)
    }

    pub(super) fn test_stat(&mut self, path: &str) -> Result<Attr, Errno> {
        self.stat(CWD, path.as_bytes(), End::Follow, false)
    }

    /// The whole content of a file.
    pub(super) fn content(&mut self, path: &str) -> Result<Vec<u8>, Errno> {
        let fd = self.test_open(path, libc::O_RDONLY)?;
        let mut all = Vec::new();
        loop {
            let piece = self.test_read(fd, 4096);
            match piece {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => all.extend(piece),
                Err(Stop::Errno(e)) => {
                    self.close(fd)?;
                    return Err(e);
                }
                Err(Stop::Wait(_)) => panic!("{path} waits"),
            }
        }
        self.close(fd)?;
        Ok(all)
    }

    pub(super) fn put_file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Errno> {
        let fd = self.test_open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC)?;
        let mut done = 0;
        while done < bytes.len() {
            match self.test_write(fd, &bytes[done..]) {
                Ok(n) => done += n,
                Err(Stop::Errno(e)) => {
                    self.close(fd)?;
                    return Err(e);
                }
                Err(Stop::Wait(_)) => panic!("{path} waits"),
            }
        }
        self.close(fd)
    }

    /// The names in a directory, sorted, without dots.
    pub(super) fn names(&mut self, path: &str) -> Result<Vec<String>, Errno> {
        let fd = self.test_open(path, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut names = Vec::new();
        let done = self.read_dir(fd, |item, _| {
            names.push(String::from_utf8_lossy(&item.name).into_owned());
            true
        });
        self.close(fd)?;
        done?;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }
}
