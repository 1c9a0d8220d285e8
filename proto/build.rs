//! Compiles the published .proto files without protoc; `bytes` fields become `Bytes`, slices of the frame.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["krita/v1/data.proto", "krita/v1/gossip.proto", "krita/v1/meta.proto", "krita/v1/peer.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
