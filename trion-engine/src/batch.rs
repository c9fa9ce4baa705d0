//! Several sessions of one model that advance together.

use trion_core::{Batch as CoreBatch, Parallel, Progress};

use crate::error::Result;
use crate::session::Session;

/// Sessions of one model, for calls that advance them together: each weight is read once for the tokens of all. See
/// [`CoreBatch`], which this is for sessions that own their memory.
///
/// A batch is a list for one call and keeps nothing of its own: take whichever sessions there are. Nothing is allocated.
/// Logits are those that each session would give alone, bit for bit.
///
/// ```no_run
/// use trion_engine::{Batch, Model, Pool, Session, SessionOptions};
///
/// # fn main() -> trion_engine::Result<()> {
/// let model = Model::open("model.safetensors")?;
/// let pool = Pool::new(0)?;
/// let mut sessions = Vec::new();
/// for prompt in [[1, 2, 3].as_slice(), &[1, 5]] {
///     let mut session = Session::new(&model, SessionOptions::new(256))?;
///     session.push(prompt)?;
///     sessions.push(session);
/// }
/// // Each frame:
/// let mut batch = Batch::new();
/// for session in &mut sessions {
///     batch.add(session)?;
/// }
/// let _ = batch.advance(100_000, &pool)?;
/// for session in sessions.iter().filter(|session| session.logits().is_some()) {
///     // Sample a token and push it; the next frame computes it.
/// }
/// # Ok(()) }
/// ```
#[derive(Default)]
pub struct Batch<'s> {
    core: CoreBatch<'s>,
}

impl<'s> Batch<'s> {
    /// The most sessions of a batch.
    pub const MAX_SESSIONS: usize = CoreBatch::MAX_SESSIONS;

    /// A batch without sessions.
    pub const fn new() -> Self {
        Batch { core: CoreBatch::new() }
    }

    /// Adds a session, which stays borrowed until the batch has advanced.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core) for a session of another model than those before it, of which clones are the
    /// same, and beyond [`Batch::MAX_SESSIONS`]; [`Error::Argument`](crate::Error::Argument) for a session on a GPU. The
    /// batch is unchanged.
    pub fn add(&mut self, session: &'s mut Session) -> Result<()> {
        session.join(&mut self.core)
    }

    /// See [`CoreBatch::advance`].
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core) if no session has tokens to compute or logits; nothing has changed.
    pub fn advance(self, budget: usize, parallel: &dyn Parallel) -> Result<Progress> {
        Ok(self.core.advance(budget, parallel)?)
    }
}
