//! Sandboxes that start from an image of the program at its first wait for input, and go back to it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use novum_sandbox::{Error, ExitStatus, Image, Input, Invocation, Output, Renewal, Reply, Sandbox};

use super::{Log, Run, compile, has_kvm, has_program};

/// A program that is prepared once.
pub(crate) struct Warm {
    image: Arc<dyn Image>,
    _dir: tempfile::TempDir,
}

/// One call with this input.
pub(crate) fn call(input: &[u8], env: &[(&str, &str)], within: Duration) -> Invocation {
    Invocation {
        env: env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        input: Input::Bytes(Bytes::copy_from_slice(input)),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: Arc::<Log>::default(),
        // An emulated machine is slower by more than that.
        deadline: Instant::now() + within * if super::in_rig() { 10 } else { 1 },
    }
}

pub(crate) const SOON: Duration = Duration::from_secs(20);

impl Warm {
    pub(crate) async fn c(source: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), source, flags);
        let run = if flags.contains(&"-static") { Run::new() } else { Run::new().with_libraries() };
        Self { image: run.prepare(&program).await.unwrap(), _dir: dir }
    }

    /// A static program with so much memory.
    pub(crate) async fn limited(source: &str, memory_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), source, &["-static"]);
        let mut run = Run::new();
        run.manifest.memory_bytes = memory_bytes;
        Self { image: run.prepare(&program).await.unwrap(), _dir: dir }
    }

    pub(crate) async fn python(script: &str) -> Option<Self> {
        let python = std::fs::canonicalize("/usr/bin/python3").ok()?;
        let image = Run::new().args(&["-I", "-c", script]).with_libraries().prepare(&python).await.unwrap();
        Some(Self { image, _dir: tempfile::tempdir().unwrap() })
    }

    pub(crate) async fn of(program: &Path) -> Self {
        Self { image: Run::new().prepare(program).await.unwrap(), _dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn start(&self) -> Box<dyn Sandbox> {
        assert_eq!(self.image.renewal(), Renewal::Reset, "the program has an image");
        self.image.clone().start().await.unwrap()
    }
}

pub(crate) async fn ask(sandbox: &mut Box<dyn Sandbox>, input: &[u8]) -> Reply {
    let reply = sandbox.invoke(call(input, &[], SOON)).await.unwrap();
    sandbox.reset().await.unwrap();
    reply
}

pub(crate) async fn text(sandbox: &mut Box<dyn Sandbox>, input: &[u8]) -> String {
    let reply = ask(sandbox, input).await;
    assert_eq!(reply.exit, ExitStatus::Code(0), "{}", String::from_utf8_lossy(&reply.output));
    String::from_utf8(reply.output.to_vec()).unwrap()
}

/// Counts in every kind of memory that a program has, and says what it found.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int bss, data = 5;
static _Thread_local int local = 7;
int main(void) {
    int on_stack = 3, *heap = malloc(100000), *mapped;
    char line[100];
    heap[20000] = 11;
    mapped = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mapped[100] = 13;
    printf("ready\n");
    fflush(stdout);
    ssize_t n = read(0, line, sizeof line);
    printf("%d %d %d %d %d %d %.*s\n", bss++, data++, local++, on_stack++, heap[20000]++, mapped[100]++, (int)n, line);
    char *more = malloc(1 << 22);
    memset(more, 'S', 1 << 22);
    char *moved = mremap(mapped, 1 << 16, 1 << 20, MREMAP_MAYMOVE);
    memset(moved, 'S', 1 << 20);
    memset(heap, 'S', 100000);
    close(2);
    chdir("/proc");
    return 0;
}"#;

#[tokio::test]
async fn every_call_begins_where_the_image_was_taken() {
    if !has_kvm("every_call_begins_where_the_image_was_taken") {
        return;
    }
    for flags in [&["-static"][..], &[]] {
        let warm = Warm::c(COUNTER, flags).await;
        let (mut one, mut other) = (warm.start().await, warm.start().await);
        for round in 0..20 {
            let input = format!("call {round}");
            let expected = format!("ready\n0 5 7 3 11 13 {input}\n");
            assert_eq!(text(&mut one, input.as_bytes()).await, expected);
            assert_eq!(text(&mut other, input.as_bytes()).await, expected);
        }
    }
}

#[tokio::test]
async fn what_stops_a_call_does_not_stop_the_next() {
    if !has_kvm("what_stops_a_call_does_not_stop_the_next") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <unistd.h>
        int main(void) {
            char line[10];
            read(0, line, sizeof line);
            switch (line[0]) {
            case 'l': for (;;) ;
            case 'w': for (;;) pause();
            case 'c': *(volatile int *)16 = 1;
            case 'o': for (;;) printf("too much\n");
            case 'm': for (;;) memset(malloc(1 << 20), 1, 1 << 20);
            }
            puts("fine");
        }"#;
    // Little memory: it is soon used up, on an emulated machine too.
    let warm = Warm::limited(source, 64 << 20).await;
    let mut sandbox = warm.start().await;
    let short = Duration::from_millis(50);
    for _ in 0..3 {
        assert_eq!(text(&mut sandbox, b"x").await, "fine\n");
        for input in [b"l", b"w"] {
            let result = sandbox.invoke(call(input, &[], short)).await;
            assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
            sandbox.reset().await.unwrap();
        }
        let crashed = ask(&mut sandbox, b"c").await;
        assert!(
            matches!(&crashed.exit, ExitStatus::Fault(fault) if fault.kind == "SIGSEGV"),
            "{:?}",
            crashed.exit
        );
        let over = sandbox.invoke(call(b"o", &[], SOON)).await;
        assert!(matches!(over, Err(Error::OutputLimit { .. })), "{over:?}");
        sandbox.reset().await.unwrap();
        let result = sandbox.invoke(call(b"m", &[], SOON)).await;
        let ended = match &result {
            Err(Error::MemoryLimit { .. }) => true,
            // malloc says so at the limit, and the program uses what it got.
            Ok(reply) => matches!(&reply.exit, ExitStatus::Fault(fault) if fault.kind == "SIGSEGV"),
            Err(_) => false,
        };
        assert!(ended, "{result:?}");
        sandbox.reset().await.unwrap();
    }
    assert_eq!(text(&mut sandbox, b"x").await, "fine\n");
}

#[tokio::test]
async fn streams_flow_through_a_restored_program() {
    if !has_kvm("streams_flow_through_a_restored_program") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        int main(void) {
            char buffer[65536];
            ssize_t n;
            write(1, "hello ", 6);
            while ((n = read(0, buffer, sizeof buffer)) > 0) write(1, buffer, n);
            return 0;
        }"#;
    let warm = Warm::c(source, &["-static"]).await;
    let mut sandbox = warm.start().await;
    for _ in 0..3 {
        let (to, input) = tokio::sync::mpsc::channel(1);
        let (output, mut from) = tokio::sync::mpsc::channel(1);
        let mut invocation = call(b"", &[], SOON);
        (invocation.input, invocation.output) = (Input::Stream(input), Output::Stream(output));
        let running = tokio::spawn(async move {
            let reply = sandbox.invoke(invocation).await;
            sandbox.reset().await.unwrap();
            (sandbox, reply)
        });
        assert_eq!(from.recv().await.unwrap(), "hello ");
        for round in 0..10u8 {
            to.send(Bytes::from(vec![round; 100])).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), vec![round; 100]);
        }
        drop(to);
        assert!(from.recv().await.is_none(), "the stream ends with the program");
        let (back, reply) = running.await.unwrap();
        assert_eq!(reply.unwrap().exit, ExitStatus::Code(0));
        sandbox = back;
    }
}

