//! Functions and Admin as a generated client sees them.

use bytes::Bytes;
use novum_proto::gateway::v1::{self as proto, invoke_stream_response::Part};
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_deployed_function_is_invoked_and_tells_where_its_time_went() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let deployed = deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let function = deployed.function.unwrap();
    assert!(deployed.changed && function.version == 1);
    assert_eq!(function.manifest.unwrap().engine(), proto::Engine::Wasm);
    let reply = invoke(&mut client, call("echo", "hello")).await.unwrap();
    assert_eq!((reply.payload.as_ref(), exit_code(&reply), reply.version), (&b"hello"[..], Some(0), 1));
    assert_eq!(reply.invocation_id.len(), 16);
    let timings = reply.timings.unwrap();
    assert!(timings.cold && timings.engine() == proto::Engine::Wasm);
    assert!(timings.run.is_some() && timings.first_byte.is_some() && timings.queued.is_some());
    let clocks = timings.clocks.unwrap();
    let moments = [clocks.sandbox_ready, clocks.guest_resumed, clocks.first_byte, clocks.answered];
    let moments = moments.map(|moment| std::time::Duration::try_from(moment.unwrap()).unwrap());
    assert!(moments.is_sorted() && !moments[0].is_zero(), "{moments:?}");
    let stats = gateway.function_stats("echo").await;
    assert_eq!((stats.succeeded, stats.cold, stats.running), (1, 1, 0));
    assert!(stats.latency_p50.is_some());
}

#[tokio::test]
async fn the_exit_code_the_log_and_the_output_come_back() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("says"), says("out", "err", 3)).await.unwrap();
    deploy(&mut client, manifest("trap"), TRAP).await.unwrap();
    let reply = invoke(&mut client, call("says", "")).await.unwrap();
    assert_eq!((reply.payload.as_ref(), reply.log_tail.as_ref()), (&b"out"[..], &b"err"[..]));
    assert_eq!(exit_code(&reply), Some(3));
    let reply = invoke(&mut client, call("trap", "")).await.unwrap();
    let Some(proto::exit_status::Status::Fault(fault)) = reply.exit.unwrap().status else {
        panic!("no fault")
    };
    assert!(fault.kind == "trap" && fault.message.contains("unreachable"), "{fault:?}");
    assert_eq!(gateway.function_stats("trap").await.failed, 1);
}

#[tokio::test]
async fn streams_carry_input_output_log_and_the_end() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let Held { input, mut replies } = hold(&mut client, "echo").await;
    for n in 0..50_u8 {
        let piece = Bytes::from(vec![n; 10_000]);
        input.send(stream_input(piece.clone())).await.unwrap();
        let mut got = Vec::new();
        while got.len() < piece.len() {
            match replies.message().await.unwrap().unwrap().part {
                Some(Part::Output(bytes)) => got.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, piece);
    }
    drop(input);
    let Some(Part::End(end)) = replies.message().await.unwrap().unwrap().part else { panic!("no end") };
    assert_eq!(end.exit.unwrap().status, Some(proto::exit_status::Status::Code(0)));
    assert!(end.timings.is_some() && end.version == 1);
    assert!(replies.message().await.unwrap().is_none());

    deploy(&mut client, manifest("says"), says("out", "err", 0)).await.unwrap();
    let requests = tokio_stream::iter([stream_start("says")]);
    let mut replies = client.invoke_stream(requests).await.unwrap().into_inner();
    let (mut out, mut log) = (Vec::new(), Vec::new());
    while let Some(reply) = replies.message().await.unwrap() {
        match reply.part.unwrap() {
            Part::Output(bytes) => out.extend_from_slice(&bytes),
            Part::Log(bytes) => log.extend_from_slice(&bytes),
            Part::End(_) => {}
        }
    }
    assert_eq!((out.as_slice(), log.as_slice()), (&b"out"[..], &b"err"[..]));
}

