//! From a signal that was sent to a handler that runs.
//!
//! ```text
//! post ──> pending (thread or program) ──take_signal──> ignored: dropped
//!                                                   ├─> handler: a frame on its stack, registers of its start
//!                                                   └─> default: the program ends
//! ```
//! A signal is delivered to the thread that has the CPU, before it goes back to the program. A blocked thread
//! with a signal to take is woken: its call is made again, sees [`Process::interrupted`], and ends.

use rustix::io::Errno;

use super::frame::{self, FRAME_BYTES};
use super::{
    Action, AltStack, DEFAULT, Detail, IGNORE, Info, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART,
    SI_KERNEL, SigSet, Signal,
};
use crate::kvm::features::StateLayout;
use crate::kvm::vcpu::UserState;
use crate::process::Process;
use crate::process::thread::Thread;

/// What became of a signal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The state is now that of the handler's start.
    Handler,
    /// The program ends by it.
    Deadly(Info),
}

impl Process {
    /// Sends a signal to `thread`, or to the program. `false`: the queue is full.
    pub(crate) fn post(&mut self, info: Info, thread: Option<u32>) -> bool {
        let ignored = self.actions.ignores(info.signal);
        let blocked = |thread: &Thread| thread.signals.blocked.contains(info.signal);
        let taken = match thread {
            Some(id) => match self.threads.get_mut(id) {
                Some(thread) if ignored && !blocked(thread) => true,
                Some(thread) => thread.signals.pending.push(info),
                None => true,
            },
            None if ignored && !self.threads.iter().any(blocked) => true,
            None => self.pending.push(info),
        };
        self.posted = true;
        // Who takes signals by a call waits for a change.
        self.changed();
        taken
    }

    /// Whether a signal was sent since the last time this was asked.
    pub(crate) fn take_posted(&mut self) -> bool {
        std::mem::take(&mut self.posted)
    }

    /// Whether the current thread has anything to look at before it runs on.
    pub(crate) fn may_have_signal(&self) -> bool {
        let own = &self.threads.current().signals;
        !self.pending.is_empty() || !own.pending.is_empty() || own.saved.is_some()
    }

    /// Whether `thread` would take a signal now.
    pub(crate) fn has_signal(&self, thread: &Thread) -> bool {
        let waiting = thread.signals.pending.set().union(self.pending.set());
        let open = waiting.minus(thread.signals.blocked);
        open.0 != 0 && (1..=64).filter_map(Signal::new).any(|s| open.contains(s) && !self.actions.ignores(s))
    }

    /// Whether the current thread's call was interrupted by a signal and must end.
    pub(crate) fn interrupted(&self) -> bool {
        self.resumed().is_some() && self.has_signal(self.threads.current())
    }

    /// Takes the first waiting signal that `wanted` accepts, blocked or not: of the current thread, else of the program.
    pub(crate) fn take_from(&mut self, wanted: impl Fn(Signal) -> bool) -> Option<Info> {
        let own = self.threads.current_mut().signals.pending.take(&wanted);
        own.or_else(|| self.pending.take(&wanted))
    }

    /// Waiting signals that are ignored from now on are forgotten.
    pub(crate) fn discard_ignored(&mut self, signal: Signal) {
        if self.actions.ignores(signal) {
            self.pending.discard(signal);
            self.threads.iter_mut().for_each(|thread| thread.signals.pending.discard(signal));
        }
    }

    /// Blocks `set` until the current call has ended and a handler, if there is one, has returned.
    pub(crate) fn swap_mask(&mut self, set: SigSet) {
        let signals = &mut self.threads.current_mut().signals;
        signals.saved = Some(signals.blocked);
        signals.blocked = set.without_unblockable();
    }

    /// Whether the interrupted call `number` is made again after the handler of the signal that interrupted it.
    pub(crate) fn restarts(&self, number: u64) -> bool {
        // signal(7): these never restart.
        const NEVER: [i64; 13] = [
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_pause,
            libc::SYS_rt_sigsuspend,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_select,
            libc::SYS_pselect6,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_rt_sigreturn,
        ];
        let signals = &self.threads.current().signals;
        let waiting = signals.pending.set().union(self.pending.set()).minus(signals.blocked);
        let first =
            (1..=64).filter_map(Signal::new).find(|s| waiting.contains(*s) && !self.actions.ignores(*s));
        let restart = first.is_some_and(|signal| self.actions.get(signal).flags & SA_RESTART != 0);
        restart && !NEVER.contains(&(number as i64))
    }

