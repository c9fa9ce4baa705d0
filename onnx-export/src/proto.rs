//! The ONNX format: types made from `proto/onnx.proto` when the crate is built.

#![allow(missing_docs, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
