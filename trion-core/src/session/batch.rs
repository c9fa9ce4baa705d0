//! Several sessions of one model that go through it together.

use core::ops::Range;

use super::forward::forward;
use super::memory::Memory;
use super::{Counts, Progress, Session, SessionOptions};
use crate::Error;
use crate::kernel::Kernel;
use crate::kernel::bands::{MAX_SESSIONS, PerSession};
use crate::model::Model;
use crate::parallel::Parallel;

/// A session that takes part in a forward pass: what is borrowed of it.
pub(super) struct Member<'s> {
    pub(super) model: &'s Model<'s>,
    pub(super) options: &'s SessionOptions,
    pub(super) kernel: Kernel,
    pub(super) memory: Memory<'s>,
    pub(super) counts: &'s mut Counts,
    /// Units of the stage under way that the session computes next.
    pub(super) units: Range<usize>,
    /// Units of that stage, and the row-blocks that each costs.
    pub(super) extent: (usize, usize),
}

impl<'s> From<&'s mut Session<'_, '_>> for Member<'s> {
    fn from(session: &'s mut Session<'_, '_>) -> Self {
        Member {
            model: session.model,
            options: &session.options,
            kernel: session.kernel,
            memory: session.memory.reborrow(),
            counts: &mut session.counts,
            units: 0..0,
            extent: (0, 0),
        }
    }
}

/// Sessions of one model, for calls that advance them together: each weight is read once for the tokens of all.
///
/// A batch is a list of borrowed sessions for one call, and keeps nothing of its own. Where a session stands
/// lies in the session, and so do its tokens, its cache, its scratch memory and its logits: between two calls
/// any of them may be pushed to, rewound, forked, saved, loaded, dropped, advanced alone or with others. All
/// logits are those that the session would give alone, bit for bit.
///
/// Sessions may differ in everything but the model: contexts, positions, cache types, which logits they keep, how many
/// tokens they have to compute. What a session computes at once, alone or in a batch, is bounded by its `max_batch`.
///
/// ```
/// use trion_core::{Batch, Error, Parallel, Session};
///
/// /// One step of a frame: as far as `budget` goes.
/// fn frame(characters: &mut [Session<'_, '_>], budget: usize, jobs: &dyn Parallel) -> Result<(), Error> {
///     let mut batch = Batch::new();
///     for session in &mut *characters {
///         batch.add(session)?;
///     }
///     let _ = batch.advance(budget, jobs)?;
///     for session in characters {
///         if let Some(logits) = session.logits() {
///             // Sample a token and push it; the next frame computes it.
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Default)]
pub struct Batch<'s> {
    members: PerSession<Member<'s>>,
}

impl<'s> Batch<'s> {
    /// The most sessions of a batch.
    pub const MAX_SESSIONS: usize = MAX_SESSIONS;

    /// A batch without sessions. It lies on the stack, with some ten kilobytes.
    pub const fn new() -> Self {
        Batch { members: PerSession::new() }
    }

    /// Adds a session, which stays borrowed until the batch has advanced.
    ///
    /// # Errors
    /// [`Error::OtherModel`] if the sessions before it were made with another [`Model`] value, which a copy of a model is
    /// too, [`Error::Options`] beyond [`Batch::MAX_SESSIONS`]; the batch is unchanged.
    pub fn add(&mut self, session: &'s mut Session<'_, '_>) -> Result<(), Error> {
        let member = Member::from(session);
        if self.members.first().is_some_and(|first| !core::ptr::eq(first.model, member.model)) {
            return Err(Error::OtherModel);
        }
        let found = self.members.len() + 1;
        let refuse = |_| Error::Options { field: "sessions", found, limit: Self::MAX_SESSIONS };
        self.members.push(member).map_err(refuse)
    }

    /// [`Session::advance`] for all of them: computes tokens that were pushed, for at most `budget` row-blocks or the
    /// smallest possible step beyond, and gives [`Progress::Ready`] once no session has any left. A session without
    /// tokens to compute takes no part. A session whose tokens are computed has its logits at once, even while others
    /// have not: look at [`Session::logits`] of each.
    /// [`Session::spent`] of each is its share of the budget.
    ///
    /// Sessions with tokens begin together, each with at most its `max_batch` tokens, and the next of a longer prompt
    /// follow when all have come through the model; so does a session that comes in between. Sessions that have come
    /// unequally far, since some were advanced alone, are brought to the same place first.
    ///
    /// When `parallel` says that it is cancelled, the call returns [`Progress::More`] after the units under way. The
    /// next call begins again what was under way of the sessions that were at work.
    ///
    /// # Errors
    /// [`Error::NoTokens`] if no session has tokens to compute or logits; nothing has changed.
    pub fn advance(mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress, Error> {
        if !self.members.iter().any(|member| member.counts.has_work() || member.counts.is_ready()) {
            return Err(Error::NoTokens);
        }
        Ok(forward(&mut self.members, budget, parallel, None))
    }
}
