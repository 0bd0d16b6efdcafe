//! Files for somebody outside of the guest, a piece at a time: regular files only, so that nothing here waits.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use novum_proto::guest::MOST_PIECE_BYTES;
use novum_proto::guest::v1::file_request::{How, Read as ReadPiece, What, Write};
use novum_proto::guest::v1::{FileReply, FileRequest, to_host};

/// Nothing waits for a pipe's other end, and no terminal becomes the agent's.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

/// Does what is asked; the answer.
pub(crate) fn serve(request: &FileRequest) -> to_host::Message {
    let path = Path::new(&request.path);
    let done = match &request.what {
        Some(What::Read(piece)) => read(path, piece).map(|data| FileReply { data, ..FileReply::default() }),
        Some(What::Write(piece)) => write(path, piece).map(|end| FileReply { end, ..FileReply::default() }),
        None => Err(ErrorKind::InvalidInput.into()),
    };
    let reply = done.unwrap_or_else(|error| {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            ErrorKind::InvalidInput => libc::EINVAL,
            _ => libc::EIO,
        });
        FileReply { errno: errno as u32, ..FileReply::default() }
    });
    to_host::Message::File(FileReply { request: request.request, ..reply })
}

fn read(path: &Path, piece: &ReadPiece) -> io::Result<Vec<u8>> {
    let mut file = regular(OpenOptions::new().read(true).custom_flags(FLAGS).open(path)?)?;
    let bytes = MOST_PIECE_BYTES.min(piece.bytes as usize);
    // By position and not at it: files of /proc only know the latter.
    file.seek(SeekFrom::Start(piece.offset))?;
    let mut data = Vec::with_capacity(bytes);
    file.take(bytes as u64).read_to_end(&mut data)?;
    Ok(data)
}

fn write(path: &Path, piece: &Write) -> io::Result<u64> {
    if piece.make_directories
        && let Some(folder) = path.parent()
    {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let length = piece.data.len() as u64;
    match piece.how() {
        How::Anew => {
            let mut file = open_or_make(path, piece.mode, OpenOptions::new().write(true))?;
            file.set_len(0)?;
            file.write_all(&piece.data)?;
            Ok(length)
        }
        How::Append => {
            let mut file = open_or_make(path, piece.mode, OpenOptions::new().append(true))?;
            file.write_all(&piece.data)?;
            Ok(file.metadata()?.len())
        }
        How::At => {
            let file = regular(OpenOptions::new().write(true).custom_flags(FLAGS).open(path)?)?;
            file.write_all_at(&piece.data, piece.position)?;
            Ok(piece.position + length)
        }
    }
}

/// A new file has exactly the permissions that were asked for.
fn open_or_make(path: &Path, mode: u32, options: &mut OpenOptions) -> io::Result<File> {
    let options = options.custom_flags(FLAGS);
    match options.clone().create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
            Ok(file)
        }
        // A link to a file that is not there is made where it leads.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let made = !path.exists();
            let file = regular(options.clone().create(true).mode(0o600).open(path)?)?;
            if made {
                file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
            }
            Ok(file)
        }
        Err(error) => Err(error),
    }
}

fn regular(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if kind.is_file() { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}
