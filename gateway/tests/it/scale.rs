//! Many functions, many invocations.

use novum_proto::gateway::v1 as proto;

use crate::harness::*;

const FUNCTIONS: usize = 1000;

#[tokio::test]
async fn a_thousand_functions_are_deployed_listed_and_survive_a_restart() {
    let gateway = Gateway::start(&[]);
    let client = gateway.functions().await;
    let deployers: Vec<_> = (0..4)
        .map(|part| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for n in (part..FUNCTIONS).step_by(4) {
                    deploy(&mut client, manifest(&format!("f{n:04}")), ECHO).await.unwrap();
                }
            })
        })
        .collect();
    for deployer in deployers {
        deployer.await.unwrap();
    }
    let gateway = Gateway::start_in(&gateway.kill(), &[]);
    let mut client = gateway.functions().await;
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListRequest { page_size: 300, page_token: token };
        let page = client.list(request).await.unwrap().into_inner();
        assert!(page.functions.len() <= 300);
        names.extend(page.functions.into_iter().map(|f| f.manifest.unwrap().name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (0..FUNCTIONS).map(|n| format!("f{n:04}")).collect::<Vec<_>>());
    for n in [0, 1, 499, 999] {
        let reply = invoke(&mut client, call(&format!("f{n:04}"), "x")).await.unwrap();
        assert_eq!(reply.payload.as_ref(), b"x");
    }
}

async fn invoke_many(gateway: &Gateway, total: usize) {
    let mut callers = Vec::new();
    for _ in 0..8 {
        let mut client = gateway.functions().await;
        callers.push(tokio::spawn(async move {
            for _ in 0..total / 8 {
                let reply = invoke(&mut client, call("echo", vec![1; 1000])).await.unwrap();
                assert_eq!(reply.payload.len(), 1000);
            }
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_invocations_do_not_grow_the_memory() {
    let gateway = Gateway::start(&[]);
    deploy(&mut gateway.functions().await, manifest("echo"), ECHO).await.unwrap();
    invoke_many(&gateway, 2000).await;
    let warm = gateway.stats().await.resident_bytes;
    invoke_many(&gateway, 10_000).await;
    let after = gateway.stats().await;
    let stats = &after.functions[0];
    assert_eq!((stats.succeeded, stats.running, stats.queued), (12_000, 0, 0));
    let grown = after.resident_bytes.saturating_sub(warm);
    assert!(grown < 16 << 20, "grown by {grown} bytes from {warm}");
}
