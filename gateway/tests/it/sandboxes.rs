//! Sandboxes that live between calls, on the process engine: what a client and a command line see of them.

mod calls;
mod command_line;
mod files;
mod life;
mod limits;
