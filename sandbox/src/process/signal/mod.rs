//! Signals: which exist, what a program wants done with them, which wait to be delivered.
//!
//! [`Actions`] and the process's [`Pending`] belong to the whole program, [`ThreadSignals`] to a thread. [`frame`]
//! lays out what a handler sees. All of it is plain data, so that a snapshot can hold it. Source: signal(7),
//! sigaction(2), Linux include/uapi/asm-generic/siginfo.h.

mod deliver;
pub(crate) mod frame;
mod interrupt;

use std::collections::VecDeque;

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

pub(crate) use deliver::Delivery;

/// A signal's number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8")]
pub(crate) struct Signal(u8);

impl TryFrom<u8> for Signal {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        Self::new(number.into()).ok_or("signals have the numbers 1 to 64")
    }
}

impl Signal {
    pub(crate) const ILL: Self = Self(4);
    pub(crate) const TRAP: Self = Self(5);
    pub(crate) const BUS: Self = Self(7);
    pub(crate) const FPE: Self = Self(8);
    pub(crate) const KILL: Self = Self(9);
    pub(crate) const SEGV: Self = Self(11);
    pub(crate) const PIPE: Self = Self(13);
    pub(crate) const ALRM: Self = Self(14);
    pub(crate) const XFSZ: Self = Self(25);
    pub(crate) const STOP: Self = Self(19);
    const FIRST_REAL_TIME: u8 = 32;

    pub(crate) fn new(number: u64) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number as u8))
    }

    pub(crate) fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// `SIGSEGV`, `SIGRT3`, ...
    pub(crate) fn name(self) -> String {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
            "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
            "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
        ];
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => format!("SIG{name}"),
            None => format!("SIGRT{}", self.0 - Self::FIRST_REAL_TIME),
        }
    }

    /// What happens where the program has not said anything.
    pub(crate) fn default_fate(self) -> Fate {
        match self.0 {
            17 | 18 | 23 | 28 => Fate::Ignore, // CHLD, CONT, URG, WINCH
            19..=22 => Fate::Ignore,           // stopping: there is no one who could continue it
            _ => Fate::Terminate,
        }
    }

    fn bit(self) -> u64 {
        1 << (self.0 - 1)
    }
}

/// The default action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Ignore,
    Terminate,
}

/// A `sigset_t` of the kernel: bit n-1 is signal n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigSet(pub(crate) u64);

impl SigSet {
    pub(crate) fn contains(self, signal: Signal) -> bool {
        self.0 & signal.bit() != 0
    }

    pub(crate) fn with(self, signal: Signal) -> Self {
        Self(self.0 | signal.bit())
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// KILL and STOP cannot be blocked.
    pub(crate) fn without_unblockable(self) -> Self {
        Self(self.0 & !(Signal::KILL.bit() | Signal::STOP.bit()))
    }
}

/// The part of `siginfo_t` that depends on the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Detail {
    /// An exception at or about this address.
    Fault { address: u64 },
    /// `kill`, `tgkill`: the sender.
    Sent { pid: u32 },
    /// `rt_sigqueueinfo`: the sender and its value.
    Queued { pid: u32, value: u64 },
    /// A timer: its id, overruns and value.
    Timer { id: i32, overrun: i32, value: u64 },
}

/// `siginfo_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) signal: Signal,
    /// `si_code`.
    pub(crate) code: i32,
    pub(crate) detail: Detail,
}

/// `SI_USER`.
pub(crate) const SI_USER: i32 = 0;
/// `SI_KERNEL`.
pub(crate) const SI_KERNEL: i32 = 0x80;
/// `SI_TIMER`.
pub(crate) const SI_TIMER: i32 = -2;
/// `SI_TKILL`.
pub(crate) const SI_TKILL: i32 = -6;

impl Info {
    pub(crate) const BYTES: usize = 128;

