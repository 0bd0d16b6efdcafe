//! Behaviour of the gateway and its command line, seen from outside: one binary, one folder.

mod api;
mod bench;
mod budget;
mod cli;
mod crashes;
mod deploys;
mod dev;
mod examples;
mod failures;
mod harness;
mod kept;
mod lifecycle;
mod logs;
mod manifest;
mod plain_http;
mod program;
mod python_client;
mod sandboxes;
mod scale;
mod skip;
mod snapshot;
