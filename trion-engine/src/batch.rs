//! Several sessions of one model that advance together.

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use trion_core::Error as CoreError;
use trion_core::{Batch as CoreBatch, Parallel, Progress, Session as CoreSession};

#[cfg(feature = "cuda")]
use crate::error::Error;
use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::session::OnGpu;
use crate::session::Session;

/// Sessions of one model, for calls that advance them together: each weight is read once for the tokens of all. See
/// [`CoreBatch`], which this is for sessions that own their memory.
///
/// A batch is a list for one call and keeps nothing of its own: take whichever sessions there are, all of them on the
/// CPU or on one GPU. On the CPU nothing is allocated. Logits are those that each session would give alone, bit for
/// bit.
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
    /// Sessions on a GPU, if there are none on the CPU.
    #[cfg(feature = "cuda")]
    on_gpu: Vec<&'s mut OnGpu>,
}

impl<'s> Batch<'s> {
    /// The most sessions of a batch.
    pub const MAX_SESSIONS: usize = CoreBatch::MAX_SESSIONS;

    /// A batch without sessions.
    pub const fn new() -> Self {
        Batch {
            core: CoreBatch::new(),
            #[cfg(feature = "cuda")]
            on_gpu: Vec::new(),
        }
    }

    /// Whether no session was added.
    pub fn is_empty(&self) -> bool {
        #[cfg(feature = "cuda")]
        if !self.on_gpu.is_empty() {
            return false;
        }
        self.core.is_empty()
    }

    /// Adds a session, which stays borrowed until the batch has advanced.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core) for a session of another model than those before it, of which clones are the
    /// same and others that were put on a GPU are not, and beyond [`Batch::MAX_SESSIONS`];
    /// [`Error::Argument`](crate::Error::Argument) for one on the CPU beside others on a GPU, or the other way round.
    /// The batch is unchanged.
    pub fn add(&mut self, session: &'s mut Session) -> Result<()> {
        session.join(self)
    }

    pub(crate) fn add_core(&mut self, session: &'s mut CoreSession<'_, '_>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if !self.on_gpu.is_empty() {
            return Err(other_device());
        }
        Ok(self.core.add(session)?)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn add_on_gpu(&mut self, session: &'s mut OnGpu) -> Result<()> {
        if !self.core.is_empty() {
            return Err(other_device());
        }
        if let Some(first) = self.on_gpu.first()
            && !Arc::ptr_eq(&first.placed, &session.placed)
        {
            return Err(CoreError::OtherModel.into());
        }
        let found = self.on_gpu.len() + 1;
        if found > Self::MAX_SESSIONS {
            return Err(CoreError::Options { field: "sessions", found, limit: Self::MAX_SESSIONS }.into());
        }
        self.on_gpu.push(session);
        Ok(())
    }

    /// See [`CoreBatch::advance`]. On a GPU, sessions that have more than one token to compute go ahead alone, in whole
    /// batches of their `max_batch`; then each session computes one, all together. It is cancelled between two such
    /// steps, and begins none when the budget is spent.
    ///
    /// The first call for a model on a GPU takes scratch memory there, and so does one for more sessions, or longer
    /// ones, than any before; it is freed with the model. Calls for one model there take turns.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core) if no session has tokens to compute or logits; nothing has changed.
    /// [`Error::Cuda`](crate::Error::Cuda) if the scratch memory does not fit, and nothing has changed, or if the GPU
    /// fails.
    pub fn advance(self, budget: usize, parallel: &dyn Parallel) -> Result<Progress> {
        #[cfg(feature = "cuda")]
        if let Some(first) = self.on_gpu.first() {
            let placed = Arc::clone(&first.placed);
            let mut on_gpu = self.on_gpu;
            let mut sessions: Vec<_> = on_gpu.iter_mut().map(|on_gpu| &mut on_gpu.session).collect();
            let progress = placed.advance(&mut sessions, budget, parallel)?;
            for on_gpu in on_gpu {
                on_gpu.spent = on_gpu.session.spent();
            }
            return Ok(progress);
        }
        Ok(self.core.advance(budget, parallel)?)
    }
}

#[cfg(feature = "cuda")]
fn other_device() -> Error {
    Error::Argument("a session on another device, expected all to be on one".to_owned())
}
