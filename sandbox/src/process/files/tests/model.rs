//! The same random operations on [`Files`] and on a real directory: same results, same errors, same files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom};

use super::*;

/// Both sides work this many directories deep, so that no chain of `..` and links leaves the real one.
const DEEP: &str = "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d";

#[derive(Clone, Debug)]
enum Op {
    Open { at: usize, path: String, flags: i32, mode: u32 },
    Close { fd: usize },
    Read { fd: usize, n: usize, at: Option<u64> },
    Write { fd: usize, n: usize, at: Option<u64> },
    Seek { fd: usize, offset: i64, whence: i32 },
    SetLength { fd: usize, size: u64 },
    StatOpen { fd: usize },
    List { fd: usize },
    Dup { fd: usize },
    MakeDir { at: usize, path: String, mode: u32 },
    Remove { at: usize, path: String, dir: bool },
    Rename { at: usize, old: String, new: String, flags: u32 },
    Link { at: usize, old: String, new: String, follow: bool },
    Symlink { text: String, at: usize, path: String },
    ReadLink { at: usize, path: String },
    Stat { at: usize, path: String, follow: bool },
    ChangeMode { at: usize, path: String, mode: u32 },
    Truncate { path: String, size: u64 },
}

/// What an operation gave, as far as both sides must agree.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    File { kind: FileType, mode: u32, nlink: u64, size: u64 },
}

fn seen(mode: u32, nlink: u64, size: u64) -> Seen {
    let kind = FileType::from_raw_mode(mode);
    let dir = kind == FileType::Directory;
    let mode = if kind == FileType::Symlink { 0 } else { mode & 0o7777 };
    Seen::File { kind, mode, nlink: if dir { 0 } else { nlink }, size: if dir { 0 } else { size } }
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i % 251) as u8).collect()
}

/// One of the two sides.
trait Side {
    fn run(&mut self, op: &Op) -> Result<Seen, Errno>;
}

struct Real {
    base: OwnedFd,
    fds: Vec<Option<OwnedFd>>,
}

impl Real {
    fn at(&self, n: usize) -> Result<BorrowedFd<'_>, Errno> {
        if n == 0 { Ok(self.base.as_fd()) } else { self.fd(n - 1) }
    }

    fn fd(&self, n: usize) -> Result<BorrowedFd<'_>, Errno> {
        match self.fds.len() {
            0 => Err(Errno::BADF),
            len => self.fds[n % len].as_ref().map(OwnedFd::as_fd).ok_or(Errno::BADF),
        }
    }

    fn list(&self, fd: BorrowedFd<'_>) -> Result<Seen, Errno> {
        if fs::fcntl_getfl(fd)?.contains(OFlags::PATH) {
            return Err(Errno::BADF);
        }
        if FileType::from_raw_mode(fs::fstat(fd)?.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let mut names = Vec::new();
        let again = fs::openat(fd, ".", OFlags::RDONLY, Mode::empty())?;
        // Not fs::Dir, to which a directory that was removed is an empty one.
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = fs::RawDir::new(again, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            names.push(entry?.file_name().to_bytes().to_vec());
        }
        names.sort();
        Ok(Seen::Names(names))
    }
}

