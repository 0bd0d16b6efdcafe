//! Behaviour of the gateway and its command line, seen from outside: one binary, one folder.

mod api;
mod crashes;
mod deploys;
mod failures;
mod harness;
mod lifecycle;
mod logs;
mod manifest;
mod plain_http;
mod scale;
mod snapshot;
