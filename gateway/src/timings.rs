//! Where an invocation's time went, on the gateway's clock.
//!
//! ```text
//! arrival ──queued──> sandbox to be used or made ──start──> input handed over ──run──> program's end
//!    │                                                   │            └─first_byte─> first output
//!    ├──ready────────────────────────────────────────────┘
//!    ├──resumed──────────────────────────────────────────> the guest runs
//!    ├──first_byte───────────────────────────────────────────────────> first output
//!    └──answered─────────────────────────────────────────────────────────────────> reply given to the connection
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
    /// The same as moments.
    pub clocks: Clocks,
}

/// Moments of one invocation, each counted from its arrival; none is before the one above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// A clean sandbox was there.
    pub ready: Duration,
    /// The guest ran with the input at hand; `None` where the gateway ended the run.
    pub resumed: Option<Duration>,
    /// The first byte of output; `None` when there was none.
    pub first_byte: Option<Duration>,
    /// The reply was complete and given to the connection.
    pub answered: Duration,
}
