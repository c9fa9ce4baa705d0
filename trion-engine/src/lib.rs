//! Ternary language models with an operating system around them: files, tokenizer, chat templates, threads, generation.
//!
//! ```no_run
//! use trion_engine::{GenerateOptions, Model, Pool, generate};
//!
//! # fn main() -> trion_engine::Result<()> {
//! let model = Model::open("model.safetensors")?;
//! let pool = Pool::new(0)?;
//! let text = generate(&model, "Once upon a time", &GenerateOptions::default(), &pool, |piece| {
//!     print!("{piece}");
//!     true
//! })?;
//! # Ok(()) }
//! ```
//!
//! [`Model::open`] reads Hugging Face directories, GGUF files and Trion's own packed files; a packed file is mapped and
//! used in place. [`Session`] is the core's session with its model and its memory.

mod error;

#[cfg(not(any(unix, windows)))]
mod heap;
mod map;
mod source;

mod gguf;
mod hf;
mod pack;
mod packed;

mod batch;
mod device;
mod model;
#[cfg(feature = "cuda")]
mod placed;
mod pool;
mod random;
mod session;

#[cfg(feature = "text")]
pub mod chat_template;
#[cfg(feature = "text")]
pub mod constraint;
#[cfg(feature = "text")]
mod generate;
#[cfg(feature = "text")]
pub mod text_stream;
#[cfg(feature = "text")]
pub mod tokenizer;

pub use batch::Batch;
#[cfg(feature = "text")]
pub use constraint::{Constraint, ConstraintState, Grammar, Mask};
pub use device::{Device, DeviceName};
pub use error::{Error, Result};
#[cfg(feature = "text")]
pub use generate::{GenerateOptions, Generated, StopReason, continue_session, generate, prompt_tokens};
pub use model::Model;
pub use pack::{FloatFormat, PackOptions, quantize};
pub use pool::Pool;
pub use random::{SHAPE_2B4T, random_model};
pub use session::Session;
pub use trion_core::{
    Activation, CacheType, Config, Isa, Kernel, Logits, Observation, Packing, Parallel, PreparedInput, Progress,
    Sampler, SamplerOptions, Serial, SessionOptions, TokenLogit,
};
#[cfg(feature = "cuda")]
pub use trion_cuda::{Error as CudaError, KernelSet, MemoryPlan, roofline};
