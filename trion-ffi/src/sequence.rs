//! What a session computes with: the core's session in the caller's block, or one on a GPU.

use trion_core::{Parallel, Progress, Session as CoreSession, SessionOptions};

use crate::status::Failure;
#[cfg(feature = "cuda")]
use crate::status::trion_status::TRION_OUT_OF_MEMORY;

/// A sequence of tokens, and what the model keeps of it.
#[cfg_attr(feature = "cuda", expect(clippy::large_enum_variant, reason = "it lies in the session's block"))]
pub(crate) enum Sequence {
    /// On the host's threads; everything lies in the session's block.
    Cpu(CoreSession<'static, 'static>),
    /// On a GPU; the block has the handle alone.
    #[cfg(feature = "cuda")]
    Gpu(trion_engine::Session),
}

/// Calls a method that both kinds have.
macro_rules! either {
    ($self:ident, $session:ident => $call:expr) => {
        match $self {
            Sequence::Cpu($session) => $call,
            #[cfg(feature = "cuda")]
            Sequence::Gpu($session) => $call,
        }
    };
}

impl Sequence {
    pub(crate) fn options(&self) -> &SessionOptions {
        either!(self, session => session.options())
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        either!(self, session => session.tokens())
    }

    pub(crate) fn pending(&self) -> usize {
        either!(self, session => session.pending())
    }

    pub(crate) fn push(&mut self, tokens: &[u32]) -> Result<(), Failure> {
        either!(self, session => Ok(session.push(tokens)?))
    }

    pub(crate) fn advance(&mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress, Failure> {
        either!(self, session => Ok(session.advance(budget, parallel)?))
    }

    pub(crate) fn spent(&self) -> usize {
        either!(self, session => session.spent())
    }

    pub(crate) fn logits(&self) -> Option<&[f32]> {
        either!(self, session => session.logits())
    }

    pub(crate) fn rewind(&mut self, length: usize) -> Result<(), Failure> {
        either!(self, session => Ok(session.rewind(length)?))
    }

    pub(crate) fn saved_bytes(&self) -> usize {
        either!(self, session => session.saved_bytes())
    }

    pub(crate) fn save(&self, out: &mut [u8]) -> Result<(), Failure> {
        match self {
            Sequence::Cpu(session) => session.save(out)?,
            #[cfg(feature = "cuda")]
            Sequence::Gpu(session) => session.save_to(out)?,
        };
        Ok(())
    }

    pub(crate) fn load(&mut self, saved: &[u8]) -> Result<(), Failure> {
        either!(self, session => Ok(session.load(saved)?))
    }

    /// Takes over what another came to, on whichever device.
    pub(crate) fn fork_from(&mut self, other: &Sequence) -> Result<(), Failure> {
        match (&mut *self, other) {
            (Sequence::Cpu(session), Sequence::Cpu(other)) => Ok(session.fork_from(other)?),
            #[cfg(feature = "cuda")]
            (Sequence::Gpu(session), Sequence::Gpu(other)) => Ok(session.fork_from(other)?),
            #[cfg(feature = "cuda")]
            _ => {
                let (found, limit) = (other.tokens().len(), self.options().context);
                if found > limit {
                    return Err(trion_core::Error::ContextOverflow { found, limit }.into());
                }
                let (mut saved, size) = (Vec::new(), other.saved_bytes());
                let none = |_| Failure::Plain(TRION_OUT_OF_MEMORY, "no memory for the state on its way to the device");
                saved.try_reserve_exact(size).map_err(none)?;
                saved.resize(size, 0);
                other.save(&mut saved)?;
                self.load(&saved)
            }
        }
    }
}
