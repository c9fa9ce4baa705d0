//! A session: one model, one buffer of the caller's, and everything between a prompt and its logits.

mod batch;
mod forward;
mod memory;
mod observe;
mod pass;
mod state;

use crate::Error;
use crate::config::Config;
use crate::kernel::Kernel;
use crate::kv_cache::CacheType;
use crate::model::Model;
use crate::parallel::Parallel;
pub use batch::Batch;
use batch::Member;
use forward::{Cursor, forward};
use memory::Memory;
pub use observe::{Observation, PreparedInput};

/// Which positions' logits a session computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Those of the last token that was pushed: what generation needs.
    Last,
    /// Those of every token that was pushed since logits were last ready; at most `max_batch` at once.
    All,
}

/// What decides the size of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions; at most the model's `max_position_embeddings`.
    pub context: usize,
    /// Tokens of a prompt that go through the model together. More is faster and takes more memory; results are the
    /// same.
    pub max_batch: usize,
    /// Number format of keys and values.
    pub cache: CacheType,
    /// Which logits are kept.
    pub logits: Logits,
}

impl SessionOptions {
    /// A session of `context` positions for generation, with a single-precision cache and batches of up to 64.
    pub const fn new(context: usize) -> Self {
        SessionOptions { context, max_batch: 64, cache: CacheType::F32, logits: Logits::Last }
    }
}

/// How far [`Session::advance`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The budget was spent first: call again.
    More,
    /// Logits are ready.
    Ready,
}

/// A model at work on one sequence of tokens.
///
/// Everything that changes lies in the buffer and in a few numbers, so a session can be dropped, saved or forked at any
/// time. It does not allocate, and after [`Session::new`] only pushing, rewinding and loading can fail.
pub struct Session<'m, 'b> {
    model: &'m Model<'m>,
    options: SessionOptions,
    kernel: Kernel,
    memory: Memory<'b>,
    counts: Counts,
}

/// How far a session is.
struct Counts {
    /// Tokens that were pushed.
    len: usize,
    /// Tokens whose keys and values are in the cache.
    done: usize,
    cursor: Cursor,
    /// Rows of logits that are there; 0 while there are none.
    logits_rows: usize,
    /// Row-blocks of the last call of [`Session::advance`] or [`Batch::advance`].
    spent: usize,
}

impl Counts {
    /// Whether tokens were pushed that are not computed.
    fn has_work(&self) -> bool {
        self.done < self.len
    }

    /// Whether the logits are those of the last token.
    fn is_ready(&self) -> bool {
        self.logits_rows > 0 && self.done == self.len
    }
}

impl<'m, 'b> Session<'m, 'b> {
    /// Bytes of the buffer that a session needs; `usize::MAX` if they cannot be counted.
    pub const fn bytes(config: &Config, options: &SessionOptions) -> usize {
        memory::bytes(config, options)
    }

    /// Row-blocks that one token costs when it is alone and is number `positions` of its sequence: the unit of
    /// [`Session::advance`]'s budget. A token of a prompt costs the same, less the head's share.
    pub fn row_blocks_per_token(model: &Model<'_>, positions: usize) -> usize {
        forward::row_blocks_per_token(model, positions)
    }

    /// A session without tokens, in `buffer` of at least [`Session::bytes`], at any address.
    ///
    /// # Errors
    /// [`Error::Options`] or [`Error::BufferTooSmall`].
    pub fn new(
        model: &'m Model<'m>,
        options: SessionOptions,
        kernel: Kernel,
        buffer: &'b mut [u8],
    ) -> Result<Self, Error> {
        let limit = model.config().max_position_embeddings;
        for (field, found, limit) in
            [("context", options.context, limit), ("max_batch", options.max_batch, options.context)]
        {
            if found == 0 || found > limit {
                return Err(Error::Options { field, found, limit });
            }
        }
        let memory = Memory::new(model.config(), &options, buffer)?;
        let counts = Counts { len: 0, done: 0, cursor: Cursor::IDLE, logits_rows: 0, spent: 0 };
        Ok(Session { model, options, kernel, memory, counts })
    }

