//! Who waits on which futex word (futex(2)).
//!
//! The threads of a program share one vCPU, so a handler's look at the word and its place in the queue cannot be
//! interrupted by the program: no lock is needed. A word is known by its virtual address; two mappings of one shared page
//! are two words (a program of several processes would mind, and there is none here).

use std::collections::VecDeque;

use novum_snapshot::State;
use serde::{Deserialize, Serialize};

/// `FUTEX_BITSET_MATCH_ANY`.
pub(crate) const ANY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiter {
    thread: u32,
    address: u64,
    bits: u32,
}

/// The queues, oldest waiter first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Futexes {
    waiters: VecDeque<Waiter>,
}

impl State for Futexes {
    const KIND: &'static str = "process-futexes";
    const VERSION: u32 = 1;
}

impl Futexes {
    /// `thread` waits at `address` for a wake-up that shares a bit with `bits`.
    pub(crate) fn wait(&mut self, thread: u32, address: u64, bits: u32) {
        self.forget(thread);
        self.waiters.push_back(Waiter { thread, address, bits });
    }

    /// Whether `thread` still waits: a wake-up takes it out of the queue.
    pub(crate) fn waits(&self, thread: u32) -> bool {
        self.waiters.iter().any(|w| w.thread == thread)
    }

    /// `thread` waits no more (time limit, signal, end).
    pub(crate) fn forget(&mut self, thread: u32) {
        self.waiters.retain(|w| w.thread != thread);
    }

    /// Wakes at most `most`; the threads woken.
    pub(crate) fn wake(&mut self, address: u64, bits: u32, most: u32) -> Vec<u32> {
        let mut woken = Vec::new();
        self.waiters.retain(|w| {
            let taken = woken.len() < most as usize && w.address == address && w.bits & bits != 0;
            if taken {
                woken.push(w.thread);
            }
            !taken
        });
        woken
    }

    /// Wakes at most `wake` at `from` and lets at most `requeue` of the others wait at `to`; the threads woken and how
    /// many were moved.
    pub(crate) fn requeue(&mut self, from: u64, to: u64, wake: u32, requeue: u32) -> (Vec<u32>, u32) {
        let woken = self.wake(from, ANY, wake);
        let mut moved = VecDeque::new();
        self.waiters.retain_mut(|w| {
            let taken = moved.len() < requeue as usize && w.address == from && from != to;
            if taken {
                moved.push_back(Waiter { address: to, ..*w });
            }
            !taken
        });
        let count = moved.len() as u32;
        self.waiters.append(&mut moved);
        (woken, count)
    }
}

/// `FUTEX_WAKE_OP`'s packed argument: what is done to the second word, and when its waiters are woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WakeOp {
    operation: u32,
    comparison: u32,
    operand: i32,
    compared: i32,
}

impl WakeOp {
    /// Decodes `val3`; `None` for an operation or comparison that does not exist.
    pub(crate) fn decode(packed: u32) -> Option<Self> {
        let signed = |value: u32| (((value & 0xfff) << 20) as i32) >> 20;
        let (operation, comparison) = (packed >> 28, packed >> 24 & 0xf);
        let mut operand = signed(packed >> 12);
        if operation & 8 != 0 {
            operand = 1i32.wrapping_shl(operand as u32 & 31);
        }
        let known = operation & 7 <= 4 && comparison <= 5;
        known.then_some(Self { operation: operation & 7, comparison, operand, compared: signed(packed) })
    }

    /// The word's new value.
    pub(crate) fn apply(&self, old: u32) -> u32 {
        let operand = self.operand as u32;
        match self.operation {
            0 => operand,
            1 => old.wrapping_add(operand),
            2 => old | operand,
            3 => old & !operand,
            _ => old ^ operand,
        }
    }

    /// Whether the old value lets the second word's waiters wake.
    pub(crate) fn wakes(&self, old: u32) -> bool {
        let old = old as i32;
        match self.comparison {
            0 => old == self.compared,
            1 => old != self.compared,
            2 => old < self.compared,
            3 => old <= self.compared,
            4 => old > self.compared,
            _ => old >= self.compared,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_waiter_is_woken_first() {
        let mut futexes = Futexes::default();
        (1..=3).for_each(|thread| futexes.wait(thread, 0x1000, ANY));
        futexes.wait(4, 0x2000, ANY);
        assert_eq!(futexes.wake(0x1000, ANY, 2), [1, 2]);
        assert!(futexes.waits(3) && futexes.waits(4) && !futexes.waits(1));
        assert_eq!(futexes.wake(0x1000, ANY, u32::MAX), [3]);
        assert!(futexes.wake(0x1000, ANY, u32::MAX).is_empty());
    }

    #[test]
    fn bits_choose_among_waiters() {
        let mut futexes = Futexes::default();
        futexes.wait(1, 8, 0b01);
        futexes.wait(2, 8, 0b10);
        assert_eq!(futexes.wake(8, 0b10, 5), [2]);
    }

    #[test]
    fn requeued_waiters_wait_at_the_other_word() {
        let mut futexes = Futexes::default();
        (1..=4).for_each(|thread| futexes.wait(thread, 8, ANY));
        assert_eq!(futexes.requeue(8, 16, 1, 2), (vec![1], 2));
        assert_eq!(futexes.wake(8, ANY, 9), [4]);
        assert_eq!(futexes.wake(16, ANY, 9), [2, 3]);
    }

    #[test]
    fn wake_op_is_decoded_as_the_header_packs_it() {
        // FUTEX_OP(FUTEX_OP_SET, 0, FUTEX_OP_CMP_GT, 1), which old glibc used for condition variables.
        let op = WakeOp::decode(4 << 24 | 1).unwrap();
        assert_eq!(op.apply(7), 0);
        assert!(op.wakes(2) && !op.wakes(1));
        let negative = WakeOp::decode(1 << 28 | 0xfff << 12).unwrap();
        assert_eq!(negative.apply(5), 4);
        assert_eq!(WakeOp::decode(7 << 28), None);
    }

    proptest! {
        #[test]
        fn no_packed_operation_panics(packed: u32, old: u32) {
            if let Some(op) = WakeOp::decode(packed) {
                op.apply(old);
                op.wakes(old);
            }
        }
    }
}
