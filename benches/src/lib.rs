//! Measurements of novum, each beside a floor that is measured in the same run.
//!
//! ```text
//! main.rs     command line
//! gateway.rs  the gateway over loopback: rounds over every target and number of callers
//!   target.rs   the servers under load: novum itself, and the floors
//!   floors/     what the gateway could be at best: bare tonic; bare tonic and a bare wasmtime instance
//!   h2load.rs   the load generator (Debian nghttp2-client; not ours)
//!   report.rs   raw JSON, the Markdown table
//!   chart.rs    the SVG chart
//! cold_start/ cold starts, restores and resets beside native processes; memory of many sandboxes
//! process/    the process engine beside native processes and beside bare KVM
//! host.rs     what the numbers were taken on
//! ```
//!
//! docs/benchmarks.md says how to run them and what is measured.

#[cfg(feature = "gateway")]
pub mod chart;
#[cfg(feature = "gateway")]
pub mod cold_start;
#[cfg(feature = "gateway")]
pub mod floors;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod h2load;
pub mod host;
pub mod process;
#[cfg(feature = "gateway")]
pub mod report;
#[cfg(feature = "gateway")]
pub mod target;
