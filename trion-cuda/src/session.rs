//! A sequence of tokens at work on a GPU.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice, CudaStream, DevicePtr};
use trion_core::numeric::rotary_tables;
use trion_core::{Error as CoreError, Logits, Progress, SessionOptions};

use crate::device::CudaDevice;
use crate::error::{Doing, Error, Result};
use crate::forward::Pass;
use crate::kernels::Slot;
use crate::memory::{Piece, Sizes};
use crate::model::CudaModel;

/// What the CPU's session does, on a GPU, with the same bits: tokens are pushed, computed, and give logits.
///
/// Everything on the GPU happens in order, in a stream of the session's own; sessions of one model run side by side.
pub struct CudaSession {
    pub(crate) model: CudaModel,
    pub(crate) options: SessionOptions,
    pub(crate) stream: Arc<CudaStream>,
    /// Graphs are dropped before the memory that they name.
    graphs: Graphs,
    pub(crate) memory: CudaSlice<u8>,
    pub(crate) sizes: Sizes,
    pub(crate) base: u64,
    /// Tokens that were pushed.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) done: usize,
    /// The logits `[logits_rows, vocab_size]`; longer where there were more before.
    pub(crate) logits: Vec<f32>,
    /// Rows of logits that are there; 0 while there are none.
    pub(crate) logits_rows: usize,
    /// Whether they are in `logits`; if not, the device alone has them.
    pub(crate) logits_read: bool,
    /// Whether the device holds the logits of the last position too, in its first row.
    pub(crate) logits_on_device: bool,
    spent: usize,
}

/// The graphs of a token: without and with the choice of the next one.
struct Graphs([Option<CudaGraph>; 2]);

// SAFETY: the driver takes a graph's handles from any thread, from one at a time (CUDA driver API, Graph object thread
// safety). They belong to one session, and are made, launched and destroyed only through `&mut` of it.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Send for Graphs {}

// SAFETY: nothing is reached through a shared reference.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Sync for Graphs {}

impl CudaSession {
    /// A session without tokens. All its memory is allocated here.
    ///
    /// # Errors
    /// [`Error::Core`] for options outside their range, [`Error::Memory`] if it does not fit, [`Error::Driver`].
    pub fn new(model: &CudaModel, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let longest = config.max_position_embeddings;
        for (field, found, limit) in
            [("context", options.context, longest), ("max_batch", options.max_batch, options.context)]
        {
            if found == 0 || found > limit {
                return Err(CoreError::Options { field, found, limit }.into());
            }
        }
        let device = model.device();
        let sizes = Sizes::new(config, &options, device.multiprocessors());
        let stream = device.stream()?;
        let advice = "lower `context` or `max_batch`, or take an f16 cache";
        let memory = device.allocate(&stream, sizes.total(), "a session", advice)?;
        let base = memory.device_ptr(&stream).0;
        let mut session = CudaSession {
            model: model.clone(),
            options,
            stream,
            graphs: Graphs([None, None]),
            memory,
            sizes,
            base,
            tokens: Vec::new(),
            done: 0,
            logits: Vec::new(),
            logits_rows: 0,
            logits_read: false,
            logits_on_device: false,
            spent: 0,
        };
        // Sines are the host's, where they are the same on every machine.
        let (head_dim, theta) = (config.head_dim, config.rope_theta);
        let mut rotation = vec![0.0; options.context * head_dim];
        for (position, row) in rotation.chunks_exact_mut(head_dim).enumerate() {
            let (cos, sin) = row.split_at_mut(head_dim / 2);
            rotary_tables(theta, head_dim, position, cos, sin);
        }
        session.write(Piece::Rotation, 0, bytemuck::cast_slice(&rotation))?;
        session.write_slot()?;
        session.synchronize()?;
        Ok(session)
    }

    /// Where the kernels find everything of this session.
    pub(crate) fn slot(&self) -> Slot {
        let at = |piece| self.base + self.sizes.offset(piece) as u64;
        Slot {
            cache: at(Piece::Cache),
            rotation: at(Piece::Rotation),
            tokens: at(Piece::Tokens),
            context: self.options.context as i32,
            position: 0,
        }
    }

    /// Writes it where they look.
    pub(crate) fn write_slot(&mut self) -> Result<()> {
        let slot = self.slot();
        self.write(Piece::Slots, 0, bytemuck::bytes_of(&slot))
    }

    /// The model.
    pub fn model(&self) -> &CudaModel {
        &self.model
    }

