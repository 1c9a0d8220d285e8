//! Compiles the published .proto files without protoc; `bytes` fields become `Bytes`, slices of the frame. The files of
//! gRPC services are kept as descriptors too, for reflection.

#![allow(clippy::disallowed_methods, reason = "a build script writes what it makes")]

use std::path::Path;

use prost::Message;

/// Between nodes, and between clients and nodes, in frames.
const NATIVE: [&str; 5] = [
    "krita/v1/admin.proto",
    "krita/v1/data.proto",
    "krita/v1/gossip.proto",
    "krita/v1/meta.proto",
    "krita/v1/peer.proto",
];

/// Over gRPC, with what they import.
const GRPC: [&str; 5] = [
    "krita/v1/data.proto",
    "krita/v1/service.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = NATIVE.iter().chain(&GRPC);
    let descriptors = protox::compile(files, ["proto"])?;
    let mut published = descriptors.clone();
    published.file.retain(|file| GRPC.contains(&file.name()));
    for file in &mut published.file {
        file.source_code_info = None;
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("services.bin"), published.encode_to_vec())?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