impl Side for Real {
    fn run(&mut self, op: &Op) -> Result<Seen, Errno> {
        let nothing = |()| Seen::Nothing;
        let stat = |s: fs::Stat| seen(s.st_mode, s.st_nlink, s.st_size as u64);
        match op {
            Op::Open { at, path, flags, mode } => {
                let flags = OFlags::from_bits_retain(*flags as u32);
                let fd = fs::openat(self.at(*at)?, path, flags, Mode::from_raw_mode(*mode))?;
                self.fds.push(Some(fd));
                Ok(Seen::Nothing)
            }
            Op::Close { fd } => {
                self.fd(*fd)?;
                let n = fd % self.fds.len();
                self.fds[n] = None;
                Ok(Seen::Nothing)
            }
            Op::Read { fd, n, at } => {
                let mut buffer = vec![0; *n];
                let fd = self.fd(*fd)?;
                let n = match at {
                    Some(at) => rustix::io::pread(fd, &mut buffer, *at),
                    None => rustix::io::read(fd, &mut buffer),
                }?;
                buffer.truncate(n);
                Ok(Seen::Bytes(buffer))
            }
            Op::Write { fd, n, at } => {
                let fd = self.fd(*fd)?;
                let n = match at {
                    Some(at) => rustix::io::pwrite(fd, &pattern(*n), *at),
                    None => rustix::io::write(fd, &pattern(*n)),
                }?;
                Ok(Seen::Number(n as u64))
            }
            Op::Seek { fd, offset, whence } => {
                let to = match *whence {
                    libc::SEEK_SET if *offset < 0 => return self.fd(*fd).and(Err(Errno::INVAL)),
                    libc::SEEK_SET => SeekFrom::Start(*offset as u64),
                    libc::SEEK_CUR => SeekFrom::Current(*offset),
                    _ => SeekFrom::End(*offset),
                };
                let fd = self.fd(*fd)?;
                if FileType::from_raw_mode(fs::fstat(fd)?.st_mode) == FileType::Directory {
                    return Ok(Seen::Nothing);
                }
                Ok(Seen::Number(fs::seek(fd, to)?))
            }
            Op::SetLength { fd, size } => fs::ftruncate(self.fd(*fd)?, *size).map(nothing),
            Op::StatOpen { fd } => fs::fstat(self.fd(*fd)?).map(stat),
            Op::List { fd } => self.list(self.fd(*fd)?),
            Op::Dup { fd } => {
                let fd = rustix::io::fcntl_dupfd_cloexec(self.fd(*fd)?, 0)?;
                self.fds.push(Some(fd));
                Ok(Seen::Nothing)
            }
            Op::MakeDir { at, path, mode } => {
                fs::mkdirat(self.at(*at)?, path, Mode::from_raw_mode(*mode)).map(nothing)
            }
            Op::Remove { at, path, dir } => {
                let flags = if *dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                fs::unlinkat(self.at(*at)?, path, flags).map(nothing)
            }
            Op::Rename { at, old, new, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                fs::renameat_with(self.at(*at)?, old, &self.base, new, flags).map(nothing)
            }
            Op::Link { at, old, new, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                fs::linkat(self.at(*at)?, old, &self.base, new, flags).map(nothing)
            }
            Op::Symlink { text, at, path } => fs::symlinkat(text, self.at(*at)?, path).map(nothing),
            Op::ReadLink { at, path } => {
                fs::readlinkat(self.at(*at)?, path, Vec::new()).map(|text| Seen::Bytes(text.into_bytes()))
            }
            Op::Stat { at, path, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                fs::statat(self.at(*at)?, path, flags).map(stat)
            }
            Op::ChangeMode { at, path, mode } => {
                fs::chmodat(self.at(*at)?, path, Mode::from_raw_mode(*mode), AtFlags::empty()).map(nothing)
            }
            Op::Truncate { path, size } => {
                let fd = fs::openat(&self.base, path, OFlags::WRONLY, Mode::empty())?;
                fs::ftruncate(fd, *size).map(nothing)
            }
        }
    }
}

struct Ours {
    files: Files,
    base: i32,
    fds: Vec<Option<i32>>,
}

impl Ours {
    fn at(&self, n: usize) -> Result<i32, Errno> {
        if n == 0 { Ok(self.base) } else { self.fd(n - 1) }
    }

    fn fd(&self, n: usize) -> Result<i32, Errno> {
        match self.fds.len() {
            0 => Err(Errno::BADF),
            len => self.fds[n % len].ok_or(Errno::BADF),
        }
    }
}

fn plain<T>(result: Result<T, Stop>) -> Result<T, Errno> {
    result.map_err(|stop| match stop {
        Stop::Errno(e) => e,
        Stop::Wait(_) => panic!("a regular file never waits"),
    })
}

