//! Which paths a function's program looks at while it starts, learnt from its first run.
//!
//! A program's start is the same every time: after the same calls come the same ones. The run at deployment, which has no request,
//! writes down after which calls it asked for the attributes of which paths ([`Foresight::learn`]); later starts find them
//! ([`Foresight::after`]) and have the attributes as they are then, several at an exit. Nothing of an invocation is ever
//! learnt: the program could read it where another one is served.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Most paths that are kept.
const MOST: usize = 4096;
/// Calls after which a run is no start any more.
const CALLS: u32 = 16_384;

/// See the module. Shared by all sandboxes of a function.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    known: AtomicBool,
    chains: Mutex<Chains>,
}

#[derive(Debug, Default)]
struct Chains {
    paths: usize,
    after: HashMap<u64, Vec<Box<[u8]>>>,
}

/// How a run has come to where it is: calls and results that are the same in every start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Course {
    hash: u64,
    calls: u32,
}

impl Course {
    /// A call other than a look at a path was served; `mark`: a number that tells it from others.
    pub(crate) fn pass(&mut self, number: u64, mark: u64) {
        self.calls = self.calls.saturating_add(1);
        // FNV-1a, word by word.
        for word in [number, mark] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
    }

    fn is_start(self) -> bool {
        self.calls < CALLS
    }
}

impl Foresight {
    /// The first run is over: from now on nothing is learnt.
    pub(crate) fn finish(&self) {
        self.known.store(true, Ordering::Release);
    }

    /// Whether the first run is over.
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    /// The program, in its first run, looks at `path` here.
    pub(crate) fn learn(&self, course: Course, path: &[u8], most: usize) {
        if self.is_known() || !course.is_start() {
            return;
        }
        let mut chains = self.chains.lock();
        if chains.paths >= MOST {
            return;
        }
        let chain = chains.after.entry(course.hash).or_default();
        if chain.len() < most && !chain.iter().any(|known| **known == *path) {
            chain.push(path.into());
            chains.paths += 1;
        }
    }

    /// What the program will look at next.
    pub(crate) fn after(&self, course: Course) -> Vec<Box<[u8]>> {
        if !self.is_known() || !course.is_start() {
            return Vec::new();
        }
        self.chains.lock().after.get(&course.hash).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_course_finds_what_the_first_run_looked_at() {
        let foresight = Foresight::default();
        let mut course = Course::default();
        course.pass(257, 3);
        for path in [b"/a", b"/b", b"/a"] {
            foresight.learn(course, path, 8);
        }
        assert!(foresight.after(course).is_empty(), "the first run is still going on");
        foresight.finish();
        foresight.learn(course, b"/c", 8);
        let found = foresight.after(course);
        assert_eq!(found.iter().map(|path| &path[..]).collect::<Vec<_>>(), [b"/a", b"/b"]);
        course.pass(3, 0);
        assert!(foresight.after(course).is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let foresight = Foresight::default();
        let mut course = Course::default();
        for n in 0..2 * MOST as u64 {
            course.pass(n, 0);
            foresight.learn(course, b"/a", 8);
        }
        assert_eq!(foresight.chains.lock().paths, MOST);
    }
}
