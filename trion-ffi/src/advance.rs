//! Advance
//!
//! The loop of every program:
//!
//!     while ((status = trion_session_advance(session, budget, &event)) == TRION_OK) {
//!         if (event.kind == TRION_EVENT_MORE) wait_for_the_next_frame();
//!         else if (event.kind == TRION_EVENT_TOKEN) use(event.token);
//!         else break;
//!     }

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use trion_core::{Parallel, Progress, token_probability};

use crate::edge::{call, handle, input, place};
use crate::runtime::Runtime;
use crate::session::{Inner, trion_session};
use crate::status::{Failure, trion_error, trion_status};

/// What trion_session_advance() came to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_event_kind {
    /// The budget is spent: advance again, in the next frame for example.
    TRION_EVENT_MORE = 0,
    /// A token was chosen and added to the sequence.
    TRION_EVENT_TOKEN = 1,
    /// There will be no more tokens, for the reason that the event gives, until the session is changed (tokens pushed,
    /// rewound, loaded).
    TRION_EVENT_DONE = 2,
    /// All tokens that were pushed are computed: trion_session_compute() and trion_sessions_compute() choose none.
    TRION_EVENT_READY = 3,
}

/// Why there will be no more tokens.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_reason {
    /// The event is not TRION_EVENT_DONE.
    TRION_REASON_NONE = 0,
    /// The model ended the text. The event has the token that says so; it was not added to the sequence.
    TRION_REASON_END = 1,
    /// The context is full, so no token was chosen.
    TRION_REASON_CONTEXT = 2,
    /// trion_session_cancel() was called, or a callback wanted no more. Advancing again goes on where it was.
    TRION_REASON_CANCELLED = 3,
    /// The text is all that the constraint allows.
    TRION_REASON_CONSTRAINT = 4,
    /// No token can go on with the text under the constraint.
    TRION_REASON_DEAD_END = 5,
}

/// What became of a call of trion_session_advance(), or of one session in a call of trion_sessions_advance().
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_event {
    /// What happened.
    pub kind: trion_event_kind,
    /// With TRION_EVENT_DONE, why.
    pub reason: trion_reason,
    /// With TRION_EVENT_TOKEN, and with TRION_REASON_END, the token; else 0.
    pub token: u32,
    /// The token's probability by the model's own distribution (temperature 1, nothing cut off), if the session was
    /// made with `probabilities`; else 0.
    pub probability: f32,
    /// Units that the call took, rounded up; of a cancelled call, those of the steps that were completed; of a call for
    /// several sessions, this one's share.
    pub units: usize,
}

use trion_event_kind::*;
use trion_reason::*;

impl trion_event {
    pub(crate) const MORE: Self =
        trion_event { kind: TRION_EVENT_MORE, reason: TRION_REASON_NONE, token: 0, probability: 0.0, units: 0 };
    pub(crate) const READY: Self = trion_event { kind: TRION_EVENT_READY, ..Self::MORE };

    pub(crate) const fn done(reason: trion_reason) -> Self {
        trion_event { kind: TRION_EVENT_DONE, reason, ..Self::MORE }
    }
}

/// Receives what happens during trion_session_run(). Returns 0 to stop. It may use the session, but not free it.
pub type trion_event_fn = Option<unsafe extern "C" fn(user: *mut c_void, event: *const trion_event) -> c_int>;

/// Row-blocks of the core that a unit stands for: some microseconds at least, so that the way into a call and out of it
/// does not count, and no more than a tile of a batch of the default size.
pub(crate) const ROW_BLOCKS_PER_UNIT: usize = 64;

/// What the core is given for one call: the runtime's threads, and the flags of the sessions.
pub(crate) struct Host<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) cancel: &'a [Option<&'a AtomicBool>],
}

impl Parallel for Host<'_> {
    fn threads(&self) -> usize {
        self.runtime.threads()
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        self.runtime.run(work);
    }

    fn cancelled(&self) -> bool {
        self.cancel.iter().flatten().any(|flag| flag.load(Ordering::Relaxed))
    }
}

