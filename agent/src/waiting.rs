//! Whether a command waits for its input: the moment at which an image of it is taken.
//!
//! It does where every thread of its session sleeps and one of them sleeps in a system call that waits for the pipe
//! that is the command's standard input: reading it, or watching it by poll, select or epoll. Source: proc(5).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Most descriptors of one poll that are looked at.
const MOST_POLLED: usize = 256;

/// Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl).
mod call {
    pub(super) const READ: u64 = 0;
    pub(super) const POLL: u64 = 7;
    pub(super) const READV: u64 = 19;
    pub(super) const SELECT: u64 = 23;
    pub(super) const EPOLL_WAIT: u64 = 232;
    pub(super) const PSELECT6: u64 = 270;
    pub(super) const PPOLL: u64 = 271;
    pub(super) const SPLICE: u64 = 275;
    pub(super) const EPOLL_PWAIT: u64 = 281;
    pub(super) const EPOLL_PWAIT2: u64 = 441;
}

/// Whether the session of process `leader` waits for `pipe`, our end of its input. What cannot be read runs, or has just
/// ended.
pub(crate) fn waits(leader: i32, pipe: BorrowedFd<'_>) -> bool {
    look(leader, pipe).unwrap_or(false)
}

fn look(leader: i32, pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let own = fs::metadata(format!("/proc/self/fd/{}", pipe.as_raw_fd()))?;
    let link = format!("pipe:[{}]", own.ino());
    let mut waits = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        else {
            continue;
        };
        // It may have ended since; then it does not count.
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { continue };
        if session(&stat) != Some(leader) {
            continue;
        }
        for task in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
            let task = task.path();
            if state(&fs::read_to_string(task.join("stat"))?) != Some("S") {
                return Ok(false);
            }
            let call = fs::read_to_string(task.join("syscall"))?;
            waits |= Call::parse(&call).is_some_and(|call| call.waits_for(process, &link));
        }
    }
    Ok(waits)
}

/// The words behind the name, which may have anything in it: state, parent, group, session.
fn words(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace()
}

fn state(stat: &str) -> Option<&str> {
    words(stat).next()
}

fn session(stat: &str) -> Option<i32> {
    words(stat).nth(3)?.parse().ok()
}

/// A system call that a thread sleeps in.
struct Call {
    number: u64,
    args: [u64; 2],
}

impl Call {
    /// `0 0x0 0x7ffe... ...`; nothing of the kind for a thread that runs.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut arg = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
        Some(Self { number, args: [arg()?, arg()?] })
    }

    fn waits_for(&self, process: &str, link: &str) -> bool {
        let is_pipe = |fd: u64| {
            fs::read_link(format!("/proc/{process}/fd/{fd}")).is_ok_and(|path| path.as_os_str() == link)
        };
        let [first, second] = self.args;
        match self.number {
            call::READ | call::READV | call::SPLICE => is_pipe(first),
            call::POLL | call::PPOLL => polled(process, first, second).into_iter().any(is_pipe),
            call::SELECT | call::PSELECT6 => selected(process, second, first).into_iter().any(is_pipe),
            call::EPOLL_WAIT | call::EPOLL_PWAIT | call::EPOLL_PWAIT2 => {
                watched(process, first).into_iter().any(is_pipe)
            }
            _ => false,
        }
    }
}

/// `length` bytes of the process's memory.
fn memory(process: &str, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read =
        fs::File::open(format!("/proc/{process}/mem")).and_then(|file| file.read_exact_at(&mut bytes, at));
    read.map_or_else(|_| Vec::new(), |()| bytes)
}

/// The descriptors of an array of pollfd: an int and two shorts each.
fn polled(process: &str, at: u64, count: u64) -> Vec<u64> {
    let bytes = memory(process, at, MOST_POLLED.min(count as usize) * 8);
    let entry = |entry: &[u8]| i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
    bytes.chunks_exact(8).filter_map(|bytes| u64::try_from(entry(bytes)).ok()).collect()
}

/// The descriptors of an fd_set.
fn selected(process: &str, at: u64, count: u64) -> Vec<u64> {
    let bytes = memory(process, at, MOST_POLLED.min(count as usize).div_ceil(8));
    let bits = (0u64..).zip(bytes).flat_map(|(index, byte)| {
        (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| index * 8 + bit)
    });
    bits.collect()
}

/// The descriptors that an epoll watches.
fn watched(process: &str, epoll: u64) -> Vec<u64> {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{epoll}")).unwrap_or_default();
    let target = |line: &str| line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?.parse().ok();
    info.lines().filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A program in a session of its own.
    fn start(script: &str) -> Child {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    /// The state settles: it is looked at again and again, as the agent does.
    fn becomes_waiting(child: &mut Child) -> bool {
        let pipe = child.stdin.take().unwrap();
        let answer = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            waits(child.id() as i32, pipe.as_fd())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        answer
    }

    #[test]
    fn reading_in_any_way_is_waiting() {
        let python = |code: &str| format!("exec python3 -c 'import sys, select, os\n{code}'");
        for script in [
            "cat".to_owned(),
            "read line".into(),
            python("select.select([0], [], [])"),
            python("p = select.poll(); p.register(0); p.poll()"),
            python("e = select.epoll(); e.register(0); e.poll()"),
            python("os.readv(0, [bytearray(9)])"),
        ] {
            assert!(becomes_waiting(&mut start(&script)), "{script}");
        }
    }

    #[test]
    fn work_and_other_sleep_are_not_waiting() {
        for script in ["sleep 100", "cat & while :; do :; done"] {
            assert!(!becomes_waiting(&mut start(script)), "{script}");
        }
    }
}
