//! Behaviour of the gateway and its command line, seen from outside: one binary, one folder.

mod manifest;
mod snapshot;