impl trion_session {
    /// Computes for at most `budget` units, and then goes on with `then` when logits are there.
    fn step(
        &self,
        budget: usize,
        then: impl FnOnce(&mut Inner) -> Result<trion_event, Failure>,
    ) -> Result<trion_event, Failure> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        if let Some(ended) = inner.ended {
            return Ok(ended);
        }
        // The flag stays up until the core has returned, as it asks for; then the call that sees it takes it down.
        let host = Host { runtime: &inner.loaded.runtime, cancel: &[Some(&self.cancel)] };
        let progress = inner.sequence.advance(budget.saturating_mul(ROW_BLOCKS_PER_UNIT), &host);
        let event = if self.cancel.swap(false, Ordering::Relaxed) {
            trion_event::done(TRION_REASON_CANCELLED)
        } else {
            match progress? {
                Progress::More => trion_event::MORE,
                Progress::Ready => then(inner)?,
            }
        };
        Ok(trion_event { units: inner.sequence.spent().div_ceil(ROW_BLOCKS_PER_UNIT), ..event })
    }

    /// [`trion_session_advance`].
    pub(crate) fn advance(&self, budget: usize) -> Result<trion_event, Failure> {
        self.step(budget, Inner::choose)
    }
}

impl Inner {
    /// Does ahead what may fail when a token is chosen.
    #[cfg_attr(not(feature = "text"), expect(clippy::unnecessary_wraps, reason = "constraints can fail"))]
    #[cfg_attr(not(feature = "text"), expect(clippy::unused_self, reason = "constraints can fail"))]
    pub(crate) fn prepare(&mut self) -> Result<(), Failure> {
        #[cfg(feature = "text")]
        if let Some(constraint) = &mut self.constraint {
            constraint.resume(self.sequence.tokens())?;
        }
        Ok(())
    }

    /// Chooses the token after the sequence, from logits that are ready, and adds it.
    pub(crate) fn choose(&mut self) -> Result<trion_event, Failure> {
        if self.sequence.tokens().len() == self.sequence.options().context {
            return Ok(trion_event::done(TRION_REASON_CONTEXT));
        }
        let token = match self.sample()? {
            Ok(token) => token,
            Err(reason) => return Ok(trion_event::done(reason)),
        };
        let probability = match self.sequence.logits() {
            Some(logits) if self.plan.probabilities => token_probability(logits, token),
            _ => 0.0,
        };
        let chosen = trion_event { kind: TRION_EVENT_TOKEN, token, probability, ..trion_event::MORE };
        if !self.plan.ignore_end && self.loaded.model.eos_token_ids().contains(&token) {
            let ended = trion_event { kind: TRION_EVENT_DONE, reason: TRION_REASON_END, ..chosen };
            self.ended = Some(ended);
            return Ok(ended);
        }
        self.sequence.push(&[token])?;
        Ok(chosen)
    }

    /// The next token, or why there is none.
    #[cfg_attr(not(feature = "text"), expect(clippy::unnecessary_wraps, reason = "constraints can fail"))]
    fn sample(&mut self) -> Result<Result<u32, trion_reason>, Failure> {
        let (logits, tokens) = (self.sequence.logits().unwrap_or(&[]), self.sequence.tokens());
        #[cfg(feature = "text")]
        if let Some(constraint) = &mut self.constraint {
            return constraint.choose(&mut self.sampler, logits, tokens);
        }
        Ok(Ok(self.sampler.sample(logits, tokens)))
    }

    /// Appends tokens.
    pub(crate) fn push(&mut self, tokens: &[u32]) -> Result<(), Failure> {
        self.sequence.push(tokens)?;
        self.ended = None;
        #[cfg(feature = "text")]
        if let Some(constraint) = &mut self.constraint {
            constraint.pushed(self.sequence.tokens().len());
        }
        Ok(())
    }

    /// Forgets tokens.
    fn rewind(&mut self, length: usize) -> Result<(), Failure> {
        self.sequence.rewind(length)?;
        self.ended = None;
        #[cfg(feature = "text")]
        if let Some(constraint) = &mut self.constraint {
            constraint.rewound(length);
        }
        Ok(())
    }
}