impl Side for Ours {
    fn run(&mut self, op: &Op) -> Result<Seen, Errno> {
        let nothing = |()| Seen::Nothing;
        let stat = |a: Attr| seen(a.mode, u64::from(a.nlink), a.size);
        match op {
            Op::Open { at, path, flags, mode } => {
                let at = self.at(*at)?;
                let fd = self.files.open(at, path.as_bytes(), *flags as u32, *mode, Limits::default())?;
                self.fds.push(Some(fd));
                Ok(Seen::Nothing)
            }
            Op::Close { fd } => {
                let number = self.fd(*fd)?;
                let n = fd % self.fds.len();
                self.fds[n] = None;
                self.files.close(number).map(nothing)
            }
            Op::Read { fd, n, at } => {
                let mut buffer = vec![0; *n];
                let fd = self.fd(*fd)?;
                let read = self.files.read(fd, &mut buffer.as_mut_slice(), at.map(|at| at as i64));
                buffer.truncate(plain(read)?);
                Ok(Seen::Bytes(buffer))
            }
            Op::Write { fd, n, at } => {
                let fd = self.fd(*fd)?;
                let done = self.files.write(fd, &mut pattern(*n).as_slice(), at.map(|at| at as i64));
                Ok(Seen::Number(plain(done)? as u64))
            }
            Op::Seek { fd, offset, whence } => {
                let fd = self.fd(*fd)?;
                if *whence == libc::SEEK_SET && *offset < 0 {
                    return Err(Errno::INVAL);
                }
                if self.files.stat_open(fd)?.kind() == FileType::Directory {
                    return Ok(Seen::Nothing);
                }
                self.files.seek(fd, *offset, *whence).map(Seen::Number)
            }
            Op::SetLength { fd, size } => {
                let fd = self.fd(*fd)?;
                self.files.truncate_open(fd, *size as i64).map(nothing)
            }
            Op::StatOpen { fd } => self.files.stat_open(self.fd(*fd)?).map(stat),
            Op::List { fd } => {
                let fd = self.fd(*fd)?;
                let mut names = Vec::new();
                let path_only = self.files.status_flags(fd)? & libc::O_PATH as u32 != 0;
                if self.files.stat_open(fd)?.kind() == FileType::Directory && !path_only {
                    self.files.stat(fd, b".", End::Follow, false)?;
                    self.files.seek(fd, 0, libc::SEEK_SET)?;
                }
                self.files.read_dir(fd, |item, _| {
                    names.push(item.name.clone());
                    true
                })?;
                names.sort();
                Ok(Seen::Names(names))
            }
            Op::Dup { fd } => {
                let fd = self.files.duplicate(self.fd(*fd)?, 0, true)?;
                self.fds.push(Some(fd));
                Ok(Seen::Nothing)
            }
            Op::MakeDir { at, path, mode } => {
                self.files.make_dir(self.at(*at)?, path.as_bytes(), *mode).map(nothing)
            }
            Op::Remove { at, path, dir } => {
                self.files.remove(self.at(*at)?, path.as_bytes(), *dir).map(nothing)
            }
            Op::Rename { at, old, new, flags } => {
                let (old, new) = ((self.at(*at)?, old.as_bytes()), (self.base, new.as_bytes()));
                self.files.rename(old, new, *flags).map(nothing)
            }
            Op::Link { at, old, new, follow } => {
                let (old, new) = ((self.at(*at)?, old.as_bytes()), (self.base, new.as_bytes()));
                self.files.link(old, new, *follow, false).map(nothing)
            }
            Op::Symlink { text, at, path } => {
                self.files.make_link(text.as_bytes(), self.at(*at)?, path.as_bytes()).map(nothing)
            }
            Op::ReadLink { at, path } => {
                self.files.read_link(self.at(*at)?, path.as_bytes()).map(Seen::Bytes)
            }
            Op::Stat { at, path, follow } => {
                let end = if *follow { End::Follow } else { End::Stay };
                self.files.stat(self.at(*at)?, path.as_bytes(), end, false).map(stat)
            }
            Op::ChangeMode { at, path, mode } => {
                let place = self.files.find(self.at(*at)?, path.as_bytes(), End::Follow, false)?;
                self.files.change_mode(place, *mode).map(nothing)
            }
            Op::Truncate { path, size } => {
                let flags = libc::O_WRONLY as u32;
                let fd = self.files.open(self.base, path.as_bytes(), flags, 0, Limits::default())?;
                let done = self.files.truncate_open(fd, *size as i64);
                self.files.close(fd)?;
                done.map(nothing)
            }
        }
    }
}

/// What both sides begin with.
fn populate(base: &Path) {
    std::fs::create_dir_all(base.join("b/c/a")).unwrap();
    std::fs::create_dir(base.join("e")).unwrap();
    std::fs::write(base.join("a"), pattern(5000)).unwrap();
    std::fs::write(base.join("b/a"), pattern(100)).unwrap();
    std::fs::write(base.join("b/c/b"), pattern(100_000)).unwrap();
    std::fs::write(base.join("b/c/e"), b"").unwrap();
    std::os::unix::fs::symlink("b/c", base.join("c")).unwrap();
    std::os::unix::fs::symlink("../a", base.join("b/b")).unwrap();
    std::os::unix::fs::symlink("nowhere", base.join("b/e")).unwrap();
}

