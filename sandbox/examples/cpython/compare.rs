//! Two runs of a module side by side: which tests came to something else, and why.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::harness::records::{Lack, Verdict};
use crate::harness::{Outcome, Ran};

/// How many tests came to what.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) pass: usize,
    /// `fail`, `error` and `died`.
    pub(crate) bad: usize,
    pub(crate) skip: usize,
}

impl Count {
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut count = Self::default();
        for outcome in outcomes {
            match outcome.verdict {
                Verdict::Pass => count.pass += 1,
                Verdict::Skip => count.skip += 1,
                _ => count.bad += 1,
            }
        }
        count
    }
}

/// Why a test differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Why {
    /// It makes processes.
    Processes,
    /// It needs sockets of the host.
    Network,
    /// Listed in [`KNOWN`].
    Known,
    /// It does the same as natively in the private layer: shares keep owners and set-ID bits as they are.
    Share,
    /// The test skips itself in a sandbox.
    Skips,
    /// It went wrong natively only.
    Native,
    /// Nobody has looked yet, or it is a defect.
    Unexplained,
}

/// A test that passes natively and not inside, or the other way round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) test: String,
    pub(crate) native: Verdict,
    /// `None`: it was not run, because what goes before it failed.
    pub(crate) inside: Option<Verdict>,
    pub(crate) why: Why,
    /// A sentence.
    pub(crate) reason: String,
    /// The traceback.
    pub(crate) details: String,
}

/// A module.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) module: String,
    pub(crate) native: Count,
    pub(crate) inside: Count,
    pub(crate) native_seconds: f64,
    pub(crate) inside_seconds: f64,
    pub(crate) differences: Vec<Difference>,
    /// Calls that were made and are not served.
    pub(crate) unserved: Vec<String>,
}

/// Tests that differ for a reason that stands in docs/process-engine.md or docs/files.md: a part of the id, the reason.
const KNOWN: &[(&str, &str)] = &[
    ("test_fcntl.TestFcntl.test_fcntl_64_bit", "`F_NOTIFY`: nothing watches directories"),
    ("test_os.FDInheritanceTests.test_openpty", "there are no terminals"),
    ("test_os.ExtendedAttributeTests", "files have no extended attributes"),
    ("test_shutil.TestCopy.test_copyxattr", "files have no extended attributes"),
    ("test_shutil.TestCopy.test_copy2_xattr", "files have no extended attributes"),
    ("test_mkfifo", "there are no named pipes"),
    ("named_pipe", "there are no named pipes"),
    ("test_is_fifo_true", "there are no named pipes"),
    ("test_socket.SendRecvFdsTests", "socket pairs pass no descriptors"),
    ("ctypes.test.test_loading", "`find_library` starts `gcc` and `ldconfig`"),
    ("ctypes.test.test_find", "`find_library` starts `gcc` and `ldconfig`"),
    ("test_asyncio.test_base_events.", "its import asks for a socket with a name (`EAFNOSUPPORT`)"),
    ("pidfd", "there are no process descriptors"),
    ("test_monotonic_settime", "nobody sets the clock"),
    ("test_sethostname", "nobody names the machine"),
];

impl Compared {
    /// Compares.
    pub(crate) fn new(module: &str, native: Ran, inside: Ran) -> Self {
        let tests = native.tests.iter().filter(|(id, _)| is_test(id));
        let differences = tests.filter_map(|(id, outcome)| differ(id, outcome, &inside)).collect();
        let count = |ran: &Ran| Count::of(ran.tests.iter().filter(|(id, _)| is_test(id)).map(|(_, of)| of));
        Self {
            module: module.to_owned(),
            native: count(&native),
            inside: count(&inside),
            native_seconds: native.time.as_secs_f64(),
            inside_seconds: inside.time.as_secs_f64(),
            differences,
            unserved: inside.remarks.into_iter().collect(),
        }
    }

    /// Looks at [`KNOWN`] again, for differences that were written by an earlier build.
    pub(crate) fn look_up(&mut self) {
        for difference in &mut self.differences {
            if let Some(reason) = known(&difference.test).filter(|_| difference.why == Why::Unexplained) {
                (difference.why, difference.reason) = (Why::Known, reason.to_owned());
            }
        }
    }

    /// The tests that may differ because they work on a share.
    pub(crate) fn may_be_the_share(&self) -> BTreeSet<String> {
        let open = self.differences.iter().filter(|d| matches!(d.why, Why::Unexplained | Why::Skips));
        open.map(|difference| difference.test.clone()).collect()
    }

    /// Takes what these tests came to in the private layer.
    pub(crate) fn settle_share(&mut self, private: &Ran) {
        for difference in &mut self.differences {
            let there = private.tests.get(&difference.test).map(|outcome| outcome.verdict);
            if matches!(difference.why, Why::Unexplained | Why::Skips) && there == Some(difference.native) {
                difference.why = Why::Share;
            }
        }
    }

    /// The differences that nobody has explained.
    pub(crate) fn unexplained(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| difference.why == Why::Unexplained)
    }
}

/// Rather than what unittest calls after a fixture of a class or module.
fn is_test(id: &str) -> bool {
    !id.contains(" (") && !id.starts_with("unittest.loader.")
}

fn differ(id: &str, native: &Outcome, inside: &Ran) -> Option<Difference> {
    let own = inside.tests.get(id);
    let own_verdict = own.map(|outcome| outcome.verdict);
    if own_verdict == Some(native.verdict)
        || own_verdict.is_some_and(|v| v.is_bad() && native.verdict.is_bad())
    {
        return None;
    }
    let cause = own.or_else(|| fixture(id, inside));
    let (why, reason) = explain(id, native, cause);
    let details = cause.map(|outcome| outcome.why.clone()).unwrap_or_default();
    Some(Difference {
        test: id.to_owned(),
        native: native.verdict,
        inside: own_verdict,
        why,
        reason,
        details,
    })
}

/// What the class's or module's fixture came to.
fn fixture<'a>(id: &str, ran: &'a Ran) -> Option<&'a Outcome> {
    let class = id.rsplit_once('.')?.0;
    let module = class.rsplit_once('.')?.0;
    let names = [
        format!("setUpClass ({class})"),
        format!("setUpModule ({module})"),
        format!("unittest.loader._FailedTest.{module}"),
        module.to_owned(),
    ];
    names.iter().find_map(|name| ran.tests.get(name))
}

fn known(id: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(part, _)| id.contains(part)).map(|(_, reason)| *reason)
}

fn explain(id: &str, native: &Outcome, inside: Option<&Outcome>) -> (Why, String) {
    if let Some(reason) = known(id) {
        return (Why::Known, reason.to_owned());
    }
    let Some(inside) = inside else { return (Why::Unexplained, "not run".to_owned()) };
    match (inside.needs, inside.verdict) {
        (Some(Lack::Processes), _) => (Why::Processes, "makes processes".to_owned()),
        (Some(Lack::Network), _) => (Why::Network, "needs sockets".to_owned()),
        (None, Verdict::Skip) if inside.is_for_network() => (Why::Network, "needs sockets".to_owned()),
        (None, Verdict::Skip) => (Why::Skips, format!("skips itself: {}", inside.reason())),
        (None, Verdict::Pass) => (Why::Native, format!("natively: {}", native.reason())),
        (None, _) => (Why::Unexplained, inside.reason().to_owned()),
    }
}
