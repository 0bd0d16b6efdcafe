//! Compiles the `.proto` files with protox (no protoc needed).

use std::path::PathBuf;

const GATEWAY: [&str; 2] = ["novum/gateway/v1/functions.proto", "novum/gateway/v1/admin.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_GATEWAY").is_some() {
        let descriptors = protox::compile(GATEWAY, ["proto"])?;
        let out = PathBuf::from(std::env::var("OUT_DIR")?).join("gateway.v1.bin");
        std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
        tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    }
    Ok(())
}