fn walk_all(side: &mut dyn Side, path: &str, out: &mut Vec<(String, String)>) {
    let look = side.run(&Op::Stat { at: 0, path: path.into(), follow: false });
    out.push((path.into(), format!("{look:?}")));
    match look {
        Ok(Seen::File { kind: FileType::Directory, .. }) => {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            side.run(&Op::Open { at: 0, path: path.into(), flags, mode: 0 }).unwrap();
            let Ok(Seen::Names(names)) = side.run(&Op::List { fd: LAST }) else { panic!("{path}") };
            side.run(&Op::Close { fd: LAST }).unwrap();
            for name in names {
                let name = String::from_utf8(name).unwrap();
                if name != "." && name != ".." {
                    walk_all(side, &format!("{path}/{name}"), out);
                }
            }
        }
        Ok(Seen::File { kind: FileType::RegularFile, .. }) => {
            side.run(&Op::Open { at: 0, path: path.into(), flags: libc::O_RDONLY, mode: 0 }).unwrap();
            let content = side.run(&Op::Read { fd: LAST, n: 1 << 20, at: Some(0) });
            side.run(&Op::Close { fd: LAST }).unwrap();
            out.push((path.into(), format!("{content:?}")));
        }
        Ok(_) => {
            let text = side.run(&Op::ReadLink { at: 0, path: path.into() });
            out.push((path.into(), format!("{text:?}")));
        }
        Err(_) => {}
    }
}

/// Stands for the newest descriptor once [`aligned`] has run.
const LAST: usize = usize::MAX;

fn aligned(op: &Op, len: usize) -> Op {
    let mut op = op.clone();
    if let Op::Close { fd } | Op::List { fd } | Op::Read { fd, .. } = &mut op
        && *fd == LAST
    {
        *fd = len - 1;
    }
    op
}

struct Aligned<S>(S);

impl Side for Aligned<Real> {
    fn run(&mut self, op: &Op) -> Result<Seen, Errno> {
        let op = aligned(op, self.0.fds.len());
        self.0.run(&op)
    }
}

impl Side for Aligned<Ours> {
    fn run(&mut self, op: &Op) -> Result<Seen, Errno> {
        let op = aligned(op, self.0.fds.len());
        self.0.run(&op)
    }
}

#[derive(Clone, Copy, Debug)]
enum Over {
    Root,
    Share,
}

/// Runs `ops` on both sides and compares after each.
fn compare(ops: &[Op], over: Over) -> Result<(), TestCaseError> {
    let (real, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&real, &ours] {
        let base = dir.path().join(DEEP);
        std::fs::create_dir_all(&base).unwrap();
        populate(&base);
    }
    let base = fs::open(real.path().join(DEEP), OFlags::RDONLY, Mode::empty()).unwrap();
    let mut real_side = Aligned(Real { base, fds: Vec::new() });
    let (mut files, start) = match over {
        Over::Root => (files_with(Some(ours.path()), &[]), format!("/{DEEP}")),
        Over::Share => {
            (files_with(None, &[(ours.path(), "/mnt/share", false)]), format!("/mnt/share/{DEEP}"))
        }
    };
    let base = files.test_open(&start, libc::O_RDONLY).unwrap();
    let mut our_side = Aligned(Ours { files, base, fds: Vec::new() });
    for (n, op) in ops.iter().enumerate() {
        let expected = real_side.run(op);
        let got = our_side.run(op);
        prop_assert_eq!(&got, &expected, "operation {}: {:?} over {:?}", n, op, over);
    }
    let (mut expected, mut got) = (Vec::new(), Vec::new());
    walk_all(&mut real_side, ".", &mut expected);
    walk_all(&mut our_side, ".", &mut got);
    prop_assert_eq!(got, expected);
    if let Over::Root = over {
        let mut below = Vec::new();
        let base = fs::open(ours.path().join(DEEP), OFlags::RDONLY, Mode::empty()).unwrap();
        walk_all(&mut Aligned(Real { base, fds: Vec::new() }), ".", &mut below);
        prop_assert_eq!(below, untouched());
    }
    Ok(())
}

