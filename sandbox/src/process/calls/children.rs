//! Children and their groups, of which a program here has none: wait4(2), waitid(2), setpgid(2), setsid(2).

use rustix::io::Errno;

use super::identity::PID;
use super::{Args, Entry, Outcome};
use crate::process::Process;

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_wait4, wait4),
    (libc::SYS_waitid, waitid),
    (libc::SYS_setpgid, setpgid),
    // Whoever leads a group cannot begin a session.
    (libc::SYS_setsid, |_, _| Err(Errno::PERM)),
];

/// Which children, whatever they are called: threads', clones' or all.
const KINDS: u32 = (libc::__WNOTHREAD | libc::__WCLONE | libc::__WALL) as u32;

fn wait4(_: &mut Process, [pid, _, options, ..]: Args) -> Result<Outcome, Errno> {
    const KNOWN: u32 = (libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) as u32 | KINDS;
    if options as u32 & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    // The one number that has no opposite.
    if pid as i32 == i32::MIN { Err(Errno::SRCH) } else { Err(Errno::CHILD) }
}

fn waitid(process: &mut Process, [kind, id, _, options, ..]: Args) -> Result<Outcome, Errno> {
    const EVENTS: u32 = (libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED) as u32;
    const KNOWN: u32 = (libc::WNOHANG | libc::WNOWAIT) as u32 | EVENTS | KINDS;
    let options = options as u32;
    if options & !KNOWN != 0 || options & EVENTS == 0 {
        return Err(Errno::INVAL);
    }
    match kind as u32 {
        libc::P_ALL => Err(Errno::CHILD),
        libc::P_PID if id as i32 <= 0 => Err(Errno::INVAL),
        libc::P_PGID if (id as i32) < 0 => Err(Errno::INVAL),
        libc::P_PID | libc::P_PGID => Err(Errno::CHILD),
        libc::P_PIDFD => {
            process.files.status(id as i32)?;
            Err(Errno::INVAL)
        }
        _ => Err(Errno::INVAL),
    }
}

/// The program leads its session, whose group does not change.
fn setpgid(_: &mut Process, [pid, group, ..]: Args) -> Result<Outcome, Errno> {
    match (pid as i32, group as i32) {
        (_, ..0) => Err(Errno::INVAL),
        (0, _) => Err(Errno::PERM),
        (pid, _) if pid as u64 == PID => Err(Errno::PERM),
        _ => Err(Errno::SRCH),
    }
}
