//! Sessions together
//!
//! Many characters of one model: sessions that advance in one call go through the model together, so that each weight
//! is read once for all of them. Where reading weights is what takes the time, as it does for single tokens of a large
//! model, several sessions take hardly longer than one.
//!
//! A call takes whichever sessions there are, in any order, and nothing of it remains: before the next one any of them
//! may be pushed to, rewound, forked, freed, advanced alone or with others. They may differ in all but the model and
//! its device: positions, contexts, caches, samplers, constraints, how many tokens they have to compute. What each
//! comes to is what it comes to alone, bit for bit.
//!
//! Sessions with tokens begin together, each with at most its `max_batch` of them; the next of a longer prompt follow
//! when all have come through the model. On a GPU, sessions that have more than one token to compute go ahead alone, in
//! whole batches; then each computes one, all together. The GPU's memory for that is taken by the first such call for a
//! model, and again by one for more sessions, or longer ones, than any before; it is freed with the model and its
//! sessions. Calls for one model on a GPU wait for each other, if several threads make them.

use std::array::from_fn;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use trion_core::{Batch as CoreBatch, Error as CoreError, Parallel};

use crate::advance::trion_reason::TRION_REASON_CANCELLED;
use crate::advance::{Host, ROW_BLOCKS_PER_UNIT, trion_event};
use crate::edge::{call, check, handle, input};
use crate::sequence::Sequence;
use crate::session::{Inner, trion_session};
use crate::status::{Failure, trion_error, trion_status};

/// Most sessions of one call.
pub const TRION_MAX_SESSIONS: usize = 32;
const _: () = assert!(TRION_MAX_SESSIONS == CoreBatch::MAX_SESSIONS);

/// One thing for each session of a call, without the heap.
type Each<T> = [T; TRION_MAX_SESSIONS];

/// Computes for `budget` units, of all sessions together, and then in each whose logits are there chooses a token, if
/// `chooses` says so. The first events are those of the sessions.
fn step(sessions: &[&trion_session], budget: usize, chooses: bool) -> Result<Each<trion_event>, Failure> {
    let mut held: Each<Option<MutexGuard<'_, Inner>>> = from_fn(|_| None);
    for (i, session) in sessions.iter().enumerate() {
        if sessions[..i].iter().any(|before| std::ptr::eq(*before, *session)) {
            return Err(Failure::argument("a session is there twice, expected each once"));
        }
        held[i] = Some(session.lock()?);
    }
    let mut shared = None;
    for inner in held.iter_mut().flatten() {
        let (model, _) = shared.get_or_insert_with(|| (inner.loaded.model.clone(), Arc::clone(&inner.loaded.runtime)));
        if !inner.loaded.model.is_same(model) {
            return Err(CoreError::OtherModel.into());
        }
        if inner.ended.is_none() && inner.sequence.pending() == 0 && inner.sequence.logits().is_none() {
            return Err(CoreError::NoTokens.into());
        }
    }
    let Some((_, runtime)) = shared else { return Err(CoreError::NoTokens.into()) };
    for inner in held.iter_mut().flatten().filter(|_| chooses) {
        inner.prepare()?;
    }

    let cancel: Each<_> = from_fn(|i| sessions.get(i).map(|session| &session.cancel));
    let host = Host { runtime: &runtime, cancel: &cancel };
    // Sessions whose text has ended take no part.
    let at_work = held.iter_mut().flatten().map(|inner| &mut **inner).filter(|inner| inner.ended.is_none());
    advance(at_work, budget.saturating_mul(ROW_BLOCKS_PER_UNIT), &host)?;

    let mut events = [trion_event::MORE; TRION_MAX_SESSIONS];
    for ((inner, session), event) in held.iter_mut().flatten().zip(sessions).zip(&mut events) {
        let spent = if inner.ended.is_none() { inner.sequence.spent() } else { 0 };
        // The flags stay up until the core has returned, as it asks for.
        let cancelled = session.cancel.swap(false, Ordering::Relaxed);
        *event = match inner.ended {
            _ if cancelled => trion_event::done(TRION_REASON_CANCELLED),
            Some(ended) => ended,
            None if inner.sequence.logits().is_none() => trion_event::MORE,
            None if chooses => inner.choose()?,
            None => trion_event::READY,
        };
        event.units = spent.div_ceil(ROW_BLOCKS_PER_UNIT);
    }
    Ok(events)
}

