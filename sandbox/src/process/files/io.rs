//! Reading, writing and seeking through descriptors.

use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::console::{ConsoleRead, ConsoleWrite};
use super::stop::{Need, Stop};
use super::synth::Device;
use super::table::{Description, DirItem, FileId, Object, Stream};
use super::transfer::{Capped, Sink, Source, put_all, take_vec};
use super::{Files, Place, random};

/// Names that the listings of all open directories hold together, where there is more than one.
const MOST_LISTED: usize = 256 << 10;
/// Most bytes that one write hands to the console.
const CONSOLE_PIECE: usize = 1 << 20;
const APPEND: u32 = libc::O_APPEND as u32;

/// Whether a file has a position.
fn seekable(object: &Object) -> bool {
    !matches!(
        object,
        Object::Console(_)
            | Object::Pipe(..)
            | Object::Event(_)
            | Object::Timer(_)
            | Object::Epoll(_)
            | Object::Socket(_)
    )
}

impl Files {
    fn open_file(&self, fd: i32) -> Result<(FileId, &Description), Errno> {
        let id = self.table.fd(fd)?.file;
        Ok((id, self.table.file(id)))
    }

    /// The position to use, and whether it is the file's own.
    fn position(file: &Description, at: Option<i64>, length: usize) -> Result<u64, Errno> {
        let position = match at {
            Some(_) if !seekable(&file.object) => return Err(Errno::SPIPE),
            Some(at) => u64::try_from(at).map_err(|_| Errno::INVAL)?,
            None => file.position,
        };
        match position.checked_add(length as u64) {
            Some(end) if end <= i64::MAX as u64 => Ok(position),
            _ => Err(Errno::INVAL),
        }
    }

    /// `read(2)`, or `pread(2)` with a position.
    ///
    /// # Errors
    /// As the manual pages say.
    pub fn read(&mut self, fd: i32, sink: &mut dyn Sink, at: Option<i64>) -> Result<usize, Stop> {
        let (id, file) = self.open_file(fd)?;
        if at.is_some_and(|at| at < 0) {
            return Err(Errno::INVAL.into());
        }
        if file.is_path() {
            return Err(Errno::BADF.into());
        }
        if at.is_some() && !seekable(&file.object) {
            return Err(Errno::SPIPE.into());
        }
        if !file.readable() {
            return Err(Errno::BADF.into());
        }
        let position = Self::position(file, at, sink.room())?;
        let done = self.read_object(id, sink, position)?;
        if at.is_none() {
            self.table.file_mut(id).position = position + done as u64;
        }
        Ok(done)
    }

