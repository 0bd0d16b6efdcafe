//! Threads: clone(2), clone3(2). New processes: `ENOSYS`, counted, so that the user is told.

use rustix::io::Errno;

use super::{Args, Entry, Outcome};
use crate::kvm::layout::USER_END;
use crate::process::Process;
use crate::process::thread::Thread;

pub(super) const CALLS: &[Entry] = &[(libc::SYS_clone, clone), (libc::SYS_clone3, clone3)];

/// Most threads of a program.
const MOST: usize = 512;

/// What makes a thread of this program rather than a process: memory, handlers, and the thread group shared.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
/// Namespaces, tracing and the like.
const UNKNOWN: u64 = !((libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_DETACHED) as u64
    & 0xffff_ffff);

struct Request {
    flags: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

fn clone(
    process: &mut Process,
    [flags, stack, parent_tid, child_tid, tls, _]: Args,
) -> Result<Outcome, Errno> {
    // The low byte is the signal that a process's parent gets.
    start(process, libc::SYS_clone, Request { flags: flags & !0xff, stack, parent_tid, child_tid, tls })
}

/// `struct clone_args`: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, ...
fn clone3(process: &mut Process, [address, size, ..]: Args) -> Result<Outcome, Errno> {
    const FIRST_VERSION: u64 = 64;
    const WORDS: usize = 8;
    if size < FIRST_VERSION {
        return Err(Errno::INVAL);
    }
    if size > 4096 {
        return Err(Errno::TOOBIG);
    }
    let words: [u64; WORDS] = process.memory.get(address)?;
    let rest = process.memory.read_vec(address + FIRST_VERSION, (size - FIRST_VERSION) as usize)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Errno::INVAL);
    }
    let [flags, _, child_tid, parent_tid, _, stack, stack_size, tls] = words;
    let stack = stack.checked_add(stack_size).ok_or(Errno::INVAL)?;
    start(process, libc::SYS_clone3, Request { flags, stack, parent_tid, child_tid, tls })
}

fn start(process: &mut Process, call: i64, request: Request) -> Result<Outcome, Errno> {
    let Request { flags, stack, parent_tid, child_tid, tls } = request;
    let has = |flag: i32| flags & flag as u64 != 0;
    if flags & THREAD != THREAD {
        // A second process: there is only one here.
        process.count_unserved(call as u64);
        return Err(Errno::NOSYS);
    }
    if flags & UNKNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if process.threads.len() >= MOST {
        return Err(Errno::AGAIN);
    }
    let id = process.threads.next_id();
    let current = process.threads.current();
    let mut thread = Thread::new(id, current.state.clone());
    thread.signals.blocked = current.signals.blocked;
    thread.name = current.name;
    thread.policy = current.policy;
    thread.state.regs.rax = 0;
    if stack != 0 {
        thread.state.regs.rsp = stack;
    }
    if has(libc::CLONE_SETTLS) {
        if tls >= USER_END {
            return Err(Errno::PERM);
        }
        thread.state.fs_base = tls;
    }
    if has(libc::CLONE_CHILD_CLEARTID) {
        thread.clear_child_tid = child_tid;
    }
    if has(libc::CLONE_PARENT_SETTID) {
        process.memory.put(parent_tid, &id)?;
    }
    if has(libc::CLONE_CHILD_SETTID) {
        process.memory.put(child_tid, &id)?;
    }
    process.threads.add(thread);
    Ok(Outcome::Value(u64::from(id)))
}
