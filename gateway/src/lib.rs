//! The novum gateway: functions nobody has to trust, over gRPC and HTTP.

pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod dev;
pub mod doctor;
pub mod front;
pub mod listen;
pub mod manifest;
pub mod metrics;
pub mod pack;
pub mod server;
pub mod units;
pub mod worker;