/// What the populated directory looks like when nobody has written to it.
fn untouched() -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    populate(dir.path());
    let base = fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
    let mut all = Vec::new();
    walk_all(&mut Aligned(Real { base, fds: Vec::new() }), ".", &mut all);
    all
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "a", "b", "c", ".", ".."]);
    let slash = prop::sample::select(vec!["", "", "", "", "/", "/."]);
    (prop::collection::vec(name, 1..4), slash)
        .prop_map(|(names, slash)| format!("{}{slash}", names.join("/")))
}

fn op() -> impl Strategy<Value = Op> {
    let at = || prop_oneof![4 => Just(0_usize), 1 => 1..6_usize];
    let fd = || 0..8_usize;
    let mode = || prop::sample::select(vec![0o600_u32, 0o644, 0o755, 0o700, 0o777]);
    let flags = (
        prop::sample::select(vec![libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]),
        prop::collection::vec(
            prop::sample::select(vec![
                libc::O_CREAT,
                libc::O_CREAT,
                libc::O_EXCL,
                libc::O_TRUNC,
                libc::O_APPEND,
                libc::O_DIRECTORY,
                libc::O_NOFOLLOW,
                libc::O_PATH,
            ]),
            0..3,
        ),
    )
        .prop_map(|(access, more)| more.into_iter().fold(access, |all, flag| all | flag));
    let size = || prop::sample::select(vec![0_usize, 1, 100, 4096, 5000, 70_000]);
    let offset = || prop::option::weighted(0.3, prop::sample::select(vec![0_u64, 1, 99, 4096, 66_000]));
    let dir_flags = Just(libc::O_RDONLY | libc::O_DIRECTORY);
    prop_oneof![
        5 => (at(), path(), flags, mode()).prop_map(|(at, path, flags, mode)| Op::Open { at, path, flags, mode }),
        2 => (at(), path(), dir_flags).prop_map(|(at, path, flags)| Op::Open { at, path, flags, mode: 0 }),
        1 => fd().prop_map(|fd| Op::Close { fd }),
        3 => (fd(), size(), offset()).prop_map(|(fd, n, at)| Op::Read { fd, n, at }),
        4 => (fd(), size(), offset()).prop_map(|(fd, n, at)| Op::Write { fd, n, at }),
        2 => (fd(), -10..6000_i64, 0..3).prop_map(|(fd, offset, whence)| Op::Seek { fd, offset, whence }),
        2 => (fd(), size()).prop_map(|(fd, size)| Op::SetLength { fd, size: size as u64 }),
        1 => fd().prop_map(|fd| Op::StatOpen { fd }),
        2 => fd().prop_map(|fd| Op::List { fd }),
        1 => fd().prop_map(|fd| Op::Dup { fd }),
        3 => (at(), path(), mode()).prop_map(|(at, path, mode)| Op::MakeDir { at, path, mode }),
        4 => (at(), path(), any::<bool>()).prop_map(|(at, path, dir)| Op::Remove { at, path, dir }),
        6 => (at(), path(), path(), 0..4_u32).prop_map(|(at, old, new, flags)| Op::Rename { at, old, new, flags }),
        3 => (at(), path(), path(), any::<bool>())
            .prop_map(|(at, old, new, follow)| Op::Link { at, old, new, follow }),
        3 => (path(), at(), path()).prop_map(|(text, at, path)| Op::Symlink { text, at, path }),
        1 => (at(), path()).prop_map(|(at, path)| Op::ReadLink { at, path }),
        3 => (at(), path(), any::<bool>()).prop_map(|(at, path, follow)| Op::Stat { at, path, follow }),
        1 => (at(), path(), mode()).prop_map(|(at, path, mode)| Op::ChangeMode { at, path, mode }),
        1 => (path(), size()).prop_map(|(path, size)| Op::Truncate { path, size: size as u64 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn the_private_layer_does_what_a_real_directory_does(ops in prop::collection::vec(op(), 1..60)) {
        compare(&ops, Over::Root)?;
    }

    #[test]
    fn a_writable_share_does_what_a_real_directory_does(ops in prop::collection::vec(op(), 1..60)) {
        compare(&ops, Over::Share)?;
    }
}
