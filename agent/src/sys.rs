//! System calls that the standard library does not have, each in a safe function.
//!
//! The agent is single-threaded, so what changes the process as a whole (root, signal mask) races with nobody.
#![allow(unsafe_code)]

pub(crate) mod net;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use novum_proto::guest::v1::{Start, Terminal};

/// The port by which a novum guest powers off, and what is written to it (docs/linux-engine.md: ACPI S5 of our tables).
const SLEEP_PORT: u16 = 0x600;
const SLEEP_S5: u8 = 0x34;
/// Linux's include/uapi/linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// Most bytes of entropy at once.
const MOST_ENTROPY: usize = 512;

/// The result of a call that returns -1 for an error.
fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// mount(2).
pub(crate) fn mount(
    source: &str,
    place: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let [source, place, kind, options] = [text(source)?, text(place)?, text(kind)?, text(options)?];
    // SAFETY: four strings that end in NUL and live until the call returns.
    let result = unsafe {
        libc::mount(source.as_ptr(), place.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    check(result.into()).map(drop)
}

/// Marks a directory of an overlay's upper layer as hiding those below it; the overlay's attributes are in the name space
/// `names`.
pub(crate) fn hide_lower(folder: &str, names: &str) -> io::Result<()> {
    let (folder, name) = (text(folder)?, text(&format!("{names}.overlay.opaque"))?);
    // SAFETY: strings that end in NUL, and one byte of value.
    let result = unsafe { libc::setxattr(folder.as_ptr(), name.as_ptr(), c"y".as_ptr().cast(), 1, 0) };
    check(result.into()).map(drop)
}

/// Makes `folder`, a mount point, the root of this process and its children. The old root stays below, out of reach.
pub(crate) fn switch_root(folder: &str) -> io::Result<()> {
    std::env::set_current_dir(folder)?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    // SAFETY: a string that ends in NUL.
    check(unsafe { libc::chroot(c".".as_ptr()) }.into())?;
    std::env::set_current_dir("/")
}

/// sethostname(2).
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer is to as many bytes as are named.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Sets the wall clock.
pub(crate) fn set_clock(nanoseconds: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    // SAFETY: `time` is initialised.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }.into()).map(drop)
}

/// The kernel's generator, open.
pub(crate) struct Generator(File);

impl Generator {
    pub(crate) fn open() -> io::Result<Self> {
        File::options().write(true).open("/dev/urandom").map(Self)
    }

    /// Credits `bytes` to it and makes it begin anew.
    pub(crate) fn reseed(&self, bytes: &[u8]) -> io::Result<()> {
        #[repr(C)]
        struct Pool {
            bits: i32,
            size: i32,
            bytes: [u8; MOST_ENTROPY],
        }
        let bytes = &bytes[..bytes.len().min(MOST_ENTROPY)];
        let mut pool =
            Pool { bits: bytes.len() as i32 * 8, size: bytes.len() as i32, bytes: [0; MOST_ENTROPY] };
        pool.bytes[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the kernel reads two numbers and `size` bytes behind them, all of `pool`.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), RNDADDENTROPY, &raw const pool) }.into())?;
        // SAFETY: no argument.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), RNDRESEEDCRNG) }.into()).map(drop)
    }
}

/// finit_module(2).
pub(crate) fn insert_module(file: &File) -> io::Result<()> {
    // SAFETY: a descriptor that is open, an empty string, no flags.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) }).map(drop)
}

/// Switches the loopback interface on.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain numbers; the result is a new descriptor or an error.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: `socket` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as i32) };
    // SAFETY: zeroes are a valid ifreq; the name is shorter than its field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    (request.ifr_name[0], request.ifr_name[1]) = (b'l' as libc::c_char, b'o' as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: `request` is initialised.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into())
        .map(drop)
}

/// A vsock stream that does not block.
pub(crate) fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is a new descriptor or an error.
    let socket =
        check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: `socket` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as i32) };
    // SAFETY: zeroes are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to an address of that size.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) }.into())?;
    set_non_blocking(socket.as_fd())?;
    Ok(socket)
}

/// O_NONBLOCK.
pub(crate) fn set_non_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain numbers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }.into())? as i32;
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }.into()).map(drop)
}

