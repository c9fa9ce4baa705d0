//! Trains ternary language models: `BitNet` b1.58 by straight-through estimation, on CPUs and NVIDIA GPUs.
//!
//! Text goes through the modules in this order: [`tokenizer`] learns a vocabulary, [`data`] makes token shards,
//! [`recipe`] says how to train, [`trainer`] does it, [`trained`] measures the result, and [`export`] writes it for
//! transformers and for Trion. Tensors, automatic differentiation and back ends are those of `burn`; docs/training.md is
//! the guide.

mod bitlinear;
mod curve;
pub mod data;
mod error;
pub mod export;
mod files;
pub mod layout;
pub mod model;
pub mod optimizer;
pub mod parameters;
pub mod recipe;
pub mod schedule;
pub mod shape;
pub mod tokenizer;
pub mod trained;
pub mod trainer;

pub use bitlinear::{Activations, Arithmetic};
pub use burn_autodiff::Autodiff;
#[cfg(feature = "cuda")]
pub use burn_cuda::{Cuda, CudaDevice};
pub use burn_flex::{Flex, FlexDevice};
pub use burn_tensor::{FloatDType, Int, Tensor, TensorData, backend::Backend};
pub use curve::draw;
pub use error::{Error, Result};
pub use trained::Trained;
pub use trainer::Trainer;
