//! Several sessions of one model that advance together.

use trion_core::{CacheType, Error as CoreError, Parallel, Progress, StateError};

use crate::error::Result;
use crate::kernels::Slot;
use crate::memory::{Piece, Sizes};
use crate::model::CudaModel;
use crate::session::CudaSession;
use crate::workspace::{Step, Workspace};

/// Where sessions of one model go through it together, one token of each at a time: each weight is read once for all.
///
/// It keeps scratch memory alone. Tokens, caches and logits lie in the sessions, any of which may do something else, or
/// take no part, between two calls. All logits are those that the session would give alone, bit for bit.
pub struct CudaBatch {
    work: Workspace,
    max_sessions: usize,
    max_context: usize,
}

impl CudaBatch {
    /// Scratch memory for at most so many sessions, the longest context among which is `max_context`.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if one of them is zero or the context longer than the model's,
    /// [`crate::Error::Memory`] if it does not fit, [`crate::Error::Driver`].
    pub fn new(model: &CudaModel, max_sessions: usize, max_context: usize) -> Result<Self> {
        let config = model.config();
        let most =
            [("sessions", max_sessions, MOST_SESSIONS), ("context", max_context, config.max_position_embeddings)];
        for (field, found, limit) in most {
            if found == 0 || found > limit {
                return Err(CoreError::Options { field, found, limit }.into());
            }
        }
        let sizes = Sizes::together(config, max_sessions, max_context, model.device().multiprocessors());
        let work = Workspace::new(model, sizes, "sessions together", "lower the number of sessions or their context")?;
        Ok(CudaBatch { work, max_sessions, max_context })
    }

    /// The most sessions, and the longest context among them, that there is scratch memory for.
    pub const fn room(&self) -> (usize, usize) {
        (self.max_sessions, self.max_context)
    }

    /// Computes tokens that were pushed, of all sessions, until `budget` row-blocks are spent; the last step may go
    /// beyond. Sessions that have more than one token to compute go ahead alone, in whole batches of their `max_batch`;
    /// then each gives one token, all together. A session without tokens to compute takes no part. `usize::MAX`
    /// computes all, 0 nothing. [`CudaSession::spent`] of each session is its share.
    ///
    /// [`Progress::Ready`] says that no session has tokens left to compute; [`CudaSession::logits`] tells of each. Of
    /// `parallel` only [`Parallel::cancelled`] is asked, before each step: the call returns [`Progress::More`] then.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if no session has tokens to compute or logits, for a session of another upload, too many
    /// sessions or too long a context; nothing has changed. [`crate::Error::Driver`] if the GPU fails: the step can be
    /// begun again then, if the GPU can be used at all.
    pub fn advance(
        &mut self,
        sessions: &mut [&mut CudaSession],
        budget: usize,
        parallel: &dyn Parallel,
    ) -> Result<Progress> {
        self.check(sessions)?;
        if sessions.iter().all(|session| session.pending() == 0 && session.logits_rows == 0) {
            return Err(CoreError::NoTokens.into());
        }
        for session in sessions.iter_mut() {
            session.spent = 0;
            if session.pending() > 0 {
                session.logits_rows = 0;
                session.logits_on_device = false;
            } else {
                session.read_logits()?;
            }
        }
        let mut left = budget;
        for session in sessions.iter_mut() {
            while session.pending() > 1 {
                if left == 0 || parallel.cancelled() {
                    return Ok(Progress::More);
                }
                let before = session.spent;
                // One batch.
                let _ = session.advance(1)?;
                left = left.saturating_sub(session.spent);
                session.spent = session.spent.saturating_add(before);
            }
        }
        for cache in [CacheType::F32, CacheType::F16] {
            let mut rows: Vec<&mut CudaSession> = Vec::new();
            for session in sessions.iter_mut() {
                if session.options.cache == cache && session.pending() == 1 {
                    rows.push(session);
                }
            }
            if rows.is_empty() {
                continue;
            }
            if left == 0 || parallel.cancelled() {
                return Ok(Progress::More);
            }
            self.enter(&rows, |session| session.done)?;
            self.work.launch(Step { cache, sessions: rows.len(), chooses: false })?;
            self.leave(&mut rows, 1)?;
            for session in rows {
                let cost = self.work.model.row_blocks_per_token(session.done);
                session.spent = session.spent.saturating_add(cost);
                left = left.saturating_sub(cost);
            }
        }
        Ok(Progress::Ready)
    }

