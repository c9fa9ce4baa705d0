//! Looking at a session
//!
//! Pointers that these functions give lead into the session's memory, and are valid until the next call that changes
//! it.

use std::mem::MaybeUninit;

use trion_core::{Session, TokenProbability, most_probable};

use crate::advance::ROW_BLOCKS_PER_UNIT;
use crate::edge::{call, check, handle, place};
use crate::session::trion_session;
use crate::status::trion_status::TRION_NO_LOGITS;
use crate::status::{Failure, trion_status};

/// A token with its probability.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_candidate {
    /// The token.
    pub token: u32,
    /// By the model's own distribution: temperature 1, nothing cut off.
    pub probability: f32,
}

/// Most candidates of one call.
pub const TRION_MAX_CANDIDATES: usize = 256;

/// Every token so far, those not yet computed included.
///
/// TRION_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_tokens(
    session: *const trion_session,
    tokens: Option<&mut MaybeUninit<*const u32>>,
    count: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let (tokens, count) = (place(tokens)?, place(count)?);
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? }.lock()?;
        tokens.write(session.sequence.tokens().as_ptr());
        count.write(session.sequence.tokens().len());
        Ok(())
    })
}

/// The logits that the last token was chosen from, one for each token of the vocabulary.
///
/// TRION_NO_LOGITS after the next trion_session_advance() has begun, TRION_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_logits(
    session: *const trion_session,
    logits: Option<&mut MaybeUninit<*const f32>>,
    count: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let (out, count) = (place(logits)?, place(count)?);
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? }.lock()?;
        let logits = session.sequence.logits().ok_or(NO_LOGITS)?;
        out.write(logits.as_ptr());
        count.write(logits.len());
        Ok(())
    })
}

const NO_LOGITS: Failure = Failure::Plain(TRION_NO_LOGITS, "the session has no logits at present");

/// The most probable tokens by these logits, the most probable first, at most `capacity` and TRION_MAX_CANDIDATES.
///
/// As trion_session_logits().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_candidates(
    session: *const trion_session,
    candidates: *mut trion_candidate,
    capacity: usize,
    count: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let out = place(count)?;
        check(candidates, capacity)?;
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? }.lock()?;
        let mut best = [TokenProbability::default(); TRION_MAX_CANDIDATES];
        let wanted = capacity.min(TRION_MAX_CANDIDATES);
        let found = most_probable(session.sequence.logits().ok_or(NO_LOGITS)?, &mut best[..wanted]);
        for (i, TokenProbability { token, probability }) in best[..found].iter().copied().enumerate() {
            // SAFETY: `i` is below `capacity`, for which the caller's array has room.
            unsafe { candidates.add(i).write(trion_candidate { token, probability }) };
        }
        out.write(found);
        Ok(())
    })
}

/// Units that the next token costs when it is computed alone: more with every position. A token of a prompt costs no
/// more.
///
/// TRION_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_token_units(
    session: *const trion_session,
    units: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let out = place(units)?;
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? }.lock()?;
        let positions = session.sequence.tokens().len().saturating_add(1);
        let row_blocks = Session::row_blocks_per_token(session.loaded.model.core(), positions);
        out.write(row_blocks.div_ceil(ROW_BLOCKS_PER_UNIT));
        Ok(())
    })
}
