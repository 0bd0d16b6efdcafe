//! Copying between descriptors without the program's memory: sendfile(2), copy_file_range(2), splice(2).

use super::pipe::End;
use super::stop::Stop;
use super::{Errno, Files, Object};

/// Bytes copied at a time, and at most by one call: a caller goes on from a short count.
const PIECE: usize = 128 << 10;
const MOST: usize = 16 << 20;

impl Files {
    /// Copies up to `count` bytes from `from` to `to`, each at its own position or at the one given, which are left
    /// to the caller to move. Stops early where the input ends or the output takes no more.
    ///
    /// # Errors
    /// Those of the first read and the first write.
    pub(crate) fn copy(
        &mut self,
        from: (i32, Option<i64>),
        to: (i32, Option<i64>),
        count: usize,
    ) -> Result<usize, Stop> {
        let mut done = 0;
        let mut buffer = vec![0; count.min(PIECE)];
        while done < count.min(MOST) {
            let n = buffer.len().min(count - done);
            let at = from.1.map(|at| at + done as i64);
            let mut sink = &mut buffer[..n];
            let read = match self.read(from.0, &mut sink, at) {
                Ok(0) => break,
                Ok(read) => read,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            let at = to.1.map(|at| at + done as i64);
            let written = match self.write(to.0, &mut &buffer[..read], at) {
                Ok(written) => written,
                Err(e) => {
                    self.unread(from, &buffer[..read]);
                    if done > 0 {
                        break;
                    }
                    return Err(e);
                }
            };
            done += written;
            if written < read {
                self.unread(from, &buffer[written..read]);
                break;
            }
        }
        Ok(done)
    }

    /// Gives back bytes that were read and not used.
    fn unread(&mut self, from: (i32, Option<i64>), bytes: &[u8]) {
        let Ok(at) = self.table.fd(from.0) else { return };
        let file = self.table.file_mut(at.file);
        if let Object::Pipe(pipe, _) = file.object {
            self.pipes[pipe.0 as usize].as_mut().expect("open").unread(bytes);
        } else if from.1.is_none() {
            file.position = file.position.saturating_sub(bytes.len() as u64);
        }
    }

    /// Whether splice(2) can move bytes from `from` to `to`, and which of the two is a pipe. Input that could not take back what
    /// the other side has no room for is refused; callers then read and write.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL`.
    pub(crate) fn check_splice(&self, from: i32, to: i32) -> Result<(bool, bool), Errno> {
        let (input, output) = (self.table.get(from)?, self.table.get(to)?);
        if matches!(input.object, Object::Path) || matches!(output.object, Object::Path) {
            return Err(Errno::BADF);
        }
        let (mut pipe_in, mut pipe_out) = (false, false);
        match &input.object {
            Object::Pipe(_, End::Read) => pipe_in = true,
            Object::Pipe(_, End::Write) => return Err(Errno::BADF),
            Object::File(_) | Object::Shared(_) => {}
            _ => return Err(Errno::INVAL),
        }
        match &output.object {
            Object::Pipe(_, End::Write) => pipe_out = true,
            Object::Pipe(_, End::Read) => return Err(Errno::BADF),
            Object::File(_)
            | Object::Shared(_)
            | Object::Socket(_)
            | Object::Device(_)
            | Object::Console(_) => {}
            _ => return Err(Errno::INVAL),
        }
        let appends = output.flags & libc::O_APPEND as u32 != 0;
        let same = match (&input.object, &output.object) {
            (Object::Pipe(a, _), Object::Pipe(b, _)) => a == b,
            _ => false,
        };
        if !(pipe_in || pipe_out) || appends || same { Err(Errno::INVAL) } else { Ok((pipe_in, pipe_out)) }
    }

    /// Whether `fd` is a regular file, as copy_file_range(2) and the input of sendfile(2) must be.
    ///
    /// # Errors
    /// `EBADF`, `EISDIR`, `EINVAL`.
    pub(crate) fn check_regular(&self, fd: i32) -> Result<(), Errno> {
        match &self.table.get(fd)?.object {
            Object::File(_) | Object::Shared(_) | Object::Text(_) => Ok(()),
            Object::Dir(_) => Err(Errno::ISDIR),
            Object::Path => Err(Errno::BADF),
            _ => Err(Errno::INVAL),
        }
    }
}