    /// Chooses and computes `count` tokens of each session, each the one with the largest logit, without coming back to the
    /// host in between. The logits of all sessions must be ready, and are again afterwards; the tokens are in
    /// [`CudaSession::tokens`].
    ///
    /// # Errors
    /// [`crate::Error::Core`] if logits are not ready, positions are lacking or caches are of different types, besides what
    /// [`CudaBatch::advance`] refuses; nothing has changed. [`crate::Error::Driver`] if the GPU fails.
    pub fn greedy(&mut self, sessions: &mut [&mut CudaSession], count: usize) -> Result<()> {
        self.check(sessions)?;
        let Some(cache) = sessions.first().map(|session| session.options.cache) else { return Ok(()) };
        for session in sessions.iter() {
            if session.logits_rows == 0 || session.done != session.tokens.len() {
                return Err(CoreError::NoTokens.into());
            }
            let (found, limit) = (session.tokens.len().saturating_add(count), session.options.context);
            if found > limit {
                return Err(CoreError::ContextOverflow { found, limit }.into());
            }
            if session.options.cache != cache {
                return Err(CoreError::State { reason: StateError::CacheType }.into());
            }
        }
        if count == 0 {
            return Ok(());
        }
        let vocab_size = self.work.model.config().vocab_size;
        for (row, session) in sessions.iter_mut().enumerate() {
            session.read_logits()?;
            let logits = session.logits().unwrap_or(&[]);
            let last = &logits[logits.len() - vocab_size..];
            self.work.write(Piece::Logits, 4 * row * vocab_size, bytemuck::cast_slice(last))?;
        }
        // The kernel that chooses a token goes on to the next position.
        self.enter(sessions, |session| session.done - 1)?;
        for _ in 0..count {
            self.work.launch(Step { cache, sessions: sessions.len(), chooses: true })?;
        }
        self.work.synchronize()?;
        for session in sessions.iter_mut() {
            let mut chosen = vec![0_u32; count];
            session.work.read(Piece::Tokens, 4 * session.done, bytemuck::cast_slice_mut(&mut chosen))?;
            session.tokens.extend_from_slice(&chosen);
        }
        self.leave(sessions, count)
    }

    fn check(&self, sessions: &[&mut CudaSession]) -> Result<()> {
        let (found, limit) = (sessions.len(), self.max_sessions);
        if found > limit {
            return Err(CoreError::Options { field: "sessions", found, limit }.into());
        }
        for session in sessions {
            if !session.work.model.is_same(&self.work.model) {
                return Err(CoreError::OtherModel.into());
            }
            let (found, limit) = (session.options.context, self.max_context);
            if found > limit {
                return Err(CoreError::Options { field: "context", found, limit }.into());
            }
        }
        Ok(())
    }

    /// Tells the kernels where the sessions are, each at a position.
    fn enter(&mut self, rows: &[&mut CudaSession], position: impl Fn(&CudaSession) -> usize) -> Result<()> {
        let mut slots = Vec::with_capacity(rows.len());
        for session in rows {
            // Its tokens come in a stream of its own.
            session.work.synchronize()?;
            slots.push(Slot { position: position(session) as i32, ..session.slot() });
        }
        self.work.write(Piece::Slots, 0, bytemuck::cast_slice(&slots))
    }

    /// Gives each session its logits, after `count` tokens.
    fn leave(&mut self, rows: &mut [&mut CudaSession], count: usize) -> Result<()> {
        let vocab_size = self.work.model.config().vocab_size;
        for (row, session) in rows.iter_mut().enumerate() {
            session.logits_on_device = false;
            session.logits.resize(session.logits.len().max(vocab_size), 0.0);
            let logits = bytemuck::cast_slice_mut(&mut session.logits[..vocab_size]);
            self.work.read(Piece::Logits, 4 * row * vocab_size, logits)?;
            session.done += count;
            session.logits_rows = 1;
            session.logits_read = true;
        }
        Ok(())
    }
}

/// The most sessions that a batch has room for: blocks of threads in a grid's third direction are counted up to 65535.
const MOST_SESSIONS: usize = 1024;
