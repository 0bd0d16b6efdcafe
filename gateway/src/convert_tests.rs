//! Conversions: no message may panic the gateway, and errors name their field.

use proptest::prelude::*;

use super::*;

fn good() -> proto::Manifest {
    proto::Manifest { name: "echo".into(), ..Default::default() }
}

#[test]
fn defaults_are_filled_in() {
    let manifest = manifest_from(good()).unwrap();
    assert_eq!(manifest, Manifest::new("echo".parse().unwrap()));
}

#[test]
fn a_manifest_survives_the_round_trip() {
    let message = proto::Manifest {
        args: vec!["a".into()],
        env: [("A".into(), "1".into())].into(),
        allow_env: vec!["B".into()],
        ready: Some("up".into()),
        engine: proto::Engine::Process.into(),
        shares: vec![proto::SharedDirectory {
            source: "/srv".into(),
            target: "/data".into(),
            read_only: Some(false),
        }],
        pool: Some(proto::Pool { min: Some(1), ..Default::default() }),
        ..good()
    };
    let once = manifest_from(message).unwrap();
    assert_eq!(manifest_from(manifest(&once)).unwrap(), once);
    assert!(!once.shares[0].read_only);
}

#[test]
fn each_bad_field_is_named_as_in_the_request() {
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    let pool = |pool| Some(proto::Pool { ..pool });
    let share = |source: &str, target: &str| proto::SharedDirectory {
        source: source.into(),
        target: target.into(),
        read_only: None,
    };
    let cases = [
        ("manifest.name", proto::Manifest { name: "Bad".into(), ..good() }),
        ("manifest.engine", proto::Manifest { engine: 99, ..good() }),
        ("manifest.memory_bytes", proto::Manifest { memory_bytes: Some(1), ..good() }),
        ("manifest.output_bytes", proto::Manifest { output_bytes: Some(0), ..good() }),
        ("manifest.timeout", proto::Manifest { timeout: Some(negative), ..good() }),
        ("manifest.timeout", proto::Manifest { timeout: Some(prost_types::Duration::default()), ..good() }),
        ("manifest.args[0]", proto::Manifest { args: vec!["\0".into()], ..good() }),
        ("manifest.env.A=B", proto::Manifest { env: [("A=B".into(), String::new())].into(), ..good() }),
        ("manifest.ready", proto::Manifest { ready: Some("a\nb".into()), ..good() }),
        ("manifest.allow_env", proto::Manifest { allow_env: vec![String::new()], ..good() }),
        ("manifest.shares[0].source", proto::Manifest { shares: vec![share("x", "/x")], ..good() }),
        ("manifest.shares[0].target", proto::Manifest { shares: vec![share("/x", "x")], ..good() }),
        (
            "manifest.pool.max",
            proto::Manifest { pool: pool(proto::Pool { max: Some(0), ..Default::default() }), ..good() },
        ),
        (
            "manifest.pool.min",
            proto::Manifest { pool: pool(proto::Pool { min: Some(65), ..Default::default() }), ..good() },
        ),
        (
            "manifest.pool.idle",
            proto::Manifest {
                pool: pool(proto::Pool { idle: Some(negative), ..Default::default() }),
                ..good()
            },
        ),
    ];
    for (field, message) in cases {
        match manifest_from(message).unwrap_err() {
            Error::Fields(fields) => assert_eq!(fields[0].field, field),
            other => panic!("{field}: {other}"),
        }
    }
}

#[test]
fn a_digest_or_format_that_is_none_is_named() {
    let start = |sha256: &str, format| proto::deploy_request::Start {
        manifest: Some(good()),
        format,
        size_bytes: None,
        sha256: sha256.into(),
    };
    for (field, start) in [
        ("start.sha256", start("abc", 0)),
        ("start.format", start("", 7)),
        ("start.manifest", proto::deploy_request::Start::default()),
    ] {
        let error = deploy_start(start).unwrap_err();
        assert!(matches!(&error, Error::Fields(fields) if fields[0].field == field), "{error}");
    }
}

#[test]
fn text_is_cut_between_characters() {
    let mut text = "aä".to_owned();
    truncate(&mut text, 2);
    assert_eq!(text, "a");
}

fn any_duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    proptest::option::of(
        (any::<i64>(), any::<i32>()).prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
    )
}

fn any_pool() -> impl Strategy<Value = Option<proto::Pool>> {
    proptest::option::of(
        (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u32>>(), any_duration())
            .prop_map(|(min, max, queue, idle)| proto::Pool { min, max, queue, idle }),
    )
}

prop_compose! {
    fn any_manifest()(
        name in "\\PC{0,70}|[a-z][a-z0-9-]{0,70}",
        engine in any::<i32>(),
        entry in "\\PC*",
        args in proptest::collection::vec(".*", 0..4),
        env in proptest::collection::hash_map(".*", ".*", 0..4),
        allow_env in proptest::collection::vec(".*", 0..4),
        memory_bytes in any::<Option<u64>>(),
        output_bytes in any::<Option<u64>>(),
        timeout in any_duration(),
        shares in proptest::collection::vec((".*", ".*", any::<Option<bool>>()), 0..4),
        pool in any_pool(),
        ready in any::<Option<String>>(),
    ) -> proto::Manifest {
        let shares = shares.into_iter().map(|(source, target, read_only)| {
            proto::SharedDirectory { source, target, read_only }
        }).collect();
        let engine = if engine % 2 == 0 { engine % 5 } else { engine };
        proto::Manifest {
            name, engine, entry, args, env, allow_env, memory_bytes, timeout, output_bytes, shares, pool, ready,
        }
    }
}

proptest! {
    #[test]
    fn no_manifest_panics_and_an_accepted_one_is_possible(message in any_manifest()) {
        if let Ok(accepted) = manifest_from(message) {
            prop_assert_eq!(accepted.check(), Ok(()));
            prop_assert_eq!(manifest_from(manifest(&accepted)).unwrap(), accepted);
        }
    }

    #[test]
    fn no_bytes_panic_the_deploy_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(start) = <proto::deploy_request::Start as prost::Message>::decode(bytes.as_slice()) {
            let _ = deploy_start(start);
        }
    }
}
