//! The memory budget of a gateway, with real engines.

use novum_proto::gateway::v1 as proto;
use tonic::Code;

use crate::harness::*;

/// Holds 20 MiB as soon as it is started, and then copies its input byte by byte.
const HOLDS_20_MIB: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 320)
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 1))
        (loop $more
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (if (i32.load (i32.const 16)) (then
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
                (br $more))))))"#;

fn kept(name: &str, min: u32) -> proto::Manifest {
    proto::Manifest { pool: Some(proto::Pool { min: Some(min), ..Default::default() }), ..manifest(name) }
}

#[tokio::test]
async fn idle_sandboxes_make_room_for_running_ones_and_then_starts_are_refused() {
    let gateway = Gateway::start(&["--memory-budget", "100MiB"]);
    let mut client = gateway.functions().await;
    deploy(&mut client, kept("ready", 3), HOLDS_20_MIB.as_bytes()).await.unwrap();
    deploy(&mut client, kept("busy", 0), HOLDS_20_MIB.as_bytes()).await.unwrap();
    gateway.settle("ready", |now| now.idle == 3 && now.sandbox_bytes == 60 << 20).await;
    let mut running = Vec::new();
    for n in 1..=5 {
        running.push(hold(&mut client, "busy").await);
        gateway
            .settle("busy", |now| now.running == n && now.sandbox_bytes == u64::from(n) * (20 << 20))
            .await;
    }
    gateway.settle("ready", |now| now.idle == 0).await;
    let stats = gateway.stats().await;
    assert_eq!((stats.sandbox_bytes, stats.memory_budget_bytes), (100 << 20, 100 << 20));
    let refused = invoke(&mut client, call("busy", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for words in ["busy", "100 MiB", "--memory-budget", "novum stats"] {
        assert!(refused.message().contains(words), "{}", refused.message());
    }
    let page = String::from_utf8(gateway.http("GET /metrics HTTP/1.1", b"").2).unwrap();
    assert!(page.contains("novum_evictions_total{function=\"ready\",engine=\"wasm\"} 3"), "{page}");
    assert!(page.contains("novum_memory_budget_bytes 104857600"), "{page}");
    drop(running);
    gateway.settle("busy", |now| now.running == 0 && now.sandbox_bytes == 0).await;
    gateway.settle("ready", |now| now.idle == 3).await;
    assert!(invoke(&mut client, call("busy", "")).await.is_ok());
}
