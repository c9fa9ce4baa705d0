//! The mathematics of ternary language models: `BitNet` b1.58 and its kin.
//!
//! Modules in the order that data flows: a [`Config`] gives every size, [`quant`] makes trits and bytes of floats,
//! [`packing`] lays trits out for the kernels, a [`Model`] borrows weights, and a [`Session`] turns tokens into logits
//! in one buffer of the caller's, which a [`Sampler`] turns into the next token.
//!
//! Nothing here allocates, panics on any input, reads a clock or keeps global state, and every kernel gives the same
//! bits (`docs/numerics.md`).

#![no_std]

mod error;

mod config;
pub mod int6;
pub mod packing;
pub mod quant;
mod ternary;

mod kernel;
pub mod numeric;

mod kv_cache;
mod layer;
mod matrix;
mod model;

mod parallel;
mod probability;
mod sampler;
mod session;

pub use config::{Activation, Config};
pub use error::{Error, StateError};
pub use int6::Int6Matrix;
pub use kernel::{Isa, Kernel};
pub use kv_cache::CacheType;
pub use matrix::{FloatData, FloatMatrix, Linear, Matrix};
pub use model::{Layer, LayerNorm, Model, Projection};
pub use packing::Packing;
pub use parallel::{Parallel, Serial};
pub use probability::{TokenProbability, most_probable, token_probability};
pub use sampler::{Sampler, SamplerOptions, TokenLogit};
pub use session::{Batch, Logits, Observation, PreparedInput, Progress, Session, SessionOptions};
pub use ternary::{Rescale, TernaryMatrix};
