//! What comes out of L1 while it runs: each stream through a FIFO that QEMU writes into.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags};

/// Lines of L1's console that are kept for a report.
const KEPT_LINES: usize = 80;

/// One stream that is being copied.
pub(crate) struct Stream {
    /// Where QEMU writes.
    pub(crate) path: PathBuf,
    /// Held open so that QEMU can open the FIFO without waiting, and closed for the end of file.
    writer: File,
    copier: JoinHandle<Vec<u8>>,
}

impl Stream {
    /// Makes the FIFO `name` in `folder`; what comes through it goes to `to`, and its last lines are kept.
    pub(crate) fn open(folder: &Path, name: &str, mut to: Box<dyn Write + Send>) -> anyhow::Result<Self> {
        let path = folder.join(name);
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).context("making a FIFO")?;
        // Open for reading first, without waiting for a writer; then blocking reads are wanted.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = rustix::fs::open(&path, flags, Mode::empty()).context("opening a FIFO")?;
        let writer = File::options().write(true).open(&path).context("opening a FIFO")?;
        rustix::fs::fcntl_setfl(&reader, OFlags::RDONLY).context("making a FIFO wait")?;
        let mut reader = File::from(reader);
        let copier = std::thread::spawn(move || {
            let mut tail = Tail::default();
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                // Our own reader may have gone away; L1 must run on to its status.
                let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
                tail.push(&buffer[..count]);
            }
            tail.bytes()
        });
        Ok(Self { path, writer, copier })
    }

    /// Waits until all was copied; QEMU must have ended. Returns the last lines.
    pub(crate) fn finish(self) -> String {
        drop(self.writer);
        let bytes = self.copier.join().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    unfinished: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.lines.push_back(std::mem::take(&mut self.unfinished));
            }
            if self.lines.len() > KEPT_LINES {
                self.lines.pop_front();
            }
        }
    }

    fn bytes(self) -> Vec<u8> {
        let mut all: Vec<u8> = self.lines.into_iter().flatten().collect();
        all.extend(self.unfinished);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_the_unfinished_one() {
        let mut tail = Tail::default();
        (0..100).for_each(|number| tail.push(format!("{number}\n").as_bytes()));
        tail.push(b"end");
        let text = String::from_utf8(tail.bytes()).unwrap();
        assert!(text.starts_with("20\n") && text.ends_with("99\nend"), "{text}");
    }

    #[test]
    fn a_stream_ends_when_its_writers_do() {
        let folder = tempfile::tempdir().unwrap();
        let stream = Stream::open(folder.path(), "s", Box::new(std::io::sink())).unwrap();
        std::fs::write(&stream.path, "hello\n").unwrap();
        assert_eq!(stream.finish(), "hello\n");
    }
}
