//! Turns `v1.proto` into Rust without protoc, so that a build needs no system package.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=v1.proto");
    let descriptors = protox::compile(["v1.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
