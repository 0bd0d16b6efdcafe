//! Limits that hold: a bad program ends clearly, and the next call finds a working engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use novum_sandbox::{Error, ExitStatus, LogSink, Output};

use super::programs::{ECHO, flood, program, spin};
use super::{Bed, SANDBOXES, fault, invocation, run, run_with};

/// The engine still serves.
async fn assert_serves(bed: &Bed) {
    assert_eq!(bed.call(ECHO, b"still here").await.unwrap().output, "still here");
}

#[tokio::test]
async fn a_loop_ends_at_its_deadline() {
    let bed = Bed::new();
    let image = bed.image(spin(), |_| {}).await.unwrap();
    let mut call = invocation(b"");
    call.deadline = Instant::now() + Duration::from_millis(30);
    match run_with(&image, call).await {
        Err(Error::Deadline { after }) => assert!(after >= Duration::from_millis(20), "{after:?}"),
        other => panic!("{other:?}"),
    }
    assert_serves(&bed).await;
}

#[tokio::test]
async fn a_wait_ends_at_its_deadline() {
    // Sleeps for an hour by poll_oneoff (subscription_clock, relative, monotonic).
    let sleep = program(
        r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))"#,
        "(i32.store (i32.const 112) (i32.const 1))
         (i64.store (i32.const 120) (i64.const 3600000000000))
         (drop (call $poll (i32.const 96) (i32.const 512) (i32.const 1) (i32.const 1024)))",
    );
    let bed = Bed::new();
    let image = bed.image(sleep, |_| {}).await.unwrap();
    let mut call = invocation(b"");
    call.deadline = Instant::now() + Duration::from_millis(30);
    assert!(matches!(run_with(&image, call).await, Err(Error::Deadline { .. })));
    assert_serves(&bed).await;
}

/// On a current-thread runtime: the loops must give way, and must not keep the thread when there are many.
#[tokio::test]
async fn loops_do_not_keep_their_neighbours_from_running() {
    let bed = Bed::new();
    let image = bed.image(spin(), |_| {}).await.unwrap();
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut sandbox = Arc::clone(&image).start().await.unwrap();
        let mut call = invocation(b"");
        call.deadline = Instant::now() + Duration::from_secs(3600);
        loops.spawn(async move { sandbox.invoke(call).await });
    }
    let echo = bed.image(ECHO, |_| {}).await.unwrap();
    for _ in 0..100 {
        assert!(run(&echo, b"x").await.unwrap().exit.success());
        tokio::task::yield_now().await;
    }
    assert!(loops.try_join_next().is_none(), "the loops are still running");
    loops.shutdown().await;
    assert_serves(&bed).await;
}

#[tokio::test]
async fn growth_beyond_the_limit_is_refused_and_visible_to_the_program() {
    // Grows until it is refused, then writes how many pages it has.
    let grow = program(
        "",
        "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
         (i32.store (i32.const 100) (memory.size))
         (call $say (i32.const 1) (i32.const 100) (i32.const 4))",
    );
    let bed = Bed::new();
    let image = bed.image(grow, |manifest| manifest.memory_bytes = 10 * 65536).await.unwrap();
    let reply = run(&image, b"").await.unwrap();
    assert_eq!((reply.exit, &reply.output[..]), (ExitStatus::Code(0), &[10, 0, 0, 0][..]));
}

#[tokio::test]
async fn a_crash_after_a_refused_growth_is_the_memory_limit() {
    let grow = program(
        "",
        "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable",
    );
    let bed = Bed::new();
    let image = bed.image(grow, |manifest| manifest.memory_bytes = 1 << 20).await.unwrap();
    match run(&image, b"").await {
        Err(Error::MemoryLimit { limit_bytes }) => assert_eq!(limit_bytes, 1 << 20),
        other => panic!("{other:?}"),
    }
    assert_serves(&bed).await;
}

