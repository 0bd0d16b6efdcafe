//! Files of a sandbox, a piece at a time: the pace is that of whoever reads or writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use novum_sandbox::session::{FileWrite, MOST_FILE_PIECE_BYTES, WritePlace};

use super::Entry;
use super::exec::MAX_PATH_BYTES;
use crate::core::Core;
use crate::error::Error;

/// A file to write.
#[derive(Clone, Debug)]
pub struct Target {
    /// In which sandbox.
    pub sandbox: String,
    /// Absolute path there.
    pub path: String,
    /// Permissions of a new file.
    pub mode: u32,
    /// Make the directories that lead to it.
    pub make_directories: bool,
    /// Add to what is there.
    pub append: bool,
}

impl Target {
    /// Refuses impossible values.
    ///
    /// # Errors
    /// The first field with one.
    pub fn check(&self) -> Result<(), Error> {
        if self.mode > 0o7777 {
            return Err(Error::field("start.mode", "must be permissions, 0 to 07777"));
        }
        check_path("start.path", &self.path)
    }

    /// Where the next piece goes, the file being `written` bytes long by us.
    fn place(&self, begun: bool, position: u64) -> WritePlace {
        let (mode, make_directories) = (self.mode, self.make_directories);
        match (self.append, begun) {
            (true, _) => WritePlace::Append { mode, make_directories },
            (false, false) => WritePlace::Anew { mode, make_directories },
            (false, true) => WritePlace::At(position),
        }
    }
}

/// An absolute path of a sandbox.
pub(super) fn check_path(field: &str, path: &str) -> Result<(), Error> {
    let reason = if !path.starts_with('/') {
        "must be an absolute path"
    } else if path.contains('\0') {
        "must not hold a NUL character"
    } else if path.len() > MAX_PATH_BYTES {
        "must be at most 4095 bytes long"
    } else {
        return Ok(());
    };
    Err(Error::field(field, reason))
}

impl Core {
    /// A piece of a file from `offset` on, at most `length` bytes; empty at its end.
    ///
    /// # Errors
    /// The path's, and what the sandbox says.
    pub async fn read_in_sandbox(
        &self,
        entry: &Arc<Entry>,
        path: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Error> {
        check_path("path", path)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MOST_FILE_PIECE_BYTES);
        let session = entry.session()?;
        let piece = entry.with(session.read_file(path, offset, length)).await?;
        self.sandboxes.counts.read_bytes.fetch_add(piece.data.len() as u64, Ordering::Relaxed);
        Ok(piece.data)
    }

    /// Writes bytes of `target` that come at `position`, the first of them where not `begun`; the position behind them.
    ///
    /// # Errors
    /// What the sandbox says.
    pub async fn write_in_sandbox(
        &self,
        entry: &Arc<Entry>,
        target: &Target,
        (mut begun, mut position): (bool, u64),
        mut data: Bytes,
    ) -> Result<u64, Error> {
        let session = entry.session()?;
        loop {
            let piece = data.split_to(data.len().min(MOST_FILE_PIECE_BYTES));
            let length = piece.len() as u64;
            let write =
                FileWrite { path: target.path.clone(), place: target.place(begun, position), data: piece };
            entry.with(session.write_file(write)).await?;
            self.sandboxes.counts.written_bytes.fetch_add(length, Ordering::Relaxed);
            position += length;
            begun = true;
            if data.is_empty() {
                return Ok(position);
            }
        }
    }
}
