//! What this machine can run and why not, with what to do about it.
//!
//! [`CHECKS`] is the table: a new check is one function and one row. Checks look, they change nothing.

mod checks;
mod kvm;

use std::path::PathBuf;

use novum_sandbox::EngineKind;
use novum_sandbox::engines;

use crate::config::Listen;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, but worse than it could.
    Poor,
    /// Something does not work because of this.
    Bad,
    /// Only for information.
    Info,
}

impl Verdict {
    /// In `--json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Poor => "poor",
            Self::Bad => "bad",
            Self::Info => "info",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// Numbers that were measured, for `--json`; `null` where the check measures nothing.
    pub measured: serde_json::Value,
}

impl Finding {
    fn new(verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { verdict, detail: detail.into(), advice: None, measured: serde_json::Value::Null }
    }

    fn good(detail: impl Into<String>) -> Self {
        Self::new(Verdict::Good, detail)
    }

    fn info(detail: impl Into<String>) -> Self {
        Self::new(Verdict::Info, detail)
    }

    fn poor(detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..Self::new(Verdict::Poor, detail) }
    }

    fn bad(detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..Self::new(Verdict::Bad, detail) }
    }
}

/// What checks are told.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where a gateway would keep its data.
    pub data_dir: PathBuf,
    /// Where a gateway would listen.
    pub listen: Listen,
    /// Where kernels of Linux guests are kept.
    pub kernel_dir: PathBuf,
}

/// One check.
pub struct Check {
    /// Its name, one word.
    pub name: &'static str,
    /// What it decides.
    pub about: &'static str,
    /// Looks.
    pub run: fn(&Context) -> Finding,
}

/// Every check, in the order in which they are shown.
pub const CHECKS: &[Check] = &[
    Check { name: "kernel", about: "host kernel", run: checks::kernel },
    Check { name: "cpu", about: "processors and their features", run: checks::cpu },
    Check { name: "memory", about: "memory for sandboxes", run: checks::memory },
    Check { name: "kvm", about: "process and linux engines", run: kvm::device },
    Check { name: "kvm-speed", about: "what its KVM is good for", run: kvm::speed },
    Check { name: "guest-kernels", about: "linux engine", run: checks::guest_kernels },
    Check { name: "pagemap-scan", about: "fast reset of Wasm memory", run: checks::pagemap_scan },
    Check { name: "openat2", about: "shared directories", run: checks::openat2 },
    Check { name: "huge-pages", about: "cheaper page faults in microVMs", run: checks::huge_pages },
    Check { name: "mappings", about: "vm.max_map_count, process engine", run: checks::mappings },
    Check { name: "user-namespaces", about: "jail of microVM workers", run: checks::user_namespaces },
    Check { name: "cgroups", about: "limits of microVM workers", run: checks::cgroups },
    Check { name: "data-dir", about: "novum serve", run: checks::data_dir },
    Check { name: "address", about: "novum serve", run: checks::address },
];

/// What this machine can run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Each engine and whether it runs here.
    pub engines: Vec<(EngineKind, Finding)>,
    /// Each check's name, what it decides, and what was found.
    pub checks: Vec<(&'static str, &'static str, Finding)>,
}

impl Report {
    /// Whether at least one engine runs.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.engines.iter().any(|(_, finding)| finding.verdict == Verdict::Good)
    }
}

/// Looks at everything.
#[must_use]
pub fn examine(context: &Context) -> Report {
    let kinds = [EngineKind::Wasm, EngineKind::Process, EngineKind::Linux];
    Report {
        engines: kinds.into_iter().map(|kind| (kind, engine(kind))).collect(),
        checks: CHECKS.iter().map(|check| (check.name, check.about, (check.run)(context))).collect(),
    }
}

fn engine(kind: EngineKind) -> Finding {
    let Some(row) = engines::row(kind) else {
        return Finding::bad("not in this build", engines::absence(kind));
    };
    match (row.probe)() {
        Ok(()) => Finding::good("ready"),
        Err(reason) => Finding::bad("cannot run here", reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_something_and_bad_ones_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            data_dir: dir.path().join("a/b"),
            listen: "127.0.0.1:0".parse().unwrap(),
            kernel_dir: dir.path().join("a/kernels"),
        };
        let report = examine(&context);
        for (name, _, finding) in &report.checks {
            assert!(!finding.detail.is_empty(), "{name}");
            let must_advise = matches!(finding.verdict, Verdict::Bad | Verdict::Poor);
            assert_eq!(finding.advice.is_some(), must_advise, "{name}: {finding:?}");
        }
        assert!(!dir.path().join("a").exists(), "a check must not change anything");
    }
}
