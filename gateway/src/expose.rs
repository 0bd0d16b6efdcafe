//! The metrics page, in OpenMetrics text. Labels are function names and engines, so there are never more series than
//! deployed functions times a constant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::core::Core;
use crate::functions::Entry;
use crate::metrics::{BUCKETS_NS, Count, FunctionStats, Latencies, Part};
use crate::pool::Pool;
use crate::service::admin::resident_bytes;
use crate::sessions::{self, ExecCount, Sandboxes};

/// What HTTP says the page is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
///
/// # Errors
/// None in practice: it is written into memory.
pub fn page(core: &Arc<Core>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("novum");
    registry.register_collector(Box::new(Gateway(Arc::downgrade(core))));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

struct Gateway(Weak<Core>);

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gateway")
    }
}

/// One function's part of the page.
struct Series {
    function: String,
    engine: &'static str,
    entry: Entry,
}

impl Series {
    fn stats(&self) -> &FunctionStats {
        &self.entry.current().shared.stats
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("function", &self.function), ("engine", self.engine)]
    }

    fn labels_and<'a>(&'a self, name: &'static str, value: &'a str) -> [(&'static str, &'a str); 3] {
        let [function, engine] = self.labels();
        [function, engine, (name, value)]
    }
}

type Encoded = Result<(), std::fmt::Error>;

impl Collector for Gateway {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let Some(core) = self.0.upgrade() else { return Ok(()) };
        let mut all: Vec<_> = core
            .functions()
            .all()
            .iter()
            .map(|(name, entry)| Series {
                function: name.to_string(),
                engine: entry.current().record.engine.as_str(),
                entry: entry.clone(),
            })
            .collect();
        all.sort_unstable_by(|a, b| a.function.cmp(&b.function));
        encode_gateway(&mut encoder, &core)?;
        encode_sessions(&mut encoder, core.sandboxes())?;
        encode_counters(&mut encoder, &all)?;
        encode_gauges(&mut encoder, &all)?;
        encode_memory(&mut encoder, &all)?;
        encode_latencies(&mut encoder, &all)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn encode_gateway(encoder: &mut DescriptorEncoder<'_>, core: &Core) -> Encoded {
    let budget = core.budget();
    let gauges: [(&str, &str, f64); 6] = [
        ("resident_memory_bytes", "Resident memory of the gateway's process", resident_bytes() as f64),
        ("uptime_seconds", "Time since the gateway's start", core.uptime().as_secs_f64()),
        ("functions", "Deployed functions", core.functions().all().len() as f64),
        (
            "all_sandboxes_memory_bytes",
            "Memory that only sandboxes hold, as last measured",
            budget.measured_bytes() as f64,
        ),
        ("memory_budget_bytes", "What sandboxes may hold together", budget.limit_bytes() as f64),
        ("draining", "1: no new invocation is taken", if core.draining() { 1.0 } else { 0.0 }),
    ];
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(value);
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    Ok(())
}

/// Sandboxes that live between calls.
fn encode_sessions(encoder: &mut DescriptorEncoder<'_>, sandboxes: &Sandboxes) -> Encoded {
    let (sessions, snapshots) = sandboxes.len();
    let gauges = [
        ("sessions", "Sandboxes that live between calls", sessions),
        ("session_snapshots", "Snapshots of sandboxes that live between calls", snapshots),
    ];
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
    }
    let counts = sandboxes.counts();
    let help = "Sandboxes that live between calls, made";
    let made = ConstCounter::new(counts.created.load(Ordering::Relaxed));
    made.encode(encoder.encode_descriptor("sessions_made", help, None, made.metric_type())?)?;
    let ended = sessions::REASONS.into_iter().zip(&counts.ended);
    let commands = ExecCount::ALL.map(|(_, outcome)| outcome).into_iter().zip(&counts.commands);
    let bytes = [("read", &counts.read_bytes), ("written", &counts.written_bytes)];
    encode_labelled(encoder, "sessions_ended", "Such sandboxes that are gone, by why", "reason", ended)?;
    encode_labelled(encoder, "session_commands", "Commands in them by how they ended", "outcome", commands)?;
    let help = "Bytes of files read from them and written into them";
    encode_labelled(encoder, "session_file_bytes", help, "direction", bytes)
}