#[tokio::test]
async fn a_call_with_its_own_environment_starts_the_program_in_full() {
    if !has_kvm("a_call_with_its_own_environment_starts_the_program_in_full") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        int main(void) {
            char *name = getenv("NAME");
            getchar();
            printf("%s\n", name ? name : "nobody");
        }"#;
    let warm = Warm::c(source, &["-static"]).await;
    let mut sandbox = warm.start().await;
    for _ in 0..2 {
        let reply = sandbox.invoke(call(b"x", &[("NAME", "you")], SOON)).await.unwrap();
        assert_eq!(&reply.output[..], b"you\n");
        sandbox.reset().await.unwrap();
        assert_eq!(text(&mut sandbox, b"x").await, "nobody\n");
    }
}

#[tokio::test]
async fn a_program_that_never_reads_has_no_image_and_runs_in_full() {
    if !has_kvm("a_program_that_never_reads_has_no_image_and_runs_in_full") {
        return;
    }
    let warm = Warm::c("#include <stdio.h>\nint main(void) { puts(\"done\"); }", &["-static"]).await;
    assert_eq!(warm.image.renewal(), Renewal::Restart);
    let mut sandbox = warm.image.clone().start().await.unwrap();
    assert_eq!(text(&mut sandbox, b"").await, "done\n");
}