    /// The model.
    pub const fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// The options it was made with.
    pub const fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Every token so far, those not yet computed included.
    pub fn tokens(&self) -> &[u32] {
        &self.memory.tokens[..self.counts.len]
    }

    /// Appends tokens. [`Session::advance`] computes them; until then the logits from before stay readable.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::TokenOutOfRange`], [`Error::ContextOverflow`] or [`Error::BatchOverflow`]; the
    /// session is unchanged.
    pub fn push(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        let vocab_size = self.model.config().vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { token: *token, vocab_size });
        }
        let found = self.counts.len.saturating_add(tokens.len());
        if found > self.options.context {
            return Err(Error::ContextOverflow { found, limit: self.options.context });
        }
        if self.options.logits == Logits::All && found - self.counts.done > self.options.max_batch {
            return Err(Error::BatchOverflow { found: found - self.counts.done, limit: self.options.max_batch });
        }
        if self.options.logits == Logits::All {
            // A batch under way gives logits for its own tokens only: it is begun again, with these.
            self.counts.cursor = Cursor::IDLE;
        }
        self.memory.tokens[self.counts.len..found].copy_from_slice(tokens);
        self.counts.len = found;
        Ok(())
    }

    /// Computes tokens that were pushed, for at most `budget` row-blocks or the smallest possible step beyond.
    ///
    /// A row-block is 32 rows of a ternary matrix, 4 to 16 rows of a float one, a pass over 256 elements, or 32
    /// positions of one head of attention, for one token. The same calls do the same work everywhere, and no division
    /// into calls changes a bit of the result. `usize::MAX` computes all.
    ///
    /// When `parallel` says that it is cancelled, the call returns [`Progress::More`] after the unit under way; the
    /// tokens stay pushed, and the next call begins their batch again.
    ///
    /// # Errors
    /// [`Error::NoTokens`] if nothing was pushed since the session was made or rewound.
    pub fn advance(&mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress, Error> {
        self.advance_with(budget, parallel, None)
    }

    fn advance_with(
        &mut self,
        budget: usize,
        parallel: &dyn Parallel,
        observer: Option<&mut dyn FnMut(Observation<'_>)>,
    ) -> Result<Progress, Error> {
        self.counts.spent = 0;
        if self.counts.is_ready() {
            return Ok(Progress::Ready);
        }
        if !self.counts.has_work() {
            return Err(Error::NoTokens);
        }
        Ok(forward(&mut [Member::from(self)], budget, parallel, observer))
    }

    /// Row-blocks that the last call of [`Session::advance`] took, or this session's share of [`Batch::advance`].
    pub const fn spent(&self) -> usize {
        self.counts.spent
    }

    /// The logits `[rows, vocab_size]`, once they are ready and until [`Session::advance`] begins new ones: one row for
    /// the last token computed, or with [`Logits::All`] one for each token computed since the logits before.
    pub fn logits(&self) -> Option<&[f32]> {
        let rows = self.counts.logits_rows;
        (rows > 0).then(|| &self.memory.logits[..rows * self.model.config().vocab_size])
    }

    /// Forgets all tokens from position `len` on. Push at least one before the next [`Session::advance`], unless just
    /// those are forgotten that were pushed after the logits: these are ready then.
    ///
    /// # Errors
    /// [`Error::RewindBeyond`] if there are fewer tokens.
    pub fn rewind(&mut self, len: usize) -> Result<(), Error> {
        if len > self.counts.len {
            return Err(Error::RewindBeyond { found: len, limit: self.counts.len });
        }
        if len < self.counts.done {
            self.counts.logits_rows = 0;
        }
        if len < self.counts.len {
            // A batch under way may hold tokens that are forgotten now; what it has of the others is computed again.
            self.counts.cursor = Cursor::IDLE;
        }
        self.counts.len = len;
        self.counts.done = self.counts.done.min(len);
        Ok(())
    }
}
