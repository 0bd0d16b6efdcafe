//! The servers under load.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use novum_proto::gateway::v1::admin_client::AdminClient;
use novum_proto::gateway::v1::functions_client::FunctionsClient;
use novum_proto::gateway::v1::{DeployRequest, Pool};
use novum_proto::gateway::v1::{
    Engine, InvokeRequest, InvokeResponse, Manifest, StatsRequest, deploy_request, exit_status,
};
use tonic::transport::Channel;

use crate::floors::wasmtime_call::EMPTY_WAT;

const ECHO_WAT: &str = include_str!("../../examples/echo/echo.wat");
/// Of one message of a deploy.
const CHUNK_BYTES: usize = 1 << 20;
const START_LIMIT: Duration = Duration::from_secs(20);

/// A server process; killed when dropped.
pub struct Server {
    child: Child,
    /// `HOST:PORT`
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way nothing is left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// A floor: this program again, with the subcommand that serves it.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn floor(name: &str, workers: usize) -> Result<Self> {
        Self::from_command(&["floor", name, "--workers", &workers.to_string()].map(str::to_owned))
    }

    /// This program again with `arguments` that make it a server, which prints its address as its first line.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn from_command(arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a floor")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the floor's standard output is a pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the floor ended before it listened");
        Ok(Self { child, address: line.trim().to_owned() })
    }

    /// The gateway, with the functions `empty` and `echo` deployed.
    ///
    /// # Errors
    /// Where it does not start or refuses them.
    pub async fn novum(program: &Path, data: &Path, workers: usize) -> Result<Self> {
        let server = Self::start(program, data, workers).await?;
        for (name, wat) in [("empty", EMPTY_WAT), ("echo", ECHO_WAT)] {
            let manifest = Manifest {
                name: name.into(),
                engine: Engine::Wasm.into(),
                memory_bytes: Some(1 << 20),
                pool: Some(Pool { max: Some(256), queue: Some(1024), ..Default::default() }),
                ..Default::default()
            };
            let deployed = server.deploy(manifest, Bytes::from_static(wat.as_bytes())).await;
            deployed.with_context(|| format!("deploying {name}"))?;
        }
        Ok(server)
    }

    /// The gateway, with nothing deployed.
    ///
    /// # Errors
    /// Where it does not start.
    pub async fn start(program: &Path, data: &Path, workers: usize) -> Result<Self> {
        let port_file = data.join("ports");
        let child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--workers", &workers.to_string()])
            .arg("--port-file")
            .arg(&port_file)
            .arg("--data-dir")
            .arg(data.join("data"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(data.join("log"))?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut server = Self { child, address: String::new() };
        server.address = server.wait_for_port(&port_file, &data.join("log")).await?;
        Ok(server)
    }

    async fn wait_for_port(&mut self, port_file: &Path, log: &Path) -> Result<String> {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if let Some(address) =
                std::fs::read_to_string(port_file).ok().and_then(|t| t.lines().next().map(str::to_owned))
            {
                return Ok(address);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the gateway ended with {status}: {}",
                    std::fs::read_to_string(log).unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the gateway did not listen within {START_LIMIT:?}")
    }

    /// Processor time that the server has used so far, in user and kernel mode (proc_pid_stat(5)).
    ///
    /// # Errors
    /// Where the server is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let ticks = cpu_ticks(&stat).context("an unknown /proc/PID/stat")?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(Channel::from_shared(format!("http://{}", self.address))?.connect().await?)
    }

    /// Deploys a function that is one file.
    ///
    /// # Errors
    /// The gateway's refusal.
    pub async fn deploy(&self, manifest: Manifest, artifact: Bytes) -> Result<()> {
        let start = deploy_request::Start { manifest: Some(manifest), ..Default::default() };
        let mut parts = vec![deploy_request::Part::Start(start)];
        let chunks = (0..artifact.len()).step_by(CHUNK_BYTES);
        parts.extend(
            chunks.map(|at| {
                deploy_request::Part::Chunk(artifact.slice(at..artifact.len().min(at + CHUNK_BYTES)))
            }),
        );
        let stream = tokio_stream::iter(parts.into_iter().map(|part| DeployRequest { part: Some(part) }));
        FunctionsClient::new(self.channel().await?).deploy(stream).await?;
        Ok(())
    }

    /// One invocation by a client that reads the reply.
    ///
    /// # Errors
    /// Where the function did not end with exit code 0. (A floor names no exit status.)
    pub async fn invoke(&self, request: InvokeRequest) -> Result<InvokeResponse> {
        let reply = FunctionsClient::new(self.channel().await?).invoke(request).await?.into_inner();
        match reply.exit.as_ref().and_then(|exit| exit.status.as_ref()) {
            None | Some(exit_status::Status::Code(0)) => Ok(reply),
            Some(other) => bail!("the function ended with {other:?}"),
        }
    }

    /// How many invocations of `function` the gateway counts as succeeded.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn succeeded(&self, function: &str) -> Result<u64> {
        let stats = AdminClient::new(self.channel().await?).stats(StatsRequest {}).await?.into_inner();
        let counts = stats.functions.iter().find(|counts| counts.function == function);
        Ok(counts.with_context(|| format!("the gateway's stats do not know {function}"))?.succeeded)
    }
}

/// `utime` and `stime`: fields 14 and 15, counted from after the name, which may hold anything but ends the last `)`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The gateway's program: the given path, or built now in the profile of this program, so that it is never stale.
///
/// # Errors
/// Where the build fails.
pub fn novum_program(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    let program = std::env::current_exe()?.with_file_name("novum");
    let Some(cargo) = std::env::var_os("CARGO") else {
        ensure!(program.exists(), "{} is missing; run this through cargo or give --novum", program.display());
        return Ok(program);
    };
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "novum", "--bin", "novum"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    ensure!(build.status().context("cargo")?.success(), "building novum failed");
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 31 11 0 0 20 0 4 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("7 (a"), None);
    }
}
