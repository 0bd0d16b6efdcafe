//! How often a run left the VM, taken from the event that the engine writes at a run's end.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Exits and system calls of the last run.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    exits: AtomicU64,
    calls: AtomicU64,
}

/// Exits and system calls.
pub(crate) type Counts = (u64, u64);

impl Counters {
    /// Before a run.
    pub(crate) fn clear(&self) {
        self.exits.store(0, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
    }

    /// After a run.
    pub(crate) fn take(&self) -> Counts {
        (self.exits.load(Ordering::Relaxed), self.calls.load(Ordering::Relaxed))
    }
}

static COUNTERS: Counters = Counters { exits: AtomicU64::new(0), calls: AtomicU64::new(0) };

/// Listens from now on.
pub(crate) fn install() -> &'static Counters {
    // Another subscriber cannot be there: this is the program's only one.
    let _ = tracing::subscriber::set_global_default(Listener);
    &COUNTERS
}

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "novum_sandbox::process::sandbox"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Numbers);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Numbers;

impl Visit for Numbers {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "exits" => COUNTERS.exits.store(value, Ordering::Relaxed),
            "calls" => COUNTERS.calls.store(value, Ordering::Relaxed),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
