//! Saved states
//!
//! A session as bytes: its tokens, what the model keeps of them, and the sampler. They can be loaded into any session
//! of the same model and with the same `cache` that has room for the tokens, on any machine, on a CPU or a GPU, and go
//! on with the same bits. A constraint is not part of them.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use trion_core::{Sampler, SamplerOptions};

use crate::advance::{trion_event, trion_reason};
use crate::edge::{call, check, handle, input, place};
use crate::session::{Inner, trion_session};
use crate::status::trion_status::TRION_STATE;
use crate::status::{Failure, trion_error, trion_status};

/// The first bytes; the last is the version of the format.
const MAGIC: [u8; 8] = *b"TRIONSE\x01";

/// What stands before the core's state: magic; the sampler's temperature, top-p, min-p and penalty; its top-k, window,
/// seed and generator; whether the text has ended, and the token that ended it.
const HEADER: usize = 8 + 4 * 4 + 4 * 8 + 2 * 4;

impl Inner {
    fn header(&self) -> [u8; HEADER] {
        let options = self.sampler.options();
        let floats = [options.temperature, options.top_p, options.min_p, options.repetition_penalty];
        let words = [options.top_k as u64, options.repetition_window as u64, options.seed, self.sampler.state()];
        let end = [u32::from(self.ended.is_some()), self.ended.map_or(0, |ended| ended.token)];
        let mut bytes = MAGIC
            .into_iter()
            .chain(floats.into_iter().flat_map(f32::to_le_bytes))
            .chain(words.into_iter().flat_map(u64::to_le_bytes))
            .chain(end.into_iter().flat_map(u32::to_le_bytes));
        std::array::from_fn(|_| bytes.next().unwrap_or(0))
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), Failure> {
        let refuse = |message| Failure::Plain(TRION_STATE, message);
        let (header, state) =
            saved.split_first_chunk::<HEADER>().ok_or(refuse("saved state: it is shorter than its header"))?;
        if header[..7] != MAGIC[..7] {
            return Err(refuse("saved state: it does not begin as a saved session does"));
        }
        if header[7] != MAGIC[7] {
            return Err(refuse("saved state: it was written by another version of the format"));
        }
        let (floats, rest) = header[8..].split_at(4 * 4);
        let (words, end) = rest.split_at(4 * 8);
        let float = |i: usize| floats.as_chunks::<4>().0.get(i).map_or(0.0, |le| f32::from_le_bytes(*le));
        let word = |i: usize| words.as_chunks::<8>().0.get(i).map_or(0, |le| u64::from_le_bytes(*le));
        let end = |i: usize| end.as_chunks::<4>().0.get(i).map_or(0, |le| u32::from_le_bytes(*le));
        let options = SamplerOptions {
            temperature: float(0),
            top_p: float(1),
            min_p: float(2),
            repetition_penalty: float(3),
            top_k: usize::try_from(word(0)).unwrap_or(usize::MAX),
            repetition_window: usize::try_from(word(1)).unwrap_or(usize::MAX),
            seed: word(2),
        };
        let sampler =
            Sampler::resume(options, word(3)).map_err(|_| refuse("saved state: its sampler is outside its range"))?;
        let ended = match end(0) {
            0 => None,
            1 if end(1) as usize >= self.loaded.model.config().vocab_size => {
                return Err(refuse("saved state: the token that ended its text is not in the vocabulary"));
            }
            1 => Some(trion_event { token: end(1), ..trion_event::done(trion_reason::TRION_REASON_END) }),
            _ => return Err(refuse("saved state: its contents contradict each other")),
        };
        self.sequence.load(state)?;
        self.sampler = sampler;
        self.ended = ended.filter(|_| !self.plan.ignore_end);
        #[cfg(feature = "text")]
        {
            self.constraint = None;
        }
        Ok(())
    }
}

/// Bytes that trion_session_save() writes at present.
///
/// TRION_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_saved_size(
    session: *const trion_session,
    size: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let out = place(size)?;
        // SAFETY: the header's rule for handles.
        out.write(HEADER + unsafe { handle(session)? }.lock()?.sequence.saved_bytes());
        Ok(())
    })
}

/// Writes the session to `buffer` of `capacity` bytes, at least trion_session_saved_size(), and the bytes written to
/// `size`.
///
/// TRION_BUFFER_TOO_SMALL, TRION_BUSY, TRION_DEVICE if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_save(
    session: *const trion_session,
    buffer: *mut c_void,
    capacity: usize,
    size: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(size)?;
        let buffer = buffer.cast::<u8>();
        check(buffer, capacity)?;
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? }.lock()?;
        let expected = HEADER + session.sequence.saved_bytes();
        if capacity < expected {
            return Err(Failure::TooSmall { found: capacity, expected });
        }
        // SAFETY: the caller's buffer is valid for `capacity` bytes, and what it holds is bytes.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, expected) };
        let (header, state) = buffer.split_at_mut(HEADER);
        header.copy_from_slice(&session.header());
        session.sequence.save(state)?;
        out.write(expected);
        Ok(())
    })
}

/// Replaces everything in the session by the `size` bytes of a saved state at `data`. A constraint is taken away.
///
/// TRION_STATE, TRION_OTHER_MODEL, TRION_TOKEN_OUT_OF_RANGE, TRION_BUSY; the session is unchanged then. TRION_DEVICE if
/// a GPU fails; the session may have no tokens then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_load(
    session: *mut trion_session,
    data: *const c_void,
    size: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (session, saved) = unsafe { (handle(session)?, input(data.cast::<u8>(), size)?) };
        session.lock()?.load(saved)
    })
}
