//! Compiles the contract with a protobuf compiler written in Rust, so that no `protoc` needs to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=gridwork");
    let descriptors = protox::compile(["gridwork/shard/v1/shard.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