/// Sleeps until one of the descriptors is readable, or writable where its flag is set, or `patience_ms` have passed
/// (-1: for ever); says which are.
pub(crate) fn poll(events: &[(BorrowedFd<'_>, bool)], patience_ms: i32) -> io::Result<Vec<bool>> {
    let entry = |(fd, write): &(BorrowedFd<'_>, bool)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: if *write { libc::POLLOUT } else { libc::POLLIN },
        revents: 0,
    };
    let mut entries: Vec<libc::pollfd> = events.iter().map(entry).collect();
    // SAFETY: the pointer is to as many entries as are named.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, patience_ms) };
    match check(result.into()) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(entries.iter().map(|entry| entry.revents != 0).collect()),
    }
}

/// SIGCHLD as something to poll for.
pub(crate) struct ChildSignals(OwnedFd);

impl ChildSignals {
    /// Blocks the signal; the standard library unblocks all in the children that it starts.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the set is initialised before it is used; the result is a new descriptor or an error.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        check(fd.into())?;
        // SAFETY: it was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes note of a signal.
    pub(crate) fn take(&self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: as many bytes as the buffer has. Without a signal it fails, which is as good.
        unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Code(u32),
    Signal(u32),
}

/// One child that has ended.
pub(crate) fn reap() -> Option<(i32, Ended)> {
    let mut status = 0;
    // SAFETY: `status` is written.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let ended = match libc::WIFEXITED(status) {
        true => Ended::Code(libc::WEXITSTATUS(status) as u32),
        false => Ended::Signal(libc::WTERMSIG(status) as u32),
    };
    (pid > 0).then_some((pid, ended))
}

/// kill(2) for a process group.
pub(crate) fn kill_group(pid: i32, signal: i32) {
    // SAFETY: plain numbers. A group that has ended is no error.
    unsafe { libc::kill(-pid, signal) };
}

/// A terminal: our side, which does not block, and the command's.
pub(crate) fn open_terminal(size: &Terminal) -> io::Result<(OwnedFd, OwnedFd)> {
    let own: OwnedFd = File::options().read(true).write(true).open("/dev/ptmx")?.into();
    let unlock = 0i32;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(own.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a plain number; the result is a new descriptor or an error.
    let childs = check(unsafe { libc::ioctl(own.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: it was just opened and belongs to nobody else.
    let childs = unsafe { OwnedFd::from_raw_fd(childs as i32) };
    resize_terminal(own.as_fd(), size);
    set_non_blocking(own.as_fd())?;
    Ok((own, childs))
}

/// Sets a terminal's size; its processes get SIGWINCH.
pub(crate) fn resize_terminal(terminal: BorrowedFd<'_>, size: &Terminal) {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let size =
        libc::winsize { ws_row: cells(size.rows), ws_col: cells(size.columns), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize. It only fails for what is no terminal.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

/// What the child does between fork and exec: a session of its own, its terminal, limits, and last its user.
pub(crate) fn prepare_child(command: &mut Command, start: &Start) {
    let terminal = start.terminal.is_some();
    let limit = |limit: &novum_proto::guest::v1::Limit| {
        (limit.resource, libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard })
    };
    let limits: Vec<(u32, libc::rlimit)> = start.limits.iter().map(limit).collect();
    let user = start.user.clone().unwrap_or_default();
    let work = move || {
        // SAFETY: system calls with plain numbers and pointers to what the closure owns; standard input is the terminal.
        unsafe {
            check(libc::setsid().into())?;
            if terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0).into())?;
            }
            for (resource, limit) in &limits {
                check(libc::setrlimit(*resource, limit).into())?;
            }
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()).into())?;
            check(libc::setgid(user.gid).into())?;
            check(libc::setuid(user.uid).into()).map(drop)
        }
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes locks. (The agent has one thread
    // anyway.)
    unsafe { command.pre_exec(work) };
}

/// Ends the machine. The host may have to do without what was not synced.
pub(crate) fn power_off() -> ! {
    // SAFETY: sync has no arguments; ioperm gives this process the right to the port that the next instruction writes.
    unsafe {
        libc::sync();
        if libc::ioperm(SLEEP_PORT.into(), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") SLEEP_PORT, in("al") SLEEP_S5, options(nomem, nostack));
        }
    }
    loop {
        // SAFETY: plain numbers. It returns only where it failed.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