    /// Delivers one signal to the current thread, whose state is `state`. `None`: there was none to deliver.
    pub(crate) fn deliver(&mut self, state: &mut UserState, layout: &StateLayout) -> Option<Delivery> {
        let blocked = self.threads.current().signals.blocked;
        while let Some(info) = self.take_from(|signal| !blocked.contains(signal)) {
            if self.actions.ignores(info.signal) {
                continue;
            }
            return Some(self.handle(state, layout, info, (0, 0, 0)));
        }
        // The mask of a call like sigsuspend ends with the call.
        let signals = &mut self.threads.current_mut().signals;
        if let Some(mask) = signals.saved.take() {
            signals.blocked = mask;
        }
        None
    }

    /// Delivers a fault of the current thread: if it is blocked or ignored, the program ends by it.
    pub(crate) fn deliver_fault(
        &mut self,
        state: &mut UserState,
        layout: &StateLayout,
        info: Info,
        exception: (u64, u64, u64),
    ) -> Delivery {
        let blocked = self.threads.current().signals.blocked.contains(info.signal);
        if blocked || self.actions.get(info.signal).handler == IGNORE {
            return Delivery::Deadly(info);
        }
        self.handle(state, layout, info, exception)
    }

    fn handle(
        &mut self,
        state: &mut UserState,
        layout: &StateLayout,
        info: Info,
        exception: (u64, u64, u64),
    ) -> Delivery {
        let action = self.actions.get(info.signal);
        if action.handler == DEFAULT {
            return Delivery::Deadly(info);
        }
        match self.enter_handler(state, layout, &info, action, exception) {
            Ok(()) => Delivery::Handler,
            // No room for the frame: Linux ends the program by SIGSEGV.
            Err(address) => {
                let detail = Detail::Fault { address };
                Delivery::Deadly(Info { signal: Signal::SEGV, code: SI_KERNEL, detail })
            }
        }
    }

    fn enter_handler(
        &mut self,
        state: &mut UserState,
        layout: &StateLayout,
        info: &Info,
        action: Action,
        exception: (u64, u64, u64),
    ) -> Result<(), u64> {
        let signals = &self.threads.current().signals;
        let stack = signals.stack;
        let on_it = stack.holds(state.regs.rsp) && stack.flags & AltStack::AUTODISARM == 0;
        let use_alternate = action.flags & SA_ONSTACK != 0 && stack.flags & AltStack::DISABLED == 0 && !on_it;
        let cause = frame::Cause {
            info,
            mask: signals.saved.unwrap_or(signals.blocked),
            handler: action.handler,
            restorer: action.restorer,
            stack: AltStack { flags: if on_it { stack.flags | AltStack::ON } else { stack.flags }, ..stack },
            use_alternate,
            exception,
        };
        let area = state.xsave.as_ref().map(|area| area.bytes(layout.bytes)).unwrap_or_default();
        let frame = frame::build(&state.regs, &area, layout.features, &cause).ok_or(0u64)?;
        self.memory.write(frame.address, &frame.bytes).map_err(|_| frame.address)?;
        state.regs = frame.regs;
        self.note_handler(info.signal, action, stack);
        Ok(())
    }

    fn note_handler(&mut self, signal: Signal, action: Action, stack: AltStack) {
        if action.flags & SA_RESETHAND != 0 {
            self.set_action(signal, Action::default());
        }
        let signals = &mut self.threads.current_mut().signals;
        if stack.flags & AltStack::AUTODISARM != 0 {
            signals.stack = AltStack::default();
        }
        signals.saved = None;
        signals.blocked = signals.blocked.union(action.mask);
        if action.flags & SA_NODEFER == 0 {
            signals.blocked = signals.blocked.with(signal).without_unblockable();
        }
    }

    /// `rt_sigreturn`: puts back what the frame at the stack pointer says.
    pub(crate) fn sigreturn(&mut self, state: &mut UserState, layout: &StateLayout) -> Result<(), Errno> {
        let bytes: [u8; FRAME_BYTES - 8] = self.memory.get(state.regs.rsp)?;
        let back = frame::parse(&bytes);
        if back.state != 0 {
            let mut area = self.memory.read_vec(back.state, layout.bytes)?;
            if !frame::sanitize_state(&mut area, layout.features, layout.mxcsr_mask) {
                return Err(Errno::FAULT);
            }
            if let Some(xsave) = &mut state.xsave {
                xsave.set_bytes(&area);
            }
        }
        state.regs = back.regs;
        let signals = &mut self.threads.current_mut().signals;
        signals.blocked = back.mask;
        let stack = back.stack;
        if stack.flags & AltStack::ON == 0 {
            signals.stack = stack;
        }
        self.posted = true;
        Ok(())
    }
}
