//! Measurements of novum, each beside a floor that is measured in the same run.
//!
//! ```text
//! main.rs     command line
//! gateway.rs  the gateway over loopback: rounds over every target and number of callers
//!   target.rs   the servers under load: novum itself, and the floors
//!   floors/     what the gateway could be at best: bare tonic; bare tonic and a bare wasmtime instance
//!   h2load.rs   the load generator (Debian nghttp2-client; not ours)
//! host.rs     what the numbers were taken on
//! report.rs   raw JSON, the Markdown table
//! chart.rs    the SVG chart
//! ```
//!
//! docs/benchmarks.md says how to run them and what is measured.

pub mod chart;
pub mod floors;
pub mod gateway;
pub mod h2load;
pub mod host;
pub mod report;
pub mod target;
