//! The committed code of the guest's messages is what the `.proto` file says.

use std::path::Path;

#[test]
fn the_guests_messages_are_those_of_the_proto_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["novum/guest/v1/guest.proto"], [folder.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    prost_build::Config::new().out_dir(out.path()).compile_fds(descriptors).unwrap();
    let generated = std::fs::read_to_string(out.path().join("novum.guest.v1.rs")).unwrap();
    let generated = format!("//! The messages of guest.proto.\n{generated}");
    let committed = folder.join("src/guest/v1.rs");
    if std::env::var_os("NOVUM_GENERATE").is_some() {
        std::fs::write(&committed, &generated).unwrap();
    }
    let advice = "run `NOVUM_GENERATE=1 cargo test -p novum-proto --test generated` and commit the result";
    assert!(std::fs::read_to_string(&committed).unwrap_or_default() == generated, "{advice}");
}