    /// The options it was made with.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Every token so far, those not yet computed included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends tokens. [`CudaSession::advance`] computes them; until then the logits from before stay readable.
    ///
    /// # Errors
    /// [`Error::Core`] for no tokens, a token outside the vocabulary, or more than there are positions for (with
    /// [`Logits::All`], more than one batch); the session is unchanged.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(CoreError::NoTokens.into());
        }
        let vocab_size = self.model.config().vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(CoreError::TokenOutOfRange { token: *token, vocab_size }.into());
        }
        let (first, found) = (self.tokens.len(), self.tokens.len().saturating_add(tokens.len()));
        if found > self.options.context {
            return Err(CoreError::ContextOverflow { found, limit: self.options.context }.into());
        }
        if self.options.logits == Logits::All && found - self.done > self.options.max_batch {
            let (found, limit) = (found - self.done, self.options.max_batch);
            return Err(CoreError::BatchOverflow { found, limit }.into());
        }
        self.write(Piece::Tokens, 4 * first, bytemuck::cast_slice(tokens))?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Computes tokens that were pushed, in whole batches of `max_batch`, until `budget` row-blocks are spent; the last
    /// batch may go beyond. A token costs what [`trion_core::Session::row_blocks_per_token`] says. `usize::MAX`
    /// computes all, 0 nothing.
    ///
    /// # Errors
    /// [`Error::Core`] if nothing was pushed since the session was made or rewound, [`Error::Driver`] if the GPU fails:
    /// the batch can be begun again then, if the GPU can be used at all.
    pub fn advance(&mut self, budget: usize) -> Result<Progress> {
        let progress = self.compute(budget)?;
        if progress == Progress::Ready {
            self.read_logits()?;
        }
        Ok(progress)
    }

    /// [`CudaSession::advance`], but logits that are ready stay on the device, where they are not waited for.
    /// [`CudaSession::top_k`] finds the largest of them; [`CudaSession::read_logits`] copies them all.
    ///
    /// # Errors
    /// As [`CudaSession::advance`].
    pub fn compute(&mut self, budget: usize) -> Result<Progress> {
        self.spent = 0;
        if self.logits_rows > 0 && self.done == self.tokens.len() {
            return Ok(Progress::Ready);
        }
        if self.done == self.tokens.len() {
            return Err(CoreError::NoTokens.into());
        }
        self.logits_rows = 0;
        self.logits_on_device = false;
        while self.done < self.tokens.len() {
            if self.spent >= budget {
                self.synchronize()?;
                return Ok(Progress::More);
            }
            let batch = (self.tokens.len() - self.done).min(self.options.max_batch);
            let rows = match self.options.logits {
                Logits::All => batch,
                Logits::Last => usize::from(self.done + batch == self.tokens.len()),
            };
            if batch == 1 && rows == 1 {
                self.pass(1, 1).begin(self.done)?;
                self.graph(false)?.launch().doing("computing a token")?;
            } else {
                let pass = self.pass(batch, rows);
                pass.begin(self.done)?;
                pass.run()?;
            }
            self.done += batch;
            let cost = self.model.row_blocks_per_token(self.done);
            self.spent = self.spent.saturating_add(cost.saturating_mul(batch));
            if self.done == self.tokens.len() {
                self.computed_logits(rows);
            }
        }
        Ok(Progress::Ready)
    }

    /// Row-blocks that the last call of [`CudaSession::advance`] took.
    pub const fn spent(&self) -> usize {
        self.spent
    }

    /// Pushes tokens, computes them all and gives the logits `[rows, vocab_size]`.
    ///
    /// # Errors
    /// As [`CudaSession::push`] and [`CudaSession::advance`].
    pub fn evaluate(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.push(tokens)?;
        while self.advance(usize::MAX)? == Progress::More {}
        Ok(self.logits().unwrap_or(&[]))
    }

    /// Chooses and computes `count` tokens, each the one with the largest logit, without coming back to the host in
    /// between. The logits must be ready. Gives the tokens; the logits after the last are ready then.
    ///
    /// # Errors
    /// [`Error::Core`] if no logits are ready or there are not so many positions, [`Error::Driver`].
    pub fn greedy(&mut self, count: usize) -> Result<&[u32]> {
        let first = self.tokens.len();
        if self.logits_rows == 0 || self.done != first {
            return Err(CoreError::NoTokens.into());
        }
        let found = first.saturating_add(count);
        if found > self.options.context {
            return Err(CoreError::ContextOverflow { found, limit: self.options.context }.into());
        }
        if count > 0 {
            self.put_last_logits()?;
            // The kernel that chooses a token goes on to the next position.
            self.pass(1, 1).begin(first - 1)?;
            self.logits_rows = 0;
            for _ in 0..count {
                self.graph(true)?.launch().doing("computing a token")?;
            }
            let mut chosen = vec![0_u32; count];
            self.read(Piece::Tokens, 4 * first, bytemuck::cast_slice_mut(&mut chosen))?;
            self.tokens.extend_from_slice(&chosen);
            self.done = found;
            self.computed_logits(1);
            self.read_logits()?;
        }
        Ok(&self.tokens[first..])
    }

    /// The logits `[rows, vocab_size]`, once they are ready and until [`CudaSession::advance`] begins new ones: one row
    /// for the last token computed, or with [`Logits::All`] one for each token computed since the logits before. None
    /// while [`CudaSession::compute`] has left them on the device.
    pub fn logits(&self) -> Option<&[f32]> {
        let rows = self.logits_rows;
        (rows > 0 && self.logits_read).then(|| &self.logits[..rows * self.model.config().vocab_size])
    }

    /// Forgets all tokens from position `len` on. Push at least one before the next [`CudaSession::advance`], unless
    /// just those are forgotten that were pushed after the logits: these are ready then.
    ///
    /// # Errors
    /// [`Error::Core`] if there are fewer tokens.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.tokens.len() {
            return Err(CoreError::RewindBeyond { found: len, limit: self.tokens.len() }.into());
        }
        if len < self.done {
            self.logits_rows = 0;
        }
        self.tokens.truncate(len);
        self.done = self.done.min(len);
        Ok(())
    }

    /// What the kernels of a batch work with.
    pub(crate) fn pass(&self, batch: usize, logits_rows: usize) -> Pass<'_> {
        let device: &CudaDevice = self.model.device();
        Pass {
            model: &self.model.0,
            kernels: device.kernels(),
            stream: &self.stream,
            sizes: &self.sizes,
            base: self.base,
            cache: self.options.cache,
            batch,
            logits_rows,
            is_prompt: batch > 1,
        }
    }

    /// The graph that computes a token; with the choice of the token, if `choose` says so.
    fn graph(&mut self, choose: bool) -> Result<&CudaGraph> {
        let which = usize::from(choose);
        if self.graphs.0[which].is_none() {
            self.graphs.0[which] = Some(self.capture(choose)?);
        }
        self.graphs.0[which].as_ref().ok_or_else(no_graph)
    }

    fn capture(&self, choose: bool) -> Result<CudaGraph> {
        // Other threads go on with their streams.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).doing("beginning a graph")?;
        let pass = self.pass(1, 1);
        let worked = if choose { pass.choose() } else { Ok(()) }.and_then(|()| pass.run());
        // Ended in any case, so that the stream can be used again.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        graph.doing("making a graph")?.ok_or_else(no_graph)
    }

    /// Notes that the device has computed logits.
    fn computed_logits(&mut self, rows: usize) {
        self.logits_rows = rows;
        self.logits_read = false;
        self.logits_on_device = rows == 1;
    }

    /// Whether logits are ready, here or on the device alone.
    pub const fn has_logits(&self) -> bool {
        self.logits_rows > 0
    }

    /// Copies the logits that [`CudaSession::compute`] left on the device, if any, for [`CudaSession::logits`].
    ///
    /// # Errors
    /// [`Error::Driver`]; the logits are still on the device then.
    pub fn read_logits(&mut self) -> Result<()> {
        if self.logits_rows > 0 && !self.logits_read {
            let count = self.logits_rows * self.model.config().vocab_size;
            let mut logits = std::mem::take(&mut self.logits);
            logits.resize(logits.len().max(count), 0.0);
            let outcome = self.read(Piece::Logits, 0, bytemuck::cast_slice_mut(&mut logits[..count]));
            self.logits = logits;
            outcome?;
            self.logits_read = true;
        }
        Ok(())
    }

    /// Sees to it that the logits of the last position, which must be there, are in the device's first row.
    pub(crate) fn put_last_logits(&mut self) -> Result<()> {
        if !self.logits_on_device {
            self.read_logits()?;
            let vocab_size = self.model.config().vocab_size;
            let last = self.logits[(self.logits_rows - 1) * vocab_size..self.logits_rows * vocab_size].to_vec();
            self.write(Piece::Logits, 0, bytemuck::cast_slice(&last))?;
            self.logits_on_device = true;
        }
        Ok(())
    }

    /// Writes bytes into a piece of the device's memory.
    pub(crate) fn write(&mut self, piece: Piece, offset: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let first = self.sizes.offset(piece) + offset;
        let mut to = self.memory.slice_mut(first..first + bytes.len());
        self.stream.memcpy_htod(bytes, &mut to).doing("copying to the GPU")
    }

    /// Reads bytes from a piece of the device's memory, when all that came before is done.
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

impl Drop for CudaSession {
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