#[tokio::test]
async fn deploying_a_program_changes_nothing_in_its_shares() {
    if !has_kvm("deploying_a_program_changes_nothing_in_its_shares") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        int main(int n, char **args) {
            FILE *f = fopen("/share/file", args[1]);
            char line[9] = "none";
            if (n > 2) getchar();
            if (f) { fgets(line, 9, f); fprintf(f, "changed"); fclose(f); }
            printf("%s\n", line);
        }"#;
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), source, &["-static"]);
    for (args, renewal, after) in [
        (&["r+"][..], Renewal::Restart, "oldchanged"),
        (&["a"], Renewal::Restart, "oldchanged"),
        (&["r", "wait"], Renewal::Reset, "old"),
    ] {
        let share = tempfile::tempdir().unwrap();
        let file = share.path().join("file");
        std::fs::write(&file, "old").unwrap();
        let mut run = Run::new().args(args);
        let source = share.path().to_owned();
        run.manifest.shares.push(novum_sandbox::Share { source, target: "/share".into(), read_only: false });
        let image = run.prepare(&program).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(image.renewal(), renewal, "{args:?}");
        let mut sandbox = image.start().await.unwrap();
        text(&mut sandbox, b"x").await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
    }
}

#[tokio::test]
async fn a_file_that_is_open_in_the_image_may_be_replaced() {
    if !has_kvm("a_file_that_is_open_in_the_image_may_be_replaced") {
        return;
    }
    let source = r#"
        #include <fcntl.h>
        #include <unistd.h>
        int main(void) {
            char line[9];
            int fd = open("/share/model", O_RDONLY);
            read(0, line, 9);
            write(1, line, read(fd, line, 9));
            return fd < 0;
        }"#;
    let (dir, share) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = compile(dir.path(), source, &["-static"]);
    let model = |text: &str| {
        std::fs::write(share.path().join("new"), text).unwrap();
        std::fs::rename(share.path().join("new"), share.path().join("model")).unwrap();
    };
    model("old");
    let mut run = Run::new();
    let source = share.path().to_owned();
    run.manifest.shares.push(novum_sandbox::Share { source, target: "/share".into(), read_only: true });
    let image = run.prepare(&program).await.unwrap();
    assert_eq!(image.renewal(), Renewal::Reset);
    assert_eq!(text(&mut image.clone().start().await.unwrap(), b"x").await, "old");
    for expected in ["newer", "newest"] {
        model(expected);
        let mut sandbox = image.clone().start().await.unwrap();
        for _ in 0..2 {
            assert_eq!(text(&mut sandbox, b"x").await, expected);
        }
    }
}

const PYTHON: &str = r#"
import json, sys, threading, os
seen = []
data = json.load(sys.stdin)
seen.append(data)
path = "/tmp/kept"
old = os.path.exists(path)
open(path, "w").write("secret")
worker = threading.Thread(target=lambda: seen.append(1))
worker.start(); worker.join()
print(json.dumps({"double": [2 * n for n in data], "seen": len(seen), "old": old}))
"#;

#[tokio::test]
async fn python_answers_from_its_image() {
    if !has_program("python_answers_from_its_image", "/usr/bin/python3") {
        return;
    }
    let Some(warm) = Warm::python(PYTHON).await else { return };
    let mut sandbox = warm.start().await;
    for n in 0..10 {
        let input = format!("[{n}, {}]", n + 1);
        let expected = format!("{{\"double\": [{}, {}], \"seen\": 2, \"old\": false}}\n", 2 * n, 2 * n + 2);
        assert_eq!(text(&mut sandbox, input.as_bytes()).await, expected);
    }
}

