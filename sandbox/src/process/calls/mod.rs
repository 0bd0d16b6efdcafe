//! The system calls: one table, one file per family.
//!
//! A handler gets the whole [`Process`] and the six arguments as the program passed them. Every one of them is
//! hostile: an address is only ever used through [`AddressSpace`](super::memory::AddressSpace), which checks it,
//! a descriptor through the file table, a length against what it is a length of.
//!
//! A handler must be quick or say [`Outcome::Block`]: it runs on the thread of the vCPU. A blocked call is made
//! again from the start, with the same arguments, once what it waits for may have come (see [`Wait`]).

mod attributes;
mod children;
pub(crate) mod credentials;
mod dirs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod driver;
mod fcntl;
mod futex;
mod guest;
pub(crate) mod identity;
pub(crate) mod limits;
mod memory;
mod names;
mod open;
mod pipes;
mod poll;
mod random;
mod rw;
mod sched;
mod signals;
mod sockets;
pub(super) mod stat;
mod threads;
mod time;

use rustix::io::Errno;

use super::Process;
use super::wait::Wait;

pub(crate) use names::name;

/// The arguments: rdi, rsi, rdx, r10, r8, r9.
pub(crate) type Args = [u64; 6];

/// Serves one call.
pub(crate) type Handler = fn(&mut Process, Args) -> Result<Outcome, Errno>;

/// What a call led to. An `Err(errno)` from a handler is the program's `-1`.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its value, into rax.
    Value(u64),
    /// The thread waits; the call is made again afterwards.
    Block(Wait),
    /// The whole program ends with this code.
    Exit(i32),
    /// The calling thread ends; the program too if it was the last one.
    ExitThread(i32),
    /// `rt_sigreturn`: the thread goes on from what the frame on its stack says; nothing is written to rax.
    SignalReturn,
    /// `sched_yield`: others go first.
    Yield,
}

impl Outcome {
    /// A call that succeeded without a value.
    pub(crate) const ZERO: Self = Self::Value(0);
}

/// One line of a family's list.
pub(crate) type Entry = (libc::c_long, Handler);

/// Every family. A new one is a file and a line here.
const FAMILIES: &[&[Entry]] = &[
    memory::CALLS,
    identity::CALLS,
    children::CALLS,
    credentials::CALLS,
    limits::CALLS,
    sched::CALLS,
    time::CALLS,
    signals::CALLS,
    futex::CALLS,
    threads::CALLS,
    attributes::CALLS,
    dirs::CALLS,
    fcntl::CALLS,
    open::CALLS,
    pipes::CALLS,
    poll::CALLS,
    random::CALLS,
    rw::CALLS,
    sockets::CALLS,
    stat::CALLS,
];

/// No call has this number or a higher one.
pub(crate) const NUMBERS: usize = 512;

static TABLE: [Option<Handler>; NUMBERS] = build();

const fn build() -> [Option<Handler>; NUMBERS] {
    let mut table = [None; NUMBERS];
    let mut family = 0;
    while family < FAMILIES.len() {
        let entries = FAMILIES[family];
        let mut i = 0;
        while i < entries.len() {
            let number = entries[i].0 as usize;
            assert!(table[number].is_none(), "two handlers for one call");
            table[number] = Some(entries[i].1);
            i += 1;
        }
        family += 1;
    }
    table
}

/// The handler of call `number`; `None` where the program gets `ENOSYS`.
pub(crate) fn handler(number: u64) -> Option<Handler> {
    usize::try_from(number).ok().and_then(|number| TABLE.get(number).copied().flatten())
}

#[cfg(test)]
mod tests;
