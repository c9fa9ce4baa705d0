//! Ternary language models as ONNX graphs, and the proof that ONNX Runtime computes what Trion computes.

pub mod names;
pub mod proto;