fn encode_labelled<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'static str, &'a AtomicU64)>,
) -> Encoded {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in values {
        let labels = [(label, value)];
        ConstCounter::new(count.load(Ordering::Relaxed)).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_counters(encoder: &mut DescriptorEncoder<'_>, all: &[Series]) -> Encoded {
    let help = "Invocations by how they ended";
    let mut metric = encoder.encode_descriptor("invocations", help, None, MetricType::Counter)?;
    for series in all {
        for (count, outcome) in Count::ALL {
            let labels = series.labels_and("outcome", outcome);
            ConstCounter::new(series.stats().total(count)).encode(metric.encode_family(&labels)?)?;
        }
    }
    let help = "Invocations by whether a sandbox was made for them";
    let mut metric = encoder.encode_descriptor("starts", help, None, MetricType::Counter)?;
    for series in all {
        for (start, total) in [("cold", series.stats().cold()), ("warm", series.stats().warm())] {
            let labels = series.labels_and("start", start);
            ConstCounter::new(total).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_memory(encoder: &mut DescriptorEncoder<'_>, all: &[Series]) -> Encoded {
    let help = "Idle sandboxes removed because the memory budget was reached";
    let mut metric = encoder.encode_descriptor("evictions", help, None, MetricType::Counter)?;
    for series in all {
        let evicted = series.entry.sum(Pool::evicted);
        ConstCounter::new(evicted).encode(metric.encode_family(&series.labels())?)?;
    }
    let help = "Memory that only this function's sandboxes hold, as last measured";
    let mut metric =
        encoder.encode_descriptor("sandbox_memory", help, Some(&Unit::Bytes), MetricType::Gauge)?;
    for series in all {
        let bytes = i64::try_from(series.entry.sum(Pool::measured_bytes)).unwrap_or(i64::MAX);
        ConstGauge::new(bytes).encode(metric.encode_family(&series.labels())?)?;
    }
    Ok(())
}

fn encode_gauges(encoder: &mut DescriptorEncoder<'_>, all: &[Series]) -> Encoded {
    type Read = fn(crate::pool::Occupancy) -> u32;
    let gauges: [(&str, &str, Read); 3] = [
        ("running", "Invocations that run now", |now| now.running),
        ("queue_depth", "Invocations that wait for a sandbox", |now| now.queued),
        ("idle_sandboxes", "Started sandboxes without a caller", |now| now.idle),
    ];
    for (name, help, read) in gauges {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for series in all {
            let value = i64::from(read(series.entry.occupancy()));
            ConstGauge::new(value).encode(metric.encode_family(&series.labels())?)?;
        }
    }
    Ok(())
}

fn encode_latencies(encoder: &mut DescriptorEncoder<'_>, all: &[Series]) -> Encoded {
    let parts = [
        ("queued", "From arrival until a sandbox was there to be used or made", Part::Queued),
        ("start", "Making a sandbox ready", Part::Start),
        ("run", "From the input's handing over to the program's end", Part::Run),
        ("sandbox_ready", "From arrival until a clean sandbox was there", Part::Ready),
        ("guest_resumed", "From arrival until the guest ran with the input at hand", Part::Resumed),
        ("first_byte", "From arrival to the first byte of output", Part::FirstByte),
        ("answered", "From arrival until the reply was given to the connection", Part::Answered),
    ];
    for (name, help, part) in parts {
        let mut metric =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for series in all {
            let (sum, count, buckets) = in_seconds(&series.stats().latencies(part));
            let labels = series.labels();
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "seconds are a float")]
fn in_seconds(latencies: &Latencies) -> (f64, u64, Vec<(f64, u64)>) {
    let bounds = BUCKETS_NS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::MAX]);
    let buckets: Vec<_> = bounds.zip(latencies.buckets).collect();
    (latencies.sum_ns as f64 / 1e9, latencies.buckets.iter().sum(), buckets)
}
