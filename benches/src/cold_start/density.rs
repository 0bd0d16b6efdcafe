//! Memory of many sandboxes of one function: in a child process, because only a process of its own has nothing else in
//! its numbers, and in a control group of its own where one can be made, because the kernel's memory is counted there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use novum_sandbox::{EngineKind, Sandbox};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::engine::{ENGINES, Rows};
use super::programs::{Built, Program};
use super::sandbox::{self, Deployed};

/// What is still being cleaned up in the background is done by then.
const SETTLE: Duration = Duration::from_millis(500);
/// Time for calling all of them.
const CALLS: Duration = Duration::from_secs(20);

/// What the child is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub engine: String,
    /// Which.
    pub program: Program,
    /// How many at once.
    pub sandboxes: usize,
    /// Its file.
    pub built: Built,
    /// The control group that it is in, if any.
    pub group: Option<PathBuf>,
}

/// Memory of one sandbox on average, in bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PerSandbox {
    /// Proportional set size (smaps_rollup).
    pub pss: f64,
    /// Pages that only this process has (smaps_rollup).
    pub private: f64,
    /// Kernel memory.
    pub kernel: f64,
}

impl PerSandbox {
    /// Both together.
    fn and(self, more: Self) -> Self {
        Self {
            pss: self.pss + more.pss,
            private: self.private + more.private,
            kernel: self.kernel + more.kernel,
        }
    }
}

/// Many sandboxes of one function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Density {
    /// The engine.
    pub engine: String,
    /// The program.
    pub program: Program,
    /// How many.
    pub sandboxes: usize,
    /// Started, without a call so far.
    pub idle: PerSandbox,
    /// After one call.
    pub used: PerSandbox,
    /// How many were called: all of them, unless memory or time ran out.
    pub called: usize,
    /// Where `kernel` comes from: `cgroup` (exact) or `meminfo` (the whole machine's difference).
    pub kernel_from: String,
}

/// Measures in a child: this program again with `again` and the order.
pub(super) fn measure(
    again: &[String],
    kind: EngineKind,
    (program, built): (Program, Built),
    sandboxes: usize,
) -> Result<Density> {
    let group = Group::new();
    let directory = group.as_ref().map(|group| group.0.clone());
    let order = Order { engine: kind.as_str().into(), program, sandboxes, built, group: directory };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(again).arg("--child").arg(serde_json::to_string(&super::Child::Density(order))?);
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim().lines().last().unwrap_or("it said nothing"));
    let line = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(line.trim()).with_context(|| format!("the child said {line:?}"))
}

/// In the child.
pub(super) fn run(order: &Order) -> Result<Density> {
    if let Some(group) = &order.group {
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    }
    raise_file_limit();
    let kind = ENGINES.map(Rows::kind).into_iter().find(|kind| kind.as_str() == order.engine);
    let kind = kind.context("no such engine")?;
    let scratch = tempfile::TempDir::new()?;
    let deployed = Deployed::new(kind, order.built.clone(), scratch.path())?;
    let runtime = sandbox::runtime()?;
    let image = deployed.image(&runtime)?;
    // One life, so that what is made once for all of them is not counted.
    runtime.block_on(async { sandbox::call(image.clone().start().await?.as_mut()).await })?;
    std::thread::sleep(SETTLE);
    let before = Held::now(order.group.as_deref())?;
    let mut all = Vec::new();
    for _ in 0..order.sandboxes {
        all.push(runtime.block_on(image.clone().start_ahead())?);
    }
    std::thread::sleep(SETTLE);
    let all_idle = Held::now(order.group.as_deref())?;
    let idle = all_idle.since(&before, order.sandboxes);
    let called = call_each(&runtime, &mut all)?;
    std::thread::sleep(SETTLE);
    let used = idle.and(Held::now(order.group.as_deref())?.since(&all_idle, called));
    let kernel_from = if order.group.is_some() { "cgroup" } else { "meminfo" }.into();
    let Order { engine, program, sandboxes, .. } = order.clone();
    Ok(Density { engine, program, sandboxes, idle, used, called, kernel_from })
}

/// Calls them once, as many as there are memory and time for; how many that were.
fn call_each(runtime: &Runtime, all: &mut [Box<dyn Sandbox>]) -> Result<usize> {
    let (began, least) = (Instant::now(), available() / 2.0);
    let mut called = 0;
    for sandbox in all {
        if called > 0 && (began.elapsed() > CALLS || available() < least) {
            break;
        }
        runtime.block_on(sandbox::call(sandbox.as_mut()))?;
        called += 1;
    }
    Ok(called)
}

/// What the machine can still give, in bytes (proc_meminfo(5)).
fn available() -> f64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&meminfo, "MemAvailable:").unwrap_or_default() * 1024.0
}

/// A VM is several descriptors.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // A limit that cannot be raised shows itself when descriptors run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// What the process holds now, in bytes.
struct Held {
    pss: f64,
    private: f64,
    kernel: f64,
}

impl Held {
    fn now(group: Option<&Path>) -> Result<Self> {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
        let kib = |name| kib(&rollup, name).with_context(|| format!("smaps_rollup has no {name}"));
        let private = kib("Private_Clean:")? + kib("Private_Dirty:")?;
        let kernel = match group {
            Some(group) => kernel_of_group(group)?,
            None => kernel_of_machine(&fs::read_to_string("/proc/meminfo")?),
        };
        Ok(Self { pss: kib("Pss:")? * 1024.0, private: private * 1024.0, kernel })
    }

    fn since(&self, before: &Self, count: usize) -> PerSandbox {
        let each = |now: f64, then: f64| (now - then) / count as f64;
        PerSandbox {
            pss: each(self.pss, before.pss),
            private: each(self.private, before.private),
            kernel: each(self.kernel, before.kernel),
        }
    }
}

fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// What the kernel allocates for its own use, however it says so (proc_meminfo(5)).
fn kernel_of_machine(meminfo: &str) -> f64 {
    let names = ["Slab:", "KernelStack:", "PageTables:", "SecPageTables:", "Percpu:"];
    names.iter().filter_map(|name| kib(meminfo, name)).sum::<f64>() * 1024.0
}

fn kernel_of_group(group: &Path) -> Result<f64> {
    // Version 2 says it in memory.stat, version 1 in a file of its own.
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    if let Some(bytes) = stat.lines().find_map(|line| line.strip_prefix("kernel ")) {
        return Ok(bytes.trim().parse()?);
    }
    let bytes = fs::read_to_string(group.join("memory.kmem.usage_in_bytes"))?;
    Ok(bytes.trim().parse()?)
}

/// A control group for one child; removed when the child is gone.
struct Group(PathBuf);

impl Group {
    /// `None` where none can be made or it does not count kernel memory.
    fn new() -> Option<Self> {
        let parents = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
        parents.iter().find_map(|parent| {
            let own = Path::new(parent).join(format!("novum-bench-{}", std::process::id()));
            fs::create_dir(&own).ok()?;
            let group = Self(own);
            kernel_of_group(&group.0).is_ok().then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group with pages still to be freed can be removed all the same; if not, an empty folder stays.
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_memory_is_the_sum_of_what_is_there() {
        let meminfo =
            "MemTotal: 9 kB\nSlab:    100 kB\nKernelStack:  16 kB\nPageTables:  4 kB\nPercpu: 8 kB\n";
        assert_eq!(kernel_of_machine(meminfo), 128.0 * 1024.0);
        assert_eq!(kib("Pss:     12 kB\n", "Pss:"), Some(12.0));
    }
}
