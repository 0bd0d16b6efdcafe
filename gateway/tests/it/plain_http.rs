//! The HTTP face.

use novum_proto::gateway::v1 as proto;

use crate::harness::*;

fn json(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)))
}

#[tokio::test]
async fn a_function_is_invoked_with_a_body() {
    let gateway = Gateway::start(&[]);
    deploy(&mut gateway.functions().await, manifest("echo"), ECHO).await.unwrap();
    let (status, head, body) = gateway.http("POST /v1/functions/echo:invoke HTTP/1.1", b"hello");
    assert_eq!((status, body.as_slice()), (200, &b"hello"[..]));
    for header in [
        "novum-invocation-id: ",
        "novum-exit-status: 0",
        "novum-engine: wasm",
        "novum-cold: true",
        "novum-version: 1",
        "server-timing: queued;dur=",
        ", sandbox-ready;dur=",
        ", guest-resumed;dur=",
        ", first-byte;dur=",
        ", answered;dur=",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
}

#[tokio::test]
async fn a_failed_run_is_a_bad_gateway_with_its_output() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("says"), says("out", "", 3)).await.unwrap();
    deploy(&mut client, manifest("trap"), TRAP).await.unwrap();
    let loops = proto::Manifest { timeout: millis(100), ..manifest("loop") };
    deploy(&mut client, loops, LOOP).await.unwrap();
    let (status, head, body) = gateway.http("POST /v1/functions/says:invoke HTTP/1.1", b"");
    assert_eq!((status, body.as_slice()), (502, &b"out"[..]));
    assert!(head.contains("novum-exit-status: 3"), "{head}");
    let (status, head, _) = gateway.http("POST /v1/functions/trap:invoke HTTP/1.1", b"");
    assert!(status == 502 && head.contains("novum-fault: trap"), "{head}");
    let (status, head, body) = gateway.http("POST /v1/functions/loop:invoke HTTP/1.1", b"");
    assert!(status == 504 && head.contains("novum-invocation-id: "), "{head}");
    assert_eq!(json(&body)["code"], "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn options_come_in_headers_and_in_the_query() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let env = proto::Manifest { allow_env: vec!["LANG_CODE".into()], ..manifest("env") };
    deploy(&mut client, env, ENVIRONMENT).await.unwrap();
    let post = |query: &str, headers: &str| {
        gateway.http(&format!("POST /v1/functions/env:invoke{query} HTTP/1.1{headers}"), b"")
    };
    let header = post("", "\r\nnovum-env-lang_code: de");
    assert_eq!((header.0, header.2.as_slice()), (200, &b"LANG_CODE=de\0"[..]));
    assert_eq!(post("?env.LANG_CODE=a%20b&version=1", "").2, b"LANG_CODE=a b\0");
    for (query, headers, status, field) in [
        ("?env.HOME=x", "", 400, "env.HOME"),
        ("?timeout_ms=soon", "", 400, "timeout_ms"),
        ("?verison=1", "", 400, "verison"),
        ("", "\r\nnovum-timeout-ms: -1", 400, "novum-timeout-ms"),
    ] {
        let (got, _, body) = post(query, headers);
        assert_eq!((got, json(&body)["field"].as_str()), (status, Some(field)), "{query}");
    }
    let (status, _, body) = post("?version=7", "");
    assert_eq!((status, json(&body)["code"].as_str()), (404, Some("NOT_FOUND")));
}

#[tokio::test]
async fn lists_health_and_metrics_are_served() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    for name in ["a", "b", "c"] {
        deploy(&mut client, manifest(name), ECHO).await.unwrap();
    }
    invoke(&mut client, call("b", "x")).await.unwrap();
    let (status, _, body) = gateway.http("GET /v1/functions?page_size=2 HTTP/1.1", b"");
    let page = json(&body);
    assert_eq!((status, page["functions"].as_array().unwrap().len()), (200, 2));
    assert_eq!(page["next_page_token"], "b");
    let (_, _, body) = gateway.http("GET /v1/functions?page_token=b HTTP/1.1", b"");
    let page = json(&body);
    assert_eq!(
        (page["functions"][0]["name"].as_str(), page["next_page_token"].as_str()),
        (Some("c"), Some(""))
    );
    let (_, _, body) = gateway.http("GET /v1/functions/a HTTP/1.1", b"");
    let one = json(&body);
    assert_eq!((one["engine"].as_str(), one["manifest"]["pool"]["max"].as_u64()), (Some("wasm"), Some(64)));
    assert_eq!(gateway.http("GET /healthz HTTP/1.1", b"").0, 200);
    let (status, head, body) = gateway.http("GET /metrics HTTP/1.1", b"");
    let text = String::from_utf8(body).unwrap();
    assert!(status == 200 && head.contains("openmetrics-text"), "{head}");
    for line in [
        "novum_invocations_total{function=\"b\",engine=\"wasm\",outcome=\"ok\"} 1",
        "novum_starts_total{function=\"b\",engine=\"wasm\",start=\"cold\"} 1",
        "novum_run_seconds_count{function=\"b\",engine=\"wasm\"} 1",
        "novum_sandbox_ready_seconds_count{function=\"b\",engine=\"wasm\"} 1",
        "novum_answered_seconds_count{function=\"b\",engine=\"wasm\"} 1",
        "novum_queue_depth{function=\"a\",engine=\"wasm\"} 0",
        "novum_functions 3",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_say_what_there_is() {
    let gateway = Gateway::start(&[]);
    let (status, _, body) = gateway.http("GET /nothing HTTP/1.1", b"");
    assert_eq!(status, 404);
    assert!(json(&body)["message"].as_str().unwrap().contains("/v1/functions"));
    let (status, _, body) = gateway.http("POST /v1/functions/echo HTTP/1.1", b"");
    assert_eq!((status, json(&body)["field"].as_str()), (400, Some("path")));
    assert_eq!(gateway.http("PUT /v1/functions HTTP/1.1", b"").0, 405);
}