    /// As it lies in the program's memory.
    pub(crate) fn bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.signal.number().to_le_bytes());
        out[8..12].copy_from_slice(&self.code.to_le_bytes());
        match self.detail {
            Detail::Fault { address } => out[16..24].copy_from_slice(&address.to_le_bytes()),
            Detail::Sent { pid } => out[16..20].copy_from_slice(&pid.to_le_bytes()),
            Detail::Queued { pid, value } => {
                out[16..20].copy_from_slice(&pid.to_le_bytes());
                out[24..32].copy_from_slice(&value.to_le_bytes());
            }
            Detail::Timer { id, overrun, value } => {
                out[16..20].copy_from_slice(&id.to_le_bytes());
                out[20..24].copy_from_slice(&overrun.to_le_bytes());
                out[24..32].copy_from_slice(&value.to_le_bytes());
            }
        }
        out
    }
}

/// Signals that wait. A standard signal waits once, a real-time one as often as it was sent, up to a limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pending {
    queue: VecDeque<Info>,
}

impl Pending {
    /// Linux' `RLIMIT_SIGPENDING`, made small.
    const MOST: usize = 1024;

    /// Adds one; `false` where the queue is full (`EAGAIN` for the sender of a real-time signal).
    pub(crate) fn push(&mut self, info: Info) -> bool {
        let standard = info.signal.0 < Signal::FIRST_REAL_TIME;
        if standard && self.set().contains(info.signal) {
            return true;
        }
        if self.queue.len() >= Self::MOST {
            return standard;
        }
        self.queue.push_back(info);
        true
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Which signals wait.
    pub(crate) fn set(&self) -> SigSet {
        self.queue.iter().fold(SigSet::default(), |set, info| set.with(info.signal))
    }

    /// Takes the one to deliver first that `wanted` accepts: the lowest number, the oldest of it. Faults come first.
    pub(crate) fn take(&mut self, wanted: impl Fn(Signal) -> bool) -> Option<Info> {
        let fault = |info: &Info| !matches!(info.detail, Detail::Fault { .. });
        let (at, _) = self
            .queue
            .iter()
            .enumerate()
            .filter(|(_, info)| wanted(info.signal))
            .min_by_key(|(at, info)| (fault(info), info.signal, *at))?;
        self.queue.remove(at)
    }

    /// Forgets every waiting `signal`.
    pub(crate) fn discard(&mut self, signal: Signal) {
        self.queue.retain(|info| info.signal != signal);
    }
}

/// `SIG_DFL`.
pub(crate) const DEFAULT: u64 = 0;
/// `SIG_IGN`.
pub(crate) const IGNORE: u64 = 1;
pub(crate) const SA_ONSTACK: u64 = 0x0800_0000;
pub(crate) const SA_RESTART: u64 = 0x1000_0000;
pub(crate) const SA_NODEFER: u64 = 0x4000_0000;
pub(crate) const SA_RESETHAND: u64 = 0x8000_0000;

/// Flags that exist (`UAPI_SA_FLAGS`): NOCLDSTOP, NOCLDWAIT, SIGINFO, EXPOSE_TAGBITS, RESTORER and those above. Others are dropped,
/// so that a program sees what its kernel does not know.
const KNOWN_FLAGS: u64 = 7 | 0x800 | 0x0400_0000 | SA_ONSTACK | SA_RESTART | SA_NODEFER | SA_RESETHAND;

/// `struct kernel_sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: SigSet,
}

impl Action {
    pub(crate) const BYTES: usize = 32;

