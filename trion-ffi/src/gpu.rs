//! GPU
//!
//! Models of a runtime whose `device` is a GPU have their weights there, beside those on the host, which the functions
//! of models read; their sessions compute there. Everything in this header works for them as it does on a CPU, with the
//! same bits. What is different:
//!
//!  - A session's keys, values and activations lie in the GPU's memory, which is taken from the driver when the session
//!    is made, and given back when it is freed. Its block, as trion_session_size() counts it, has the handle alone;
//!    its tokens and its last logits lie on the process's heap. A model or a session that does not fit on the GPU is
//!    refused with TRION_OUT_OF_MEMORY, also where the device was "auto".
//!  - The GPU computes whole batches of `max_batch` tokens. Budgets are spent so, and trion_session_cancel() ends a
//!    call between two. Choose a small `max_batch` where frames are short.
//!  - `threads` and `parallel_for` of the runtime, and `kernel` of a session, are for CPUs: they change nothing here.
//!  - Calls that compute or copy may also return TRION_DEVICE.
//!
//! The driver is NVIDIA's. It is looked for when a runtime asks for a GPU, and stays loaded. It reads environment
//! variables of its own (CUDA_VISIBLE_DEVICES), and the first time on a machine it compiles for about a second.

use std::mem::MaybeUninit;

#[cfg(feature = "cuda")]
use trion_engine::{Device, KernelSet, MemoryPlan};

use crate::edge::{call, handle, sized_output};
use crate::model::{Loaded, trion_model};
use crate::session::{Plan, trion_session_options};
use crate::status::{Failure, trion_error, trion_status};

/// Bytes of a GPU's memory. The driver takes some hundred MB besides, and sessions that advance together about as much
/// more as their `scratch` with a `max_batch` of 1, for the next power of two of them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_gpu_memory {
    /// The blocks' matrices and all norms, once for a model.
    pub weights: usize,
    /// The embedding, and the head where it is another matrix, once for a model.
    pub embedding: usize,
    /// Keys and values, for each session.
    pub cache: usize,
    /// Activations, scores and logits, for each session.
    pub scratch: usize,
}

/// What the model and a session with these options take of the GPU's memory; of a model on the CPU, what they would
/// take at most, on any GPU, and no GPU is needed for that. `memory_size` is sizeof(trion_gpu_memory), as with
/// trion_model_get_info(). Any thread. Since version 1.1.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_DEVICE in a library without TRION_FEATURE_CUDA.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_gpu_memory(
    model: *const trion_model,
    options: *const trion_session_options,
    memory: *mut trion_gpu_memory,
    memory_size: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for handles and options.
        let (model, plan) = unsafe {
            let model = &handle(model)?.0;
            (model, Plan::read(model, options)?)
        };
        // SAFETY: `memory` is valid for writing `memory_size` bytes.
        unsafe { sized_output(&planned(model, &plan)?, memory, memory_size) }
    })
}

/// More than a GPU has. What sessions take grows with them, up to a bound.
#[cfg(feature = "cuda")]
const MOST_MULTIPROCESSORS: usize = 1 << 16;

#[cfg(feature = "cuda")]
#[expect(clippy::unnecessary_wraps, reason = "a library without GPUs fails")]
fn planned(model: &Loaded, plan: &Plan) -> Result<trion_gpu_memory, Failure> {
    let (multiprocessors, set) = match &model.runtime.device {
        Device::Cuda(device) => (device.multiprocessors(), device.kernel_set()),
        // Those that take the most.
        _ => (MOST_MULTIPROCESSORS, KernelSet::Sm61),
    };
    let plan = MemoryPlan::new(model.model.core(), &plan.core, multiprocessors, set);
    Ok(trion_gpu_memory { weights: plan.weights, embedding: plan.embedding, cache: plan.cache, scratch: plan.scratch })
}

#[cfg(not(feature = "cuda"))]
fn planned(_model: &Loaded, _plan: &Plan) -> Result<trion_gpu_memory, Failure> {
    Err(Failure::Plain(trion_status::TRION_DEVICE, "this build of Trion knows no GPU: it lacks the feature cuda"))
}