    fn read_object(&mut self, id: FileId, sink: &mut dyn Sink, position: u64) -> Result<usize, Stop> {
        let file = self.table.file_mut(id);
        let nonblocking = file.nonblocking();
        let done = match &mut file.object {
            Object::Dir(_) => return Err(Errno::ISDIR.into()),
            Object::Path => return Err(Errno::BADF.into()),
            Object::Event(_) | Object::Timer(_) if sink.room() < 8 => return Err(Errno::INVAL.into()),
            Object::Epoll(_) => return Err(Errno::INVAL.into()),
            _ if sink.room() == 0 => 0,
            Object::File(node) => self.tree.read(*node, sink, position)?,
            Object::Shared(open) => sink.read_from(open.fd(), position)?,
            Object::Device(Device::Null | Device::Tty) | Object::Unmade { .. } => 0,
            Object::Device(Device::Zero | Device::Full) => zeroes(sink)?,
            Object::Device(Device::Random) => random::fill_all(sink)?,
            Object::Text(text) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX).min(text.len());
                put_all(sink, &text[start..])?
            }
            Object::Event(event) => {
                let value = event.read(nonblocking)?;
                self.changed = true;
                sink.put(&value.to_ne_bytes())?
            }
            Object::Timer(timer) => sink.put(&timer.read(nonblocking)?.to_ne_bytes())?,
            Object::Console(stream) => {
                let stream = *stream;
                self.read_console(stream, sink, nonblocking)?
            }
            Object::Pipe(pipe, _) => {
                let pipe = self.pipes[pipe.0 as usize].as_mut().expect("open");
                let n = pipe.read(sink, nonblocking)?;
                self.changed = true;
                n
            }
            Object::Socket(end) => {
                let pair = self.pairs[end.pair as usize].as_mut().expect("open");
                let n = pair.receive(end.side, sink, nonblocking, false)?.0;
                self.changed = true;
                n
            }
        };
        Ok(done)
    }

    fn read_console(
        &mut self,
        stream: Stream,
        sink: &mut dyn Sink,
        nonblocking: bool,
    ) -> Result<usize, Stop> {
        if stream != Stream::Input {
            return Err(Errno::BADF.into());
        }
        match self.console.read(sink.room()) {
            ConsoleRead::Data(bytes) => Ok(put_all(sink, &bytes)?),
            ConsoleRead::End => Ok(0),
            ConsoleRead::Empty => {
                self.console_dry[stream as usize] += 1;
                Err(Stop::unless(Need::INPUT, nonblocking))
            }
        }
    }

    /// `write(2)`, or `pwrite(2)` with a position. A write that would have to wait after its first byte is cut
    /// short instead.
    ///
    /// # Errors
    /// As the manual pages say; for `EPIPE` the caller raises the signal.
    pub fn write(&mut self, fd: i32, source: &mut dyn Source, at: Option<i64>) -> Result<usize, Stop> {
        let (id, file) = self.open_file(fd)?;
        if at.is_some_and(|at| at < 0) {
            return Err(Errno::INVAL.into());
        }
        if at.is_some() && !file.is_path() && !seekable(&file.object) {
            return Err(Errno::SPIPE.into());
        }
        if !file.writable() {
            return Err(Errno::BADF.into());
        }
        let mut position = Self::position(file, at, source.left())?;
        // A write of nothing does not even move the position.
        if file.flags & APPEND != 0
            && source.left() > 0
            && let Object::File(node) = file.object
        {
            position = self.tree.node(node).size;
        }
        let done = match self.room_below_limit(id, position, source.left())? {
            Some(room) => self.write_object(id, &mut Capped::new(source, room), position)?,
            None => self.write_object(id, source, position)?,
        };
        if at.is_none() && seekable(&self.table.file(id).object) {
            self.advance(id, position, done)?;
        }
        Ok(done)
    }

    /// How much of a write of `bytes` the limit of file sizes lets through, where it does not let all through.
    fn room_below_limit(&self, id: FileId, position: u64, bytes: usize) -> Result<Option<usize>, Errno> {
        let (file, limit) = (self.table.file(id), self.table.file_bytes);
        if limit == u64::MAX || bytes == 0 {
            return Ok(None);
        }
        let position = match &file.object {
            Object::Shared(open) if file.flags & APPEND != 0 => open.stat()?.size,
            Object::File(_) | Object::Shared(_) => position,
            _ => return Ok(None),
        };
        match limit.saturating_sub(position) {
            0 => Err(Errno::FBIG),
            room if room < bytes as u64 => Ok(Some(room as usize)),
            _ => Ok(None),
        }
    }

    fn advance(&mut self, id: FileId, position: u64, done: usize) -> Result<(), Errno> {
        let file = self.table.file_mut(id);
        file.position = match &file.object {
            // The host appended wherever the end was.
            Object::Shared(open) if file.flags & APPEND != 0 && done > 0 => open.stat()?.size,
            _ => position + done as u64,
        };
        Ok(())
    }

    /// Whether every write to `fd` is taken whole and at once ([`Console::gathers`](super::Console::gathers)).
    pub(crate) fn gathers(&self, fd: i32) -> bool {
        self.open_file(fd).is_ok_and(|(_, file)| match file.object {
            Object::Console(stream) => file.writable() && !file.is_path() && self.console.gathers(stream),
            _ => false,
        })
    }

    fn write_object(&mut self, id: FileId, source: &mut dyn Source, position: u64) -> Result<usize, Stop> {
        let file = self.table.file_mut(id);
        let nonblocking = file.nonblocking();
        let done = match &mut file.object {
            Object::Dir(_) | Object::Path | Object::Text(_) | Object::Unmade { .. } => {
                return Err(Errno::BADF.into());
            }
            Object::Timer(_) | Object::Epoll(_) => return Err(Errno::INVAL.into()),
            Object::Event(event) => {
                let mut value = [0; 8];
                if source.left() < 8 {
                    return Err(Errno::INVAL.into());
                }
                if source.take(&mut value)? < 8 {
                    return Err(Errno::FAULT.into());
                }
                event.write(u64::from_ne_bytes(value), nonblocking)?;
                self.changed = true;
                8
            }
            Object::File(node) => self.tree.write(*node, source, position)?,
            Object::Shared(_) if source.left() == 0 => 0,
            Object::Shared(open) => source.write_to(open.fd(), position, usize::MAX)?,
            Object::Device(Device::Full) if source.left() > 0 => return Err(Errno::NOSPC.into()),
            Object::Device(_) => source.left(),
            Object::Console(stream) => {
                let stream = *stream;
                self.write_console(stream, source, nonblocking)?
            }
            Object::Pipe(pipe, _) => {
                let pipe = self.pipes[pipe.0 as usize].as_mut().expect("open");
                let n = if source.left() == 0 { 0 } else { pipe.write(source, nonblocking)? };
                self.changed = true;
                n
            }
            Object::Socket(end) => {
                let pair = self.pairs[end.pair as usize].as_mut().expect("open");
                let n = pair.send(end.side, source, nonblocking)?;
                self.changed = true;
                n
            }
        };
        Ok(done)
    }

    fn write_console(
        &mut self,
        stream: Stream,
        source: &mut dyn Source,
        nonblocking: bool,
    ) -> Result<usize, Stop> {
        if source.left() == 0 {
            return Ok(0);
        }
        if !self.console.writable(stream) {
            self.console_dry[stream as usize] += 1;
            return Err(Stop::unless(Need::OUTPUT, nonblocking));
        }
        let bytes = take_vec(source, CONSOLE_PIECE)?;
        match self.console.write(stream, &bytes) {
            ConsoleWrite::Taken(n) => Ok(n),
            ConsoleWrite::Closed => Err(Errno::PIPE.into()),
            ConsoleWrite::Full => {
                self.console_dry[stream as usize] += 1;
                Err(Stop::unless(Need::OUTPUT, nonblocking))
            }
        }
    }

    /// The length of what `id` refers to, where it has one.
    fn size(&self, id: FileId) -> Result<u64, Errno> {
        match &self.table.file(id).object {
            Object::File(node) => Ok(self.tree.node(*node).size),
            Object::Shared(open) => Ok(open.stat()?.size),
            Object::Text(text) => Ok(text.len() as u64),
            _ => Ok(0),
        }
    }

    /// `lseek(2)`. Every file is one piece of data with a hole at its end.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn seek(&mut self, fd: i32, offset: i64, whence: i32) -> Result<u64, Errno> {
        let (id, file) = self.open_file(fd)?;
        if file.is_path() {
            return Err(Errno::BADF);
        }
        if !seekable(&file.object) {
            return Err(Errno::SPIPE);
        }
        if matches!(file.object, Object::Device(_)) {
            return if (0..=2).contains(&whence) { Ok(0) } else { Err(Errno::INVAL) };
        }
        let regular = matches!(file.object, Object::File(_) | Object::Shared(_));
        let position = file.position as i64;
        let to = match whence {
            libc::SEEK_SET => Some(offset),
            libc::SEEK_CUR => position.checked_add(offset),
            libc::SEEK_END if matches!(file.object, Object::Dir(_)) => return Err(Errno::INVAL),
            libc::SEEK_END => (self.size(id)? as i64).checked_add(offset),
            libc::SEEK_DATA | libc::SEEK_HOLE if regular => {
                let size = self.size(id)? as i64;
                if offset < 0 || offset >= size {
                    return Err(Errno::NXIO);
                }
                Some(if whence == libc::SEEK_DATA { offset } else { size })
            }
            _ => return Err(Errno::INVAL),
        };
        let to = to.and_then(|to| u64::try_from(to).ok()).ok_or(Errno::INVAL)?;
        let file = self.table.file_mut(id);
        if let Object::Dir(listing) = &mut file.object
            && to == 0
        {
            *listing = None;
        }
        file.position = to;
        Ok(to)
    }

    /// `getdents64(2)`: hands out entries (with the position after each) until `take` refuses one.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT` for a removed directory, or what the host says.
    pub(crate) fn read_dir(
        &mut self,
        fd: i32,
        mut take: impl FnMut(&DirItem, u64) -> bool,
    ) -> Result<(), Errno> {
        let (id, file) = self.open_file(fd)?;
        let listing = match &file.object {
            Object::Dir(Some(listing)) => listing.clone(),
            Object::Dir(None) => self.take_listing(id)?,
            Object::Path => return Err(Errno::BADF),
            _ => return Err(Errno::NOTDIR),
        };
        let file = self.table.file_mut(id);
        let start = usize::try_from(file.position).unwrap_or(usize::MAX);
        for item in listing.iter().skip(start) {
            if !take(item, file.position + 1) {
                break;
            }
            file.position += 1;
        }
        Ok(())
    }

    fn take_listing(&mut self, id: FileId) -> Result<Arc<[DirItem]>, Errno> {
        let place = self.place_of_open(id).ok_or(Errno::NOTDIR)?;
        match &place {
            Place::Tree(node) if self.tree.node(*node).nlink == 0 => return Err(Errno::NOENT),
            Place::Open(_) => return Err(Errno::NOENT),
            _ => {}
        }
        let listing: Arc<[DirItem]> = self.list(&place)?.into();
        let listed = |object: &Object| if let Object::Dir(Some(items)) = object { items.len() } else { 0 };
        let others: usize = self.table.files().map(|(_, file)| listed(&file.object)).sum();
        if others > 0 && others + listing.len() > MOST_LISTED {
            return Err(Errno::NOMEM);
        }
        self.table.file_mut(id).object = Object::Dir(Some(listing.clone()));
        Ok(listing)
    }

    /// `ftruncate(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn truncate_open(&mut self, fd: i32, size: i64) -> Result<(), Errno> {
        let size = u64::try_from(size).map_err(|_| Errno::INVAL)?;
        let (_, file) = self.open_file(fd)?;
        if file.is_path() {
            return Err(Errno::BADF);
        }
        match &file.object {
            Object::File(_) | Object::Shared(_) if !file.writable() => Err(Errno::INVAL),
            Object::File(_) | Object::Shared(_) if size > self.table.file_bytes => Err(Errno::FBIG),
            Object::File(node) => self.tree.truncate(*node, size),
            Object::Shared(open) => rustix::fs::ftruncate(open.fd(), size),
            _ => Err(Errno::INVAL),
        }
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn allocate(&mut self, fd: i32, mode: i32, start: i64, length: i64) -> Result<(), Errno> {
        let (start, length) = match (u64::try_from(start), u64::try_from(length)) {
            (Ok(start), Ok(length)) if length > 0 => (start, length),
            _ => return Err(Errno::INVAL),
        };
        let (id, file) = self.open_file(fd)?;
        if !file.writable() {
            return Err(Errno::BADF);
        }
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let (end, limit) = (start.saturating_add(length), self.table.file_bytes);
        if !mode.contains(FallocateFlags::KEEP_SIZE) && end > limit && end > self.size(id)? {
            return Err(Errno::FBIG);
        }
        match &file.object {
            Object::File(node) => self.tree.allocate(*node, mode, start, length),
            Object::Shared(open) => rustix::fs::fallocate(open.fd(), mode, start, length),
            Object::Pipe(..) | Object::Console(_) => Err(Errno::SPIPE),
            _ => Err(Errno::NODEV),
        }
    }

    /// `fsync(2)` and `fdatasync(2)`: shares are synced, the private layer has nothing to sync to.
    ///
    /// # Errors
    /// As the manual page says.
    pub(crate) fn sync_open(&self, fd: i32, data_only: bool) -> Result<(), Errno> {
        let file = self.table.get(fd)?;
        match &file.object {
            Object::Path => Err(Errno::BADF),
            Object::Shared(open) if data_only => rustix::fs::fdatasync(open.fd()),
            Object::Shared(open) => rustix::fs::fsync(open.fd()),
            Object::File(_) | Object::Dir(_) => Ok(()),
            _ => Err(Errno::INVAL),
        }
    }
}

fn zeroes(sink: &mut dyn Sink) -> Result<usize, Errno> {
    static PIECE: [u8; 64 << 10] = [0; 64 << 10];
    let mut done = 0;
    while sink.room() > 0 {
        match put_all(sink, &PIECE) {
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