    pub(crate) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[i * 8 + k]));
        Self {
            handler: word(0),
            flags: word(1) & KNOWN_FLAGS,
            restorer: word(2),
            mask: SigSet(word(3)).without_unblockable(),
        }
    }

    pub(crate) fn bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        for (i, word) in [self.handler, self.flags, self.restorer, self.mask.0].iter().enumerate() {
            out[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// What the program wants done, for every signal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<Action>", try_from = "Vec<Action>")]
pub(crate) struct Actions([Action; 64]);

impl From<Actions> for Vec<Action> {
    fn from(actions: Actions) -> Self {
        actions.0.into()
    }
}

impl TryFrom<Vec<Action>> for Actions {
    type Error = &'static str;

    fn try_from(list: Vec<Action>) -> Result<Self, Self::Error> {
        list.try_into().map(Self).map_err(|_| "there are 64 signals")
    }
}

impl Default for Actions {
    fn default() -> Self {
        Self([Action::default(); 64])
    }
}

impl Actions {
    pub(crate) fn get(&self, signal: Signal) -> Action {
        self.0[usize::from(signal.0) - 1]
    }

    pub(crate) fn set(&mut self, signal: Signal, action: Action) {
        self.0[usize::from(signal.0) - 1] = action;
    }

    /// Neither a handler nor an end would follow.
    pub(crate) fn ignores(&self, signal: Signal) -> bool {
        match self.get(signal).handler {
            IGNORE => true,
            DEFAULT => signal.default_fate() == Fate::Ignore,
            _ => false,
        }
    }
}

/// `stack_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AltStack {
    pub(crate) pointer: u64,
    pub(crate) flags: u32,
    pub(crate) bytes: u64,
}

impl AltStack {
    /// `SS_ONSTACK`.
    pub(crate) const ON: u32 = 1;
    /// `SS_DISABLE`.
    pub(crate) const DISABLED: u32 = 2;
    /// `SS_AUTODISARM`.
    pub(crate) const AUTODISARM: u32 = 1 << 31;
    /// `MINSIGSTKSZ` of the ABI, less than any handler needs.
    pub(crate) const LEAST_BYTES: u64 = 2048;

    /// Whether `sp` stands on it.
    pub(crate) fn holds(&self, sp: u64) -> bool {
        self.flags & Self::DISABLED == 0 && sp > self.pointer && sp - self.pointer <= self.bytes
    }
}

impl Default for AltStack {
    fn default() -> Self {
        Self { pointer: 0, flags: Self::DISABLED, bytes: 0 }
    }
}

/// A thread's part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ThreadSignals {
    pub(crate) blocked: SigSet,
    /// The mask to go back to after the next delivery: set by `rt_sigsuspend`, `ppoll` and their like.
    pub(crate) saved: Option<SigSet>,
    pub(crate) stack: AltStack,
    pub(crate) pending: Pending,
}

/// What is kept of the whole program's signals in a stored image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SignalState {
    pub(crate) actions: Actions,
    pub(crate) pending: Pending,
}

impl State for SignalState {
    const KIND: &'static str = "process-signals";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64, pid: u32) -> Info {
        Info { signal: Signal::new(number).unwrap(), code: SI_USER, detail: Detail::Sent { pid } }
    }

    #[test]
    fn a_standard_signal_waits_once_and_a_real_time_one_every_time() {
        let mut pending = Pending::default();
        for pid in 1..4 {
            assert!(pending.push(sent(10, pid)) && pending.push(sent(40, pid)));
        }
        assert_eq!(pending.take(|_| true), Some(sent(10, 1)));
        for pid in 1..4 {
            assert_eq!(pending.take(|_| true), Some(sent(40, pid)));
        }
        assert_eq!(pending.take(|_| true), None);
    }

    #[test]
    fn a_flood_of_real_time_signals_is_refused() {
        let mut pending = Pending::default();
        let taken = (0..2000).filter(|_| pending.push(sent(40, 1))).count();
        assert_eq!(taken, Pending::MOST);
    }

    #[test]
    fn blocked_signals_stay() {
        let mut pending = Pending::default();
        pending.push(sent(2, 1));
        let blocked = SigSet::default().with(Signal::new(2).unwrap());
        assert_eq!(pending.take(|s| !blocked.contains(s)), None);
        assert!(pending.set().contains(Signal::new(2).unwrap()));
    }

    #[test]
    fn names_are_the_usual_ones() {
        assert_eq!(Signal::SEGV.name(), "SIGSEGV");
        assert_eq!(Signal(31).name(), "SIGSYS");
        assert_eq!(Signal::new(34).unwrap().name(), "SIGRT2");
        assert_eq!(Signal::new(0), None);
        assert_eq!(Signal::new(65), None);
    }

    #[test]
    fn an_action_is_read_back_as_it_was_written() {
        let action = Action { handler: 1 << 40, flags: SA_RESTART, restorer: 7, mask: SigSet(0x40) };
        assert_eq!(Action::from_bytes(&action.bytes()), action);
    }
}
