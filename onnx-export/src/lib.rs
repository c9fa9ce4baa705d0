//! Ternary language models as ONNX graphs, and the proof that ONNX Runtime computes what Trion computes.

mod error;
pub mod names;
pub mod proto;

mod graph;
mod weights;

mod decoder;
mod export;
mod linear;
mod settings;

pub mod check;
pub mod runtime;

pub use error::{Error, Result};
pub use export::{DATA_FILE, ExportOptions, GRAPH_FILE, HeadFormat, WeightFormat, export};