#[tokio::test]
#[ignore = "a measurement; prints figures"]
async fn figures() {
    let hello = r#"
        #include <stdio.h>
        #include <unistd.h>
        int main(void) { char c[100]; ssize_t n = read(0, c, 100); write(1, c, n); return 0; }"#;
    let programs = [
        ("hello", Some(Warm::c(hello, &["-static"]).await)),
        ("python", Warm::python("import json, sys\nprint(json.dumps(json.load(sys.stdin)))").await),
    ];
    for (name, warm) in programs {
        let Some(warm) = warm else { continue };
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (mut starts, mut firsts, mut resets) = (vec![], vec![], vec![]);
        for _ in 0..60 {
            let at = Instant::now();
            let mut sandbox = warm.start().await;
            starts.push(at.elapsed());
            assert_eq!(text(&mut sandbox, b"[1]").await.trim(), "[1]");
            firsts.push(at.elapsed());
            for _ in 0..20 {
                let at = Instant::now();
                text(&mut sandbox, b"[1]").await;
                resets.push(at.elapsed());
            }
            drop(sandbox);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for (what, mut times) in [("start", starts), ("start to reply", firsts), ("reset and call", resets)] {
            times.sort();
            println!(
                "{name} {what}: min {:?} p50 {:?} p90 {:?}",
                times[0],
                times[times.len() / 2],
                times[times.len() * 9 / 10]
            );
        }
    }
}

/// The kernel's version, such as 6.12.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[tokio::test]
async fn what_sandboxes_hold_is_counted_and_what_they_share_is_not() {
    if !has_kvm("what_sandboxes_hold_is_counted_and_what_they_share_is_not") {
        return;
    }
    if kernel() < (6, 7) {
        let reason = "a kernel before 6.7 cannot tell whose pages are, so that a sandbox counts as all that it may use";
        return super::skipped("what_sandboxes_hold_is_counted_and_what_they_share_is_not", reason);
    }
    // 32 MiB in the image; a request writes as many MiB of it as its input has bytes.
    let warm = Warm::c(
        r#"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    char line[64], *memory = malloc(32 << 20);
    memset(memory, 1, 32 << 20);
    ssize_t n = read(0, line, sizeof line);
    memset(memory, 2, (size_t)n << 20);
    write(1, memory, 5);
    read(0, line, sizeof line);
    return 0;
}"#,
        &["-static"],
    )
    .await;
    let held = || warm.image.private_bytes();
    let mib = |n: u64| n << 20;
    assert_eq!(held(), 0, "nothing lives");
    let (mut one, two) = (warm.start().await, warm.start().await);
    let idle = held();
    assert!(idle > 0 && idle < mib(4), "{idle} bytes of two that share 32 MiB");
    // Held open at its second read, so that it is measured while it runs.
    let (input, pieces) = tokio::sync::mpsc::channel(1);
    let (output, mut written) = tokio::sync::mpsc::channel(4);
    let call =
        Invocation { input: Input::Stream(pieces), output: Output::Stream(output), ..call(b"", &[], SOON) };
    let running = tokio::spawn(async move { one.invoke(call).await.map(|_| one) });
    input.send(Bytes::from_static(b"eight...")).await.unwrap();
    assert_eq!(written.recv().await.unwrap().as_ref(), [2; 5]);
    let busy = held();
    assert!(
        busy >= idle + mib(8) && busy < idle + mib(12),
        "{busy} bytes after 8 MiB were written, {idle} before"
    );
    drop(input);
    drop((running.await.unwrap().unwrap(), two));
    let gone = Instant::now();
    while held() > 0 {
        assert!(gone.elapsed() < SOON, "{} bytes of nobody", held());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_thread_that_ran_last_may_have_ended_before_the_image() {
    if !has_kvm("the_thread_that_ran_last_may_have_ended_before_the_image") {
        return;
    }
    let source = r#"
        #include <pthread.h>
        #include <stdio.h>
        #include <unistd.h>
        static void *work(void *unused) {
            for (volatile long i = 0; i < 100 * 1000 * 1000; i++) ;
            return unused;
        }
        int main(void) {
            pthread_t thread;
            char line[16];
            pthread_create(&thread, 0, work, 0);
            ssize_t n = read(0, line, sizeof line);
            printf("%zd %d\n", n, pthread_join(thread, 0));
        }"#;
    let warm = Warm::c(source, &["-static", "-pthread"]).await;
    let mut sandbox = warm.start().await;
    for _ in 0..3 {
        assert_eq!(text(&mut sandbox, b"abc").await, "3 0\n");
    }
}
