//! The types of the ONNX format, from its schema. No `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let schema = protox::compile(["proto/onnx.proto"], ["proto"])?;
    prost_build::Config::new().disable_comments(["."]).compile_fds(schema)?;
    Ok(())
}
