//! `novum.gateway.v1.Admin`.

use std::sync::Arc;

use novum_proto::gateway::v1 as proto;
use novum_proto::gateway::v1::admin_server::Admin;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::core::Core;
use crate::functions::Entry;
use crate::metrics::Count;
use crate::note::Stop;
use crate::pool::Pool;

/// The service.
pub struct AdminService {
    core: Arc<Core>,
}

impl AdminService {
    /// Of this gateway.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn stats(&self, _: Request<proto::StatsRequest>) -> Result<Response<proto::StatsResponse>, Status> {
        let table = self.core.functions().all();
        let mut functions: Vec<_> = table.values().map(function_stats).collect();
        functions.sort_unstable_by(|a, b| a.function.cmp(&b.function));
        let engines = self.core.engines().slots().iter().map(|slot| proto::EngineStats {
            engine: convert::engine(slot.kind).into(),
            available: slot.engine.is_ok(),
            reason: slot.engine.as_ref().err().cloned().unwrap_or_default(),
        });
        Ok(Response::new(proto::StatsResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: Some(convert::duration(self.core.uptime())),
            resident_bytes: resident_bytes(),
            draining: self.core.draining(),
            functions,
            engines: engines.collect(),
            sandbox_bytes: self.core.budget().measured_bytes(),
            memory_budget_bytes: self.core.budget().limit_bytes(),
        }))
    }
}

fn function_stats(entry: &Entry) -> proto::FunctionStats {
    let current = entry.current();
    let stats = &current.shared.stats;
    let now = entry.occupancy();
    let stops = [Stop::Deadline, Stop::Memory, Stop::Output, Stop::Cancelled, Stop::Draining, Stop::Host];
    let latency = |q| stats.recent_quantile(q).map(convert::duration);
    proto::FunctionStats {
        function: current.record.manifest.name.to_string(),
        version: current.record.version,
        running: now.running,
        queued: now.queued,
        idle: now.idle,
        succeeded: stats.total(Count::Ok),
        failed: stats.total(Count::Exit) + stats.total(Count::Fault),
        stopped: stops.into_iter().map(|stop| stats.total(Count::Stopped(stop))).sum::<u64>()
            + stats.total(Count::Abandoned),
        refused: stats.total(Count::Refused),
        cold: stats.cold(),
        latency_p50: latency(0.5),
        latency_p99: latency(0.99),
        sandbox_bytes: entry.sum(Pool::measured_bytes),
        evicted: entry.sum(Pool::evicted),
    }
}

/// Resident memory of this process (proc(5), /proc/pid/statm, second field).
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
