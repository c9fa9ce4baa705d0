//! A sequence of tokens at work on a GPU.

use trion_core::numeric::rotary_tables;
use trion_core::{Error as CoreError, Logits, Progress, SessionOptions};

use crate::error::Result;
use crate::kernels::Slot;
use crate::memory::{Piece, Sizes};
use crate::model::CudaModel;
use crate::workspace::{Step, Workspace};

/// What the CPU's session does, on a GPU, with the same bits: tokens are pushed, computed, and give logits.
///
/// Everything on the GPU happens in order, in a stream of the session's own; sessions of one model run side by side.
pub struct CudaSession {
    pub(crate) options: SessionOptions,
    pub(crate) work: Workspace,
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
    pub(crate) spent: usize,
}

impl CudaSession {
    /// A session without tokens. All its memory is allocated here.
    ///
    /// # Errors
    /// [`crate::Error::Core`] for options outside their range, [`crate::Error::Memory`] if it does not fit,
    /// [`crate::Error::Driver`].
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
        let sizes = Sizes::session(config, &options, model.device().multiprocessors());
        let advice = "lower `context` or `max_batch`, or take an f16 cache";
        let mut session = CudaSession {
            options,
            work: Workspace::new(model, sizes, "a session", advice)?,
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
        session.work.write(Piece::Rotation, 0, bytemuck::cast_slice(&rotation))?;
        let slot = session.slot();
        session.work.write(Piece::Slots, 0, bytemuck::bytes_of(&slot))?;
        session.work.synchronize()?;
        Ok(session)
    }

    /// Where the kernels find everything of this session.
    pub(crate) fn slot(&self) -> Slot {
        Slot {
            cache: self.work.at(Piece::Cache),
            rotation: self.work.at(Piece::Rotation),
            tokens: self.work.at(Piece::Tokens),
            context: self.options.context as i32,
            position: self.done as i32,
        }
    }

    /// The model.
    pub fn model(&self) -> &CudaModel {
        &self.work.model
    }

    /// The options it was made with.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Every token so far, those not yet computed included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens at the end of [`CudaSession::tokens`] that are not yet computed.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// Appends tokens. [`CudaSession::advance`] computes them; until then the logits from before stay readable.
    ///
    /// # Errors
    /// [`crate::Error::Core`] for no tokens, a token outside the vocabulary, or more than there are positions for (with
    /// [`Logits::All`], more than one batch); the session is unchanged.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(CoreError::NoTokens.into());
        }
        let vocab_size = self.work.model.config().vocab_size;
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
        self.work.write(Piece::Tokens, 4 * first, bytemuck::cast_slice(tokens))?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Computes tokens that were pushed, in whole batches of `max_batch`, until `budget` row-blocks are spent; the last
    /// batch may go beyond. A token costs what [`trion_core::Session::row_blocks_per_token`] says. `usize::MAX`
    /// computes all, 0 nothing.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if nothing was pushed since the session was made or rewound, [`crate::Error::Driver`] if the
    /// GPU fails: the batch can be begun again then, if the GPU can be used at all.
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
                self.work.synchronize()?;
                return Ok(Progress::More);
            }
            let batch = (self.tokens.len() - self.done).min(self.options.max_batch);
            let rows = match self.options.logits {
                Logits::All => batch,
                Logits::Last => usize::from(self.done + batch == self.tokens.len()),
            };
            if batch == 1 && rows == 1 {
                self.begin(self.done)?;
                self.work.launch(self.step(false))?;
            } else {
                let pass = self.work.pass(self.options.cache, batch, rows, batch > 1);
                pass.begin(self.done)?;
                pass.run()?;
            }
            self.done += batch;
            let cost = self.work.model.row_blocks_per_token(self.done);
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
    /// [`crate::Error::Core`] if no logits are ready or there are not so many positions, [`crate::Error::Driver`].
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
            self.begin(first - 1)?;
            self.logits_rows = 0;
            for _ in 0..count {
                self.work.launch(self.step(true))?;
            }
            let mut chosen = vec![0_u32; count];
            self.work.read(Piece::Tokens, 4 * first, bytemuck::cast_slice_mut(&mut chosen))?;
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
        (rows > 0 && self.logits_read).then(|| &self.logits[..rows * self.work.model.config().vocab_size])
    }

    /// Forgets all tokens from position `len` on. Push at least one before the next [`CudaSession::advance`], unless
    /// just those are forgotten that were pushed after the logits: these are ready then.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if there are fewer tokens.
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

    /// Says at which position the next kernels begin.
    fn begin(&self, position: usize) -> Result<()> {
        self.work.pass(self.options.cache, 1, 1, false).begin(position)
    }

    /// One token; with the choice of the token, if `chooses` says so.
    fn step(&self, chooses: bool) -> Step {
        Step { cache: self.options.cache, sessions: 1, chooses }
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
    /// [`crate::Error::Driver`]; the logits are still on the device then.
    pub fn read_logits(&mut self) -> Result<()> {
        if self.logits_rows > 0 && !self.logits_read {
            let count = self.logits_rows * self.work.model.config().vocab_size;
            let mut logits = std::mem::take(&mut self.logits);
            logits.resize(logits.len().max(count), 0.0);
            let outcome = self.work.read(Piece::Logits, 0, bytemuck::cast_slice_mut(&mut logits[..count]));
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
            let vocab_size = self.work.model.config().vocab_size;
            let last = self.logits[(self.logits_rows - 1) * vocab_size..self.logits_rows * vocab_size].to_vec();
            self.work.write(Piece::Logits, 0, bytemuck::cast_slice(&last))?;
            self.logits_on_device = true;
        }
        Ok(())
    }
}
