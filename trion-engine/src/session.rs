//! A session that owns its memory and shares its model.

use memmap2::MmapMut;
use self_cell::{MutBorrow, self_cell};
use trion_core::{Kernel, Parallel, Progress, Session as CoreSession, SessionOptions};

use crate::error::{Error, Result};
use crate::map::zeros;
use crate::model::Model;

struct Owner {
    model: Model,
    memory: MutBorrow<MmapMut>,
}

/// Both lifetimes of the core's session are that of the owner.
type Borrowed<'a> = CoreSession<'a, 'a>;

self_cell!(
    struct Cell {
        owner: Owner,

        #[covariant]
        dependent: Borrowed,
    }
);

/// A [`CoreSession`] with its model and its memory. Nothing is allocated after it is made.
pub struct Session {
    cell: Cell,
    kernel: Kernel,
}

impl Session {
    /// A session on the fastest kernel of this CPU.
    ///
    /// # Errors
    /// [`Error::Core`] for options outside their range, [`Error::Memory`] if there is not enough memory.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        Self::with_kernel(model, options, Kernel::detect())
    }

    /// A session on a kernel of the caller's choice; the results are the same.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_kernel(model: &Model, options: SessionOptions, kernel: Kernel) -> Result<Self> {
        let config = model.config();
        let longest = config.max_position_embeddings;
        for (field, found, limit) in
            [("context", options.context, longest), ("max_batch", options.max_batch, options.context)]
        {
            // Before any memory is asked for.
            if found == 0 || found > limit {
                return Err(Error::Core(trion_core::Error::Options { field, found, limit }));
            }
        }
        let memory = MutBorrow::new(zeros(CoreSession::bytes(config, &options))?);
        let cell = Cell::try_new(Owner { model: model.clone(), memory }, |owner| {
            CoreSession::new(owner.model.core(), options, kernel, owner.memory.borrow_mut())
        })?;
        Ok(Session { cell, kernel })
    }

    /// A session with the same tokens, cache and logits, which goes its own way from here.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough memory.
    pub fn fork(&self) -> Result<Self> {
        let core = self.cell.borrow_dependent();
        let mut copy = Self::with_kernel(&self.cell.borrow_owner().model, *core.options(), self.kernel)?;
        copy.cell.with_dependent_mut(|_, copy| copy.fork_from(core))?;
        Ok(copy)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.cell.borrow_owner().model
    }

    /// See [`CoreSession::options`].
    pub fn options(&self) -> &SessionOptions {
        self.cell.borrow_dependent().options()
    }

    /// See [`CoreSession::tokens`].
    pub fn tokens(&self) -> &[u32] {
        self.cell.borrow_dependent().tokens()
    }

    /// See [`CoreSession::push`].
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        Ok(self.cell.with_dependent_mut(|_, core| core.push(tokens))?)
    }

    /// See [`CoreSession::advance`].
    ///
    /// # Errors
    /// [`Error::Core`] if no token was pushed.
    pub fn advance(&mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress> {
        Ok(self.cell.with_dependent_mut(|_, core| core.advance(budget, parallel))?)
    }

    /// See [`CoreSession::spent`].
    pub fn spent(&self) -> usize {
        self.cell.borrow_dependent().spent()
    }

    /// Pushes tokens, computes them all and gives the logits `[rows, vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged.
    pub fn evaluate(&mut self, tokens: &[u32], parallel: &dyn Parallel) -> Result<&[f32]> {
        self.push(tokens)?;
        while self.advance(usize::MAX, parallel)? == Progress::More {}
        Ok(self.logits().unwrap_or(&[]))
    }

    /// See [`CoreSession::logits`].
    pub fn logits(&self) -> Option<&[f32]> {
        self.cell.borrow_dependent().logits()
    }

    /// See [`CoreSession::rewind`].
    ///
    /// # Errors
    /// [`Error::Core`] if there are fewer tokens.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        Ok(self.cell.with_dependent_mut(|_, core| core.rewind(len))?)
    }

    /// The state in bytes, for [`Session::load`].
    ///
    /// # Errors
    /// None in practice: the buffer is made as large as the core says.
    pub fn save(&self) -> Result<Vec<u8>> {
        let core = self.cell.borrow_dependent();
        let mut bytes = vec![0; core.saved_bytes()];
        core.save(&mut bytes)?;
        Ok(bytes)
    }

    /// See [`CoreSession::load`].
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged.
    pub fn load(&mut self, saved: &[u8]) -> Result<()> {
        Ok(self.cell.with_dependent_mut(|_, core| core.load(saved))?)
    }
}