/// Advances sessions of one model, and so on one device.
fn advance<'s>(
    sessions: impl Iterator<Item = &'s mut Inner>,
    budget: usize,
    host: &dyn Parallel,
) -> Result<(), Failure> {
    let mut on_cpu = CoreBatch::new();
    #[cfg(feature = "cuda")]
    let mut on_gpu = trion_engine::Batch::new();
    for inner in sessions {
        match &mut inner.sequence {
            Sequence::Cpu(session) => on_cpu.add(session)?,
            #[cfg(feature = "cuda")]
            Sequence::Gpu(session) => on_gpu.add(session)?,
        }
    }
    #[cfg(feature = "cuda")]
    if !on_gpu.is_empty() {
        let _ = on_gpu.advance(budget, host)?;
    }
    if !on_cpu.is_empty() {
        let _ = on_cpu.advance(budget, host)?;
    }
    Ok(())
}

/// The body of the calls.
///
/// # Safety
/// `sessions` is NULL or valid for reading `count` elements, each of which is NULL or a handle that was not freed;
/// `events` is NULL or valid for writing `count` elements.
unsafe fn together(
    sessions: *const *mut trion_session,
    count: usize,
    budget: usize,
    chooses: bool,
    events: *mut trion_event,
) -> Result<(), Failure> {
    if count == 0 || count > TRION_MAX_SESSIONS {
        return Err(CoreError::Options { field: "count", found: count, limit: TRION_MAX_SESSIONS }.into());
    }
    check(events, count)?;
    // SAFETY: the caller's promise.
    let pointers = unsafe { input(sessions, count)? };
    // SAFETY: the caller's promise.
    let first = unsafe { handle(pointers[0])? };
    let mut each = [first; TRION_MAX_SESSIONS];
    for (session, pointer) in each.iter_mut().zip(pointers) {
        // SAFETY: the caller's promise.
        *session = unsafe { handle(*pointer)? };
    }
    let made = step(&each[..count], budget, chooses)?;
    // SAFETY: the caller's array has room for `count` events, of which there are as many at least.
    unsafe { events.copy_from_nonoverlapping(made.as_ptr(), count) };
    Ok(())
}

/// trion_session_advance() for `count` sessions of one model, 1 to TRION_MAX_SESSIONS: computes for `budget` units of
/// all of them together, and chooses a token in each whose tokens are computed, at once, even while others are not so
/// far. `events`, one for each session and in their order, say what became of each, as trion_session_advance() would:
/// with a budget of SIZE_MAX every session comes to its next token, or to its end. `units` of an event is the session's
/// share. A session whose text has ended takes no part, and has the event of its end again.
///
/// trion_session_cancel() for any of them ends the call for all: this one's event is TRION_EVENT_DONE with
/// TRION_REASON_CANCELLED, and that of each other whose tokens are not computed TRION_EVENT_MORE. The next call begins
/// anew with the batches that were under way.
///
/// TRION_INVALID_ARGUMENT for another number of sessions, NULL among them, or one that is there twice;
/// TRION_OTHER_MODEL if they are not all of one model, TRION_NO_TOKENS if one has nothing to compute, TRION_BUSY if one
/// is in use, TRION_CONSTRAINT, TRION_OUT_OF_MEMORY if the GPU's memory is; all sessions are as they were then.
/// TRION_DEVICE if a GPU fails. Since version 1.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_sessions_advance(
    sessions: *const *mut trion_session,
    count: usize,
    budget: usize,
    events: *mut trion_event,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    // SAFETY: the header's rules for handles and for pairs of pointer and size.
    call(error, || unsafe { together(sessions, count, budget, true, events) })
}

/// trion_sessions_advance() without choosing tokens: the event of a session whose tokens are computed is
/// TRION_EVENT_READY, and trion_session_logits() has its logits. For prompts that are computed ahead, and for programs
/// that choose tokens themselves.
///
/// As trion_sessions_advance(). Since version 1.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_sessions_compute(
    sessions: *const *mut trion_session,
    count: usize,
    budget: usize,
    events: *mut trion_event,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    // SAFETY: the header's rules for handles and for pairs of pointer and size.
    call(error, || unsafe { together(sessions, count, budget, false, events) })
}
