//! The novum gateway: functions nobody has to trust, over gRPC and HTTP.

pub mod config;
pub mod core;
pub mod front;
pub mod listen;
pub mod metrics;
pub mod server;
pub mod worker;