#[tokio::test]
async fn a_module_that_starts_above_its_limit_is_refused_at_deployment() {
    let bed = Bed::new();
    let big = "(module (memory (export \"memory\") 100) (func (export \"_start\")))";
    match bed.image(big, |manifest| manifest.memory_bytes = 1 << 20).await.map(drop) {
        Err(Error::Manifest { field, .. }) => assert_eq!(field, "memory"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn several_memories_share_one_limit() {
    let two = "(module (memory (export \"memory\") 9) (memory 9) (func (export \"_start\")))";
    let bed = Bed::new();
    let limit =
        |pages: u64| move |manifest: &mut novum_sandbox::Manifest| manifest.memory_bytes = pages * 65536;
    assert!(bed.image(two, limit(17)).await.is_err());
    assert!(bed.image(two, limit(18)).await.is_ok());
}

#[tokio::test]
async fn table_growth_counts_and_ends() {
    let grow = "(module (table $t 1 funcref)
      (func (export \"_start\")
        (loop $again (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
        (if (i32.gt_u (table.size $t) (i32.const 100000)) (then unreachable))))";
    let bed = Bed::new();
    assert!(bed.call(grow, b"").await.unwrap().exit.success());
    let image = bed.image(grow, |manifest| manifest.memory_bytes = 64 << 10).await.unwrap();
    assert!(run(&image, b"").await.unwrap().exit.success());
}

#[tokio::test]
async fn garbage_collected_memory_counts() {
    // Keeps a list of structures alive, for ever.
    let hoard = "(module (type $node (struct (field (ref null $node)) (field i64)))
      (func (export \"_start\") (local $list (ref null $node))
        (loop $again
          (local.set $list (struct.new $node (local.get $list) (i64.const 1)))
          (br $again))))";
    let bed = Bed::new();
    let image = bed.image(hoard, |manifest| manifest.memory_bytes = 4 << 20).await.unwrap();
    match run(&image, b"").await {
        Err(Error::MemoryLimit { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_serves(&bed).await;
}

#[tokio::test]
async fn endless_recursion_is_a_fault() {
    let deep = "(module (func $f (param i64) (result i64) (i64.add (call $f (local.get 0)) (i64.const 1)))
      (func (export \"_start\") (drop (call $f (i64.const 0)))))";
    let bed = Bed::new();
    let image = bed.image(deep, |_| {}).await.unwrap();
    for _ in 0..20 {
        let (kind, message) = fault(run(&image, b"").await.unwrap());
        assert_eq!(kind, "trap");
        assert!(message.contains("call stack exhausted"), "{message}");
    }
    assert_serves(&bed).await;
}

#[tokio::test]
async fn output_beyond_the_limit_ends_the_run() {
    let bed = Bed::new();
    let image = bed.image(ECHO, |_| {}).await.unwrap();
    for (size, fits) in [(1000, true), (1001, false)] {
        let mut call = invocation(&vec![1; size]);
        call.output = Output::Collect { limit_bytes: 1000 };
        match run_with(&image, call).await {
            Ok(reply) => assert!(fits && reply.output.len() == size),
            Err(Error::OutputLimit { limit_bytes }) => assert!(!fits && limit_bytes == 1000),
            Err(other) => panic!("{other}"),
        }
    }
    let image = bed.image(flood(1), |_| {}).await.unwrap();
    assert!(matches!(run(&image, b"").await, Err(Error::OutputLimit { .. })));
    assert_serves(&bed).await;
}

#[tokio::test]
async fn a_flood_of_log_ends_at_the_deadline() {
    struct Count(std::sync::atomic::AtomicUsize);
    impl LogSink for Count {
        fn write(&self, bytes: &[u8]) {
            assert!(bytes.len() <= 64 << 10);
            self.0.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
        }
    }
    let bed = Bed::new();
    let image = bed.image(flood(2), |_| {}).await.unwrap();
    let log = Arc::new(Count(0.into()));
    let mut call = invocation(b"");
    call.deadline = Instant::now() + Duration::from_millis(50);
    call.log = Arc::clone(&log) as Arc<dyn LogSink>;
    assert!(matches!(run_with(&image, call).await, Err(Error::Deadline { .. })));
    assert!(log.0.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert_serves(&bed).await;
}

#[tokio::test]
async fn a_full_engine_refuses_by_capacity_and_recovers() {
    let bed = Bed::new();
    let image = bed.image(ECHO, |_| {}).await.unwrap();
    let mut started = Vec::new();
    let refusal = loop {
        match Arc::clone(&image).start().await {
            Ok(sandbox) => started.push(sandbox),
            Err(error) => break error,
        }
        assert!(started.len() <= SANDBOXES as usize);
    };
    assert!(matches!(refusal, Error::Capacity { .. }), "{refusal}");
    assert_eq!(started.len(), SANDBOXES as usize);
    started.pop();
    assert_serves(&bed).await;
}

#[tokio::test]
async fn open_files_are_bounded() {
    // Opens its first shared directory again and again, and exits with 1 when it is refused.
    let open = program(
        r#"(import "wasi_snapshot_preview1" "path_open"
             (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
           (data (i32.const 200) ".")"#,
        "(loop $again
           (br_if $again (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 200) (i32.const 1)
             (i32.const 2) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 300))))
           (call $exit (i32.const 1)))",
    );
    let bed = Bed::new();
    let source = bed.dir.path().to_owned();
    let share = novum_sandbox::Share { source, target: "/data".into(), read_only: true };
    let image = bed.image(open, |manifest| manifest.shares.push(share)).await.unwrap();
    let reply = run(&image, b"").await.unwrap();
    assert!(!reply.exit.success(), "{:?}", reply.exit);
    assert_serves(&bed).await;
}

#[tokio::test]
async fn a_long_call_moves_to_a_thread_of_low_priority() {
    /// The threads that ran the call, in order.
    #[derive(Default)]
    struct Threads(parking_lot::Mutex<Vec<(String, i32)>>);
    impl LogSink for Threads {
        fn write(&self, _bytes: &[u8]) {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let nice = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
            let mut seen = self.0.lock();
            if seen.last().is_none_or(|(last, _)| *last != name) {
                seen.push((name, nice));
            }
        }
    }
    let bed = Bed::new();
    let image = bed.image(flood(2), |_| {}).await.unwrap();
    let threads = Arc::new(Threads::default());
    let mut call = invocation(b"");
    call.deadline = Instant::now() + Duration::from_millis(500);
    call.log = Arc::clone(&threads) as Arc<dyn LogSink>;
    assert!(matches!(run_with(&image, call).await, Err(Error::Deadline { .. })));
    let seen = threads.0.lock();
    assert!(seen.len() >= 2, "it stayed on {seen:?}");
    assert_ne!(seen[0].0, "wasm-long");
    for (name, nice) in &seen[1..] {
        assert_eq!((name.as_str(), *nice), ("wasm-long", seen[0].1 + 5));
    }
}
