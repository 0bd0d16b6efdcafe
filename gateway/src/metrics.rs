//! Counters and latencies, sharded by worker so that the invocation path does not contend.

use std::cell::Cell;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Tells this thread which shard is its own.
pub fn set_shard(index: usize) {
    SHARD.set(index);
}