/// Appends `count` tokens, which later calls of trion_session_advance() compute.
///
/// TRION_NO_TOKENS for none, TRION_TOKEN_OUT_OF_RANGE, TRION_CONTEXT_FULL, TRION_BUSY; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_push(
    session: *mut trion_session,
    tokens: *const u32,
    count: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (session, tokens) = unsafe { (handle(session)?, input(tokens, count)?) };
        session.lock()?.push(tokens)
    })
}

/// Computes for `budget` units, or until a token is chosen; SIZE_MAX for no limit. The last step may go beyond the
/// budget: a step is a tile of 32 rows for all tokens of a batch, which with `max_batch` up to 64 is about one unit; on
/// a GPU it is the whole batch. A budget of 0 computes nothing. The call in which a token is chosen also samples: a
/// pass over the vocabulary.
///
/// TRION_NO_TOKENS if nothing was pushed since the session was made or rewound, TRION_BUSY, TRION_DEVICE if a GPU
/// fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_advance(
    session: *mut trion_session,
    budget: usize,
    event: Option<&mut MaybeUninit<trion_event>>,
) -> trion_status {
    call(None, || {
        let out = place(event)?;
        // SAFETY: the header's rule for handles.
        out.write(unsafe { handle(session)? }.advance(budget)?);
        Ok(())
    })
}

/// trion_session_advance() without choosing a token: computes what was pushed and ends with TRION_EVENT_READY. What
/// many sessions begin with is computed once so, and they take it over by trion_session_fork() or
/// trion_session_assign().
///
/// As trion_session_advance().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_compute(
    session: *mut trion_session,
    budget: usize,
    event: Option<&mut MaybeUninit<trion_event>>,
) -> trion_status {
    call(None, || {
        let out = place(event)?;
        // SAFETY: the header's rule for handles.
        out.write(unsafe { handle(session)? }.step(budget, |_| Ok(trion_event::READY))?);
        Ok(())
    })
}

/// Advances until TRION_EVENT_DONE, `budget` units at a time, and hands every event to `on_event(user, ...)`, the last
/// one included. When it returns 0, the reason is TRION_REASON_CANCELLED.
///
/// As trion_session_advance(), TRION_INVALID_ARGUMENT for a budget of 0; `event`, which may be NULL, receives the last
/// event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_run(
    session: *mut trion_session,
    budget: usize,
    on_event: trion_event_fn,
    user: *mut c_void,
    event: Option<&mut MaybeUninit<trion_event>>,
) -> trion_status {
    call(None, || {
        let on_event = on_event.ok_or(Failure::NULL)?;
        if budget == 0 {
            return Err(Failure::argument("a budget of 0 never comes to an end"));
        }
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? };
        let last = loop {
            let event = session.advance(budget)?;
            // SAFETY: a function of the caller's, with what it asked for. The session is not held meanwhile.
            let go_on = unsafe { on_event(user, &raw const event) } != 0;
            if event.kind == TRION_EVENT_DONE {
                break event;
            }
            if !go_on {
                break trion_event::done(TRION_REASON_CANCELLED);
            }
        };
        if let Some(out) = event {
            out.write(last);
        }
        Ok(())
    })
}

/// Ends the call that is computing, within one unit and also within a prompt (on a GPU after the batch under way), or
/// else the next one: it returns TRION_EVENT_DONE with TRION_REASON_CANCELLED. What was pushed stays, and advancing
/// again begins anew with the batch that was under way. NULL does nothing. Any thread, at any time, from a signal
/// handler too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_cancel(session: *mut trion_session) {
    // SAFETY: the header's rule for handles.
    if let Ok(session) = unsafe { handle(session) } {
        session.cancel.store(true, Ordering::Relaxed);
    }
}

/// Forgets all tokens from position `length` on. Push before the next trion_session_advance(), unless only tokens are
/// forgotten that were not computed yet: rewinding by the token that was just chosen and advancing chooses again.
///
/// TRION_INVALID_ARGUMENT if there are fewer tokens, TRION_BUSY; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_rewind(
    session: *mut trion_session,
    length: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rule for handles.
        unsafe { handle(session)? }.lock()?.rewind(length)
    })
}
