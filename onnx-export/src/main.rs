//! The command `trion-onnx`.

fn main() {}
