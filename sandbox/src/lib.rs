//! The engine contract and novum's three engines.
//!
//! ```text
//! Function ──prepare──> Image ──start──> Sandbox ──invoke──> Reply
//!           (slow, once         (fast, per        (per request)
//!            per version)        cold start)
//! ```
//!
//! One invocation contract for every engine: the request's bytes are the program's standard input, its
//! standard output is the reply, its standard error is the log, its exit status the outcome.
//!
//! [`engines`] is the table of engines; a new engine is one folder and one row.

pub mod engine;
pub mod engines;
pub mod error;
pub mod function;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod kept;
#[cfg(feature = "vm")]
pub mod kvm;
#[cfg(feature = "vm")]
pub mod linux;
#[cfg(feature = "vm")]
pub mod process;
pub mod session;
pub mod share;
#[cfg(feature = "wasm")]
pub mod wasm;

pub use engine::{
    Engine, ExitStatus, Fault, Image, Input, Invocation, LogSink, Output, Renewal, Reply, Sandbox, Timings,
};
pub use error::{Disposition, Error};
pub use function::{
    Artifact, ArtifactFormat, EngineChoice, EngineKind, Function, FunctionName, Manifest, Pool, Share,
};