#[tokio::test]
async fn the_environment_is_the_manifests_and_what_it_allows() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    let manifest = proto::Manifest {
        env: [("A".into(), "1".into()), ("B".into(), "2".into())].into(),
        allow_env: vec!["B".into(), "C".into()],
        ..manifest("env")
    };
    deploy(&mut client, manifest, ENVIRONMENT).await.unwrap();
    let with = |env: &[(&str, &str)]| proto::InvokeRequest {
        env: env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        ..call("env", "")
    };
    let reply = invoke(&mut client, with(&[("B", "x"), ("C", "y")])).await.unwrap();
    let text = String::from_utf8(reply.payload.to_vec()).unwrap();
    let mut variables: Vec<_> = text.split_terminator('\0').collect();
    variables.sort_unstable();
    assert_eq!(variables, ["A=1", "B=x", "C=y"]);
    let refused = invoke(&mut client, with(&[("PATH", "/")])).await.unwrap_err();
    assert_eq!(field(&refused), "env.PATH");
}

#[tokio::test]
async fn an_unknown_function_is_not_found_and_the_nearest_is_named() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("thumbnail"), ECHO).await.unwrap();
    let error = invoke(&mut client, call("thumbnial", "")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("did you mean \"thumbnail\"?"), "{error}");
    let error = invoke(&mut client, call("other", "")).await.unwrap_err();
    assert!(error.message().contains("novum functions"), "{error}");
    let old = proto::InvokeRequest { version: 9, ..call("thumbnail", "") };
    assert_eq!(invoke(&mut client, old).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn every_bad_field_of_a_request_is_named() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let bad = proto::Manifest { pool: pool(0, 0), ..manifest("echo") };
    assert_eq!(field(&deploy(&mut client, bad, ECHO).await.unwrap_err()), "manifest.pool.max");
    assert_eq!(field(&deploy(&mut client, manifest("Bad Name"), ECHO).await.unwrap_err()), "manifest.name");
    assert_eq!(field(&deploy(&mut client, manifest("empty"), "").await.unwrap_err()), "chunk");
    let late = proto::InvokeRequest { timeout: millis(-1), ..call("echo", "") };
    assert_eq!(field(&invoke(&mut client, late).await.unwrap_err()), "timeout");
    let no_start = tokio_stream::iter([proto::DeployRequest::default()]);
    assert_eq!(field(&client.deploy(no_start).await.unwrap_err()), "start");
    let no_start = tokio_stream::iter([stream_input("x")]);
    assert_eq!(field(&client.invoke_stream(no_start).await.unwrap_err()), "start");
    let page = proto::ListRequest { page_size: 1001, ..Default::default() };
    assert_eq!(field(&client.list(page).await.unwrap_err()), "page_size");
    let page = proto::ListRequest { page_token: "No Token".into(), ..Default::default() };
    assert_eq!(field(&client.list(page).await.unwrap_err()), "page_token");
}

#[tokio::test]
async fn engines_say_why_they_are_not_there() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.functions().await;
    for engine in gateway.stats().await.engines {
        assert_eq!(engine.available, engine.reason.is_empty(), "{engine:?}");
        if !engine.available {
            let wanted = proto::Manifest { engine: engine.engine, ..manifest("x") };
            let error = deploy(&mut client, wanted, ECHO).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            use tonic_types::StatusExt;
            let violations = error.get_details_precondition_failure().unwrap().violations;
            assert_eq!(violations[0].description, engine.reason);
        }
    }
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let gateway = Gateway::start(&[]);
    let mut health = HealthClient::new(gateway.channel().await);
    for service in ["", "novum.gateway.v1.Functions", "novum.gateway.v1.Admin"] {
        let reply = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(reply.into_inner().status, 1, "{service}");
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let mut reflection = ServerReflectionClient::new(gateway.channel().await);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut replies =
        reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        replies.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["novum.gateway.v1.Functions", "novum.gateway.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
}

#[tokio::test]
async fn the_same_port_answers_on_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("novum.sock");
    let listen = format!("unix:{}", path.display());
    let gateway = Gateway::start(&["--listen", &listen]);
    let channel = tonic::transport::Endpoint::from_shared(listen).unwrap().connect().await.unwrap();
    let mut client = novum_proto::gateway::v1::functions_client::FunctionsClient::new(channel);
    deploy(&mut client, manifest("echo"), ECHO).await.unwrap();
    let reply = invoke(&mut gateway.functions().await, call("echo", "both")).await.unwrap();
    assert_eq!(reply.payload.as_ref(), b"both");
}
