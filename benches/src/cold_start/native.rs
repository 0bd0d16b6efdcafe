//! The same programs as processes of the host: spawned, and forked from one that is warm.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::programs::Built;
use super::sample::{Sampler, Took};

fn command(program: &Built) -> Command {
    let mut command = Command::new(&program.path);
    command.args(&program.args).env_clear().stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A new process for every request, from `posix_spawn` to its end.
pub(super) fn spawn(program: &Built) -> Sampler {
    let program = program.clone();
    Box::new(move || {
        let began = Instant::now();
        let output = command(&program).stdin(Stdio::null()).spawn()?.wait_with_output()?;
        let took = Took::whole(began.elapsed());
        ensure!(output.status.success() && !output.stdout.is_empty(), "it ended with {}", output.status);
        Ok(took)
    })
}

/// A process that forks itself for every request.
struct ForkServer {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        // It may have ended already; either way nothing is left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ForkServer {
    fn new(program: &Built) -> Result<Self> {
        let mut command = command(program);
        let mut child = command.arg("fork-server").stdin(Stdio::piped()).spawn()?;
        let requests = child.stdin.take().context("standard input is a pipe")?;
        let replies = child.stdout.take().context("standard output is a pipe")?;
        Ok(Self { child, requests, replies })
    }

    fn request(&mut self) -> Result<()> {
        self.requests.write_all(b"x")?;
        let mut reply = [0; 4096];
        let mut length = 0;
        while length == 0 || reply[length - 1] != 0 {
            let read = self.replies.read(&mut reply[length..])?;
            ensure!(read > 0, "the fork server ended");
            length += read;
        }
        ensure!(length > 1, "the fork server's child wrote nothing");
        Ok(())
    }
}

/// A fork of the warmed program for every request, up to the child's end.
pub(super) fn fork(program: &Built) -> Result<Sampler> {
    let mut server = ForkServer::new(program)?;
    Ok(Box::new(move || {
        let began = Instant::now();
        server.request()?;
        Ok(Took::whole(began.elapsed()))
    }))
}
