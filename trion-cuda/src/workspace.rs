//! Memory on the GPU and a stream in which everything there happens in order: what a session, or several together, work
//! with.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice, CudaStream, DevicePtr};
use trion_core::CacheType;

use crate::error::{Doing, Error, Result};
use crate::forward::Pass;
use crate::memory::{Piece, Sizes};
use crate::model::CudaModel;

/// A token of each session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Number format of the caches.
    pub(crate) cache: CacheType,
    pub(crate) sessions: usize,
    /// Whether the tokens are chosen first: those with the largest logits.
    pub(crate) chooses: bool,
}

pub(crate) struct Workspace {
    pub(crate) model: CudaModel,
    pub(crate) stream: Arc<CudaStream>,
    /// Graphs are dropped before the memory that they name.
    graphs: Graphs,
    pub(crate) memory: CudaSlice<u8>,
    pub(crate) sizes: Sizes,
    base: u64,
}

/// The graphs of the steps that were taken so far.
struct Graphs(Vec<(Step, CudaGraph)>);

// SAFETY: the driver takes a graph's handles from any thread, from one at a time (CUDA driver API, Graph object thread
// safety). They belong to one workspace, and are made, launched and destroyed only through `&mut` of it.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Send for Graphs {}

// SAFETY: nothing is reached through a shared reference.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Sync for Graphs {}

impl Workspace {
    /// Allocates; `what` it is for and `advice` what to lower are for the error.
    pub(crate) fn new(model: &CudaModel, sizes: Sizes, what: &'static str, advice: &'static str) -> Result<Self> {
        let device = model.device();
        let stream = device.stream()?;
        let memory = device.allocate(&stream, sizes.total(), what, advice)?;
        let base = memory.device_ptr(&stream).0;
        Ok(Workspace { model: model.clone(), stream, graphs: Graphs(Vec::new()), memory, sizes, base })
    }

    /// The address of a piece.
    pub(crate) fn at(&self, piece: Piece) -> u64 {
        self.base + self.sizes.offset(piece) as u64
    }

    /// A batch of tokens: `is_prompt` says that they are consecutive ones of one session, rather than one of each.
    pub(crate) fn pass(&self, cache: CacheType, batch: usize, logits_rows: usize, is_prompt: bool) -> Pass<'_> {
        Pass { work: self, kernels: self.model.device().kernels(), cache, batch, logits_rows, is_prompt }
    }

    /// Takes a step, as a graph.
    pub(crate) fn launch(&mut self, step: Step) -> Result<()> {
        let known = self.graphs.0.iter().position(|(known, _)| *known == step);
        let index = if let Some(index) = known {
            index
        } else {
            let graph = self.capture(step)?;
            self.graphs.0.push((step, graph));
            self.graphs.0.len() - 1
        };
        self.graphs.0[index].1.launch().doing("computing a token")
    }

    fn capture(&self, step: Step) -> Result<CudaGraph> {
        // Other threads go on with their streams.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).doing("beginning a graph")?;
        let pass = self.pass(step.cache, step.sessions, step.sessions, false);
        let worked = if step.chooses { pass.choose() } else { Ok(()) }.and_then(|()| pass.run());
        // Ended in any case, so that the stream can be used again.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        graph.doing("making a graph")?.ok_or_else(no_graph)
    }

    /// Writes bytes into a piece.
    pub(crate) fn write(&mut self, piece: Piece, offset: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let first = self.sizes.offset(piece) + offset;
        let mut to = self.memory.slice_mut(first..first + bytes.len());
        self.stream.memcpy_htod(bytes, &mut to).doing("copying to the GPU")
    }

    /// Reads bytes from a piece, when all that came before is done.
    pub(crate) fn read(&self, piece: Piece, offset: usize, bytes: &mut [u8]) -> Result<()> {
        if !bytes.is_empty() {
            let first = self.sizes.offset(piece) + offset;
            let from = self.memory.slice(first..first + bytes.len());
            self.stream.memcpy_dtoh(&from, bytes).doing("copying from the GPU")?;
        }
        self.synchronize()
    }

    /// Waits for the device.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().doing("waiting for the GPU")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // Memory and graphs may still be in use; an error has been reported by whoever put the work there, or never
        // will be.
        let _ = self.stream.synchronize();
    }
}

/// The driver said that it had made a graph, and gave none.
fn no_graph() -> Error {
    Error::Driver {
        doing: "making a graph",
        source: cudarc::driver::DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_UNKNOWN),
    }
}
