//! Compiles the public API's `.proto` files with protox (no protoc needed). The guest's messages need nothing here.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/novum/gateway");
    #[cfg(feature = "gateway")]
    gateway()?;
    Ok(())
}

#[cfg(feature = "gateway")]
fn gateway() -> Result<(), Box<dyn std::error::Error>> {
    use protox::prost::Message;

    let files =
        ["functions.proto", "sandboxes.proto", "admin.proto"].map(|file| format!("novum/gateway/v1/{file}"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("gateway.v1.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
