//! Ternary language models on NVIDIA GPUs, from a GTX 1050 up, with the CPU's logits bit for bit.
//!
//! ```no_run
//! use trion_core::SessionOptions;
//! use trion_cuda::{CudaDevice, CudaModel, CudaSession};
//! use trion_engine::Model;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = CudaDevice::open(0)?;
//! let model = CudaModel::upload(&device, Model::open("model.safetensors")?.core())?;
//! let mut session = CudaSession::new(&model, SessionOptions::new(512))?;
//! session.push(&[1, 2, 3])?;
//! let _ = session.advance(usize::MAX)?;
//! println!("{:?}", session.logits());
//! # Ok(()) }
//! ```
//!
//! The driver is looked for when a device is opened: a program with this crate in it runs on machines without one, where
//! [`CudaDevice::open`] says so. The kernels are PTX for compute capability 6.1, which every newer card takes too; they follow
//! `docs/numerics.md`, and a saved state moves between CPU and GPU.

pub mod check;
mod device;
mod error;
mod fives;
mod forward;
mod kernels;
mod layout;
pub mod measure;
mod memory;
mod model;
mod plan;
pub mod roofline;
mod session;
mod state;
mod together;
mod top_k;
mod workspace;

pub use device::CudaDevice;
pub use error::{Error, Result};
pub use kernels::KernelSet;
pub use model::CudaModel;
pub use plan::MemoryPlan;
pub use session::CudaSession;
pub use together::CudaBatch;
