//! The hello program through the gateway over gRPC on loopback, a clean state for every request, loaded by h2load.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use novum_proto::gateway::v1::{Engine, InvokeRequest, Manifest, Pool};
use novum_sandbox::EngineKind;
use serde::{Deserialize, Serialize};

use super::Options;
use super::engine::Rows;
use super::programs::Program;
use crate::gateway::length_prefixed;
use crate::h2load::{Callers, Load, Run};
use crate::target::{Server, novum_program};

const METHOD: &str = "/novum.gateway.v1.Functions/Invoke";
/// Sandboxes that a function may have: more than there are callers.
const MAX: u32 = 128;

/// One server under one load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Through {
    /// What answered.
    pub server: String,
    /// Requests under way at once.
    pub callers: Callers,
    /// The load generator's numbers.
    pub run: Run,
    /// Microseconds of processor time that the server used for one reply.
    pub server_cpu_us: f64,
    /// The first call's whole way, cold, in milliseconds.
    pub first_call_ms: f64,
}

/// One row or the reason why there is none.
pub(super) type Row = (String, Result<Through>);

/// Every server under every load.
pub(super) async fn measure(options: &Options, scratch: &Path) -> Result<Vec<Row>> {
    let program = novum_program(options.novum.clone())?;
    let data = scratch.join("gateway");
    std::fs::create_dir_all(&data)?;
    let novum = Server::start(&program, &data, options.workers).await?;
    let child = serde_json::to_string(&super::Child::Floor { workers: options.workers })?;
    let floor = Server::from_command(&[options.again.as_slice(), &["--child".into(), child]].concat())?;
    let mut rows = Vec::new();
    let mut servers = vec![("floor: tonic echo".to_owned(), &floor, "empty".to_owned(), Ok(()))];
    for engine in options.engines() {
        let kind = engine.kind();
        let deployed = deploy(&novum, engine, scratch).await;
        servers.push((format!("novum: {kind} engine"), &novum, format!("hello-{kind}"), deployed));
    }
    for (name, server, function, deployed) in servers {
        for callers in &options.callers {
            let row = match &deployed {
                Ok(()) => one(&name, server, &function, *callers, options, scratch).await,
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            rows.push((format!("{name}, {callers} callers"), row));
        }
    }
    Ok(rows)
}

async fn deploy(server: &Server, rows: &dyn Rows, scratch: &Path) -> Result<()> {
    let kind = rows.kind();
    let program = rows.build(Program::Hello, scratch)?;
    let engine = match kind {
        EngineKind::Wasm => Engine::Wasm,
        EngineKind::Process => Engine::Process,
        EngineKind::Linux => Engine::Linux,
    };
    let manifest = Manifest {
        name: format!("hello-{kind}"),
        engine: engine.into(),
        entry: "hello".into(),
        pool: Some(Pool { max: Some(MAX), queue: Some(1024), ..Default::default() }),
        ..Default::default()
    };
    server.deploy(manifest, Bytes::from(std::fs::read(program.path)?)).await
}

async fn one(
    name: &str,
    server: &Server,
    function: &str,
    callers: u32,
    options: &Options,
    scratch: &Path,
) -> Result<Through> {
    let callers = Callers::new(callers);
    let request = InvokeRequest { function: function.into(), ..Default::default() };
    let began = std::time::Instant::now();
    server.invoke(request.clone()).await?;
    let first_call_ms = began.elapsed().as_secs_f64() * 1e3;
    let body = scratch.join("body");
    std::fs::write(&body, length_prefixed(&request))?;
    let url = format!("http://{}{METHOD}", server.address);
    let load = Load { url: &url, body: &body };
    let checked = u32::try_from(options.samples.min(512)).unwrap_or(512);
    load.verify(callers, checked.next_multiple_of(callers.total), 0)?;
    let cpu = server.cpu_time()?;
    let run = load.run(callers, Duration::from_secs_f64(options.seconds))?;
    let cpu = server.cpu_time()?.checked_sub(cpu).context("processor time only grows")?;
    ensure!(run.requests > 0, "no reply came");
    let server_cpu_us = cpu.as_secs_f64() * 1e6 / run.requests as f64;
    Ok(Through { server: name.to_owned(), callers, run, server_cpu_us, first_call_ms })
}
