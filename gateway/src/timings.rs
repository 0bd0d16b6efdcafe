//! Where an invocation's time went, on the gateway's clock.
//!
//! ```text
//! arrival ──queued──> sandbox to be used or made ──start──> input handed over ──run──> program's end
//!                                                                    └─first_byte─> first output
//! ```

use std::time::Duration;

/// The parts of one invocation's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival until a sandbox was there to be used or made.
    pub queued: Duration,
    /// Making a sandbox ready; near 0 when warm.
    pub start: Duration,
    /// From handing over the input to the program's end.
    pub run: Duration,
    /// From handing over the input to the first byte of output; `None` when there was none.
    pub first_byte: Option<Duration>,
    /// A sandbox was made for this invocation.
    pub cold: bool,
}
