//! Trains ternary language models: `BitNet` b1.58 by straight-through estimation, on CPUs and NVIDIA GPUs.
//!
//! Text goes through the modules in this order: [`tokenizer`] learns a vocabulary, [`data`] makes token shards,
//! [`recipe`] says how to train, [`trainer`] does it with the [`learner`] of a device, [`trained`] measures the result, and
//! [`export`] writes it for transformers and for Trion. On a processor tensors and automatic differentiation are those of
//! `burn`; a GPU has a forward and a backward pass of its own. docs/training.md is the guide.

mod bitlinear;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod curve;
pub mod data;
mod error;
pub mod export;
mod files;
pub mod layout;
pub mod learner;
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
pub use burn_flex::{Flex, FlexDevice};
pub use burn_tensor::{FloatDType, Int, Tensor, TensorData};
pub use curve::{draw, draw_sizes};
pub use error::{Error, Result};
pub use learner::Device;
pub use trained::Trained;
pub use trainer::Trainer;
