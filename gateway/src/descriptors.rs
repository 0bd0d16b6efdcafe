//! How many files this process may have open. Every sandbox of a microVM engine is a handful of descriptors, and most
//! systems let a program have 1,024 unless it asks for more (getrlimit(2)).

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::Error;

/// What the gateway itself may still need: connections, files, the store.
const SPARE: u64 = 64;

/// Asks for as many as this process may have; what it has then, `None` being without a limit.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // Where the kernel refuses, what was allowed before is what there is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let current = getrlimit(Resource::Nofile).current;
    match current {
        Some(limit) => tracing::info!(limit, "so many files may be open at once"),
        None => tracing::info!("any number of files may be open at once"),
    }
    current
}

/// Promised, and perhaps not yet open.
static PROMISED: AtomicU64 = AtomicU64::new(0);

/// Descriptors that will be opened for something that is being made. Its drop says that they are open.
#[derive(Debug)]
pub struct Promise(u64);

impl Drop for Promise {
    fn drop(&mut self) {
        PROMISED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Room for `needed` more.
///
/// # Errors
/// [`Error::Descriptors`].
pub fn room_for(needed: u64) -> Result<Promise, Error> {
    let promised = PROMISED.fetch_add(needed, Ordering::Relaxed);
    let promise = Promise(needed);
    let (Some(limit), Some(open)) = (getrlimit(Resource::Nofile).current, open()) else { return Ok(promise) };
    let fits = open.saturating_add(promised).saturating_add(needed).saturating_add(SPARE) <= limit;
    if fits { Ok(promise) } else { Err(Error::Descriptors { needed, open, limit }) }
}

/// How many are open; `None` where /proc does not say it.
fn open() -> Option<u64> {
    // Since Linux 6.2 the directory's size is their number.
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_refused_before() {
        let before = open().unwrap();
        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close files meanwhile.
        assert!(open().unwrap() >= 20 && before > 0);
        drop(files);
        room_for(1).unwrap();
        let Some(limit) = getrlimit(Resource::Nofile).current else { return };
        assert!(matches!(room_for(limit), Err(Error::Descriptors { .. })));
        // What was refused or is there takes no room.
        assert_eq!(PROMISED.load(Ordering::Relaxed), 0);
        // As much as there is at most can be promised twice.
        let all = (limit - SPARE) / 2 + 1;
        let first = room_for(all).unwrap();
        assert!(room_for(all).is_err());
        drop(first);
    }
}
