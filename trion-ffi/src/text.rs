//! Text
//!
//! Tokens become text one at a time. A character whose bytes are spread over several tokens comes out whole with the
//! last of them, and text that may be the beginning of a stop string is held back until it is known not to be.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use trion_engine::text_stream::{StopStrings, TextStream};

use crate::advance::{trion_event_kind, trion_reason};
use crate::edge::{Options, call, handle, input, place, switch};
use crate::model::{Loaded, trion_model};
use crate::session::trion_session;
use crate::status::{Failure, trion_error, trion_status};

/// Options of a text. Fields that are zero have their default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_text_options {
    /// sizeof(trion_text_options).
    pub struct_size: usize,
    /// Strings that end the text, each with a zero at its end; NULL for none. They are copied.
    pub stops: *const *const c_char,
    /// How many.
    pub stop_count: usize,
    /// 1 to have the text of special tokens too.
    pub special: u32,
    /// 1 for a text that begins here rather than going on with a prompt: some tokenizers put a space before a text,
    /// which is taken away then.
    pub beginning: u32,
}

// SAFETY: all fields may be zero, and are numbers and pointers.
unsafe impl Options for trion_text_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// A text that is being written. One call at a time may use it. It keeps its model alive.
pub struct trion_text {
    loaded: Loaded,
    stream: TextStream,
    stops: StopStrings,
    /// The piece that was given out last.
    piece: String,
}

/// A piece of text. It belongs to the trion_text, and is valid until the next call with it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_piece {
    /// UTF-8, whole characters, without a zero at its end; never NULL.
    pub data: *const c_char,
    /// Bytes, often 0.
    pub size: usize,
    /// 1 once a stop string was met, else 0. Nothing of it comes out, and nothing after it.
    pub stopped: c_int,
}

impl trion_text {
    fn new(loaded: Loaded, stream: TextStream, stops: Vec<String>) -> Self {
        trion_text { loaded, stream, stops: StopStrings::new(stops), piece: String::new() }
    }

    fn push(&mut self, token: u32) -> Result<trion_piece, Failure> {
        let piece = self.stream.push(self.loaded.tokenizer()?, token);
        self.piece.clear();
        self.piece.push_str(self.stops.push(piece));
        Ok(self.piece())
    }

    fn finish(&mut self) -> trion_piece {
        let last = self.stream.finish();
        self.piece.clear();
        self.piece.push_str(self.stops.push(last));
        self.piece.push_str(self.stops.finish());
        self.piece()
    }

    fn piece(&self) -> trion_piece {
        trion_piece {
            data: self.piece.as_ptr().cast(),
            size: self.piece.len(),
            stopped: c_int::from(self.stops.stopped().is_some()),
        }
    }
}

/// Begins a text. Free it with trion_text_free(). Any thread.
///
/// TRION_NO_TOKENIZER, TRION_MALFORMED for a tokenizer that is not what it should be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_text_new(
    model: *const trion_model,
    options: *const trion_text_options,
    text: Option<&mut MaybeUninit<*mut trion_text>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(text)?;
        // SAFETY: the header's rules for handles, options, and for pairs of pointer and size.
        let (model, options, stops) = unsafe {
            let options = trion_text_options::read(options)?;
            (handle(model)?, options, input(options.stops, options.stop_count)?)
        };
        let tokenizer = model.0.tokenizer()?;
        let stops: Result<Vec<String>, Failure> = stops
            .iter()
            .map(|stop| {
                if stop.is_null() {
                    return Err(Failure::NULL);
                }
                // SAFETY: the string is not NULL, and ends with a zero.
                let stop = unsafe { CStr::from_ptr(*stop) };
                Ok(stop.to_str().map_err(|_| Failure::argument("a stop string is not UTF-8"))?.to_owned())
            })
            .collect();
        let skip = !switch(options.special)?;
        let stream =
            if switch(options.beginning)? { TextStream::new(tokenizer, skip) } else { TextStream::continuing(skip) };
        out.write(Box::into_raw(Box::new(trion_text::new(model.0.clone(), stream, stops?))));
        Ok(())
    })
}

/// Adds a token, and gives the text that is known with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_text_push(
    text: Option<&mut trion_text>,
    token: u32,
    piece: Option<&mut MaybeUninit<trion_piece>>,
) -> trion_status {
    call(None, || {
        let (text, out) = (text.ok_or(Failure::NULL)?, place(piece)?);
        out.write(text.push(token)?);
        Ok(())
    })
}

/// Ends the text, and gives what was held back. Pushing again goes on with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_text_finish(
    text: Option<&mut trion_text>,
    piece: Option<&mut MaybeUninit<trion_piece>>,
) -> trion_status {
    call(None, || {
        let (text, out) = (text.ok_or(Failure::NULL)?, place(piece)?);
        out.write(text.finish());
        Ok(())
    })
}

/// Frees a text; NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_text_free(text: *mut trion_text) {
    if !text.is_null() {
        // SAFETY: it came from trion_text_new(), and is not used again.
        drop(unsafe { Box::from_raw(text) });
    }
}

/// Receives text as it is written: `size` bytes of UTF-8, whole characters, without a zero at its end. Returns 0 to
/// stop.
pub type trion_text_fn = Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, size: usize) -> c_int>;

/// Why trion_generate() came to its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_stop {
    /// As many tokens were written as were asked for.
    TRION_STOP_MAX_TOKENS = 0,
    /// As TRION_REASON_END.
    TRION_STOP_END = 1,
    /// As TRION_REASON_CONTEXT.
    TRION_STOP_CONTEXT = 2,
    /// As TRION_REASON_CANCELLED.
    TRION_STOP_CANCELLED = 3,
    /// As TRION_REASON_CONSTRAINT.
    TRION_STOP_CONSTRAINT = 4,
    /// As TRION_REASON_DEAD_END.
    TRION_STOP_DEAD_END = 5,
    /// A stop string was met.
    TRION_STOP_STRING = 6,
}

/// Writes at most `max_tokens` tokens of `session` to `on_text(user, ...)`, for programs that need no slices. `text`
/// decides on stop strings and is finished; NULL for one with default options. `stop` receives why the text ended, and
/// may be NULL. The session is left where the text ends, and can go on; what belongs to a stop string is in it.
///
/// As trion_session_advance(); TRION_NO_TOKENIZER; TRION_OTHER_MODEL for a text of another model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_generate(
    session: *mut trion_session,
    text: Option<&mut trion_text>,
    max_tokens: usize,
    on_text: trion_text_fn,
    user: *mut c_void,
    stop: Option<&mut MaybeUninit<trion_stop>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let on_text = on_text.ok_or(Failure::NULL)?;
        // SAFETY: the header's rule for handles.
        let session = unsafe { handle(session)? };
        let loaded = session.lock()?.loaded.clone();
        let mut own;
        let text = match text {
            Some(text) if text.loaded.model.is_same(&loaded.model) => text,
            Some(_) => return Err(Failure::OTHER_MODEL),
            None => {
                loaded.tokenizer()?;
                own = trion_text::new(loaded, TextStream::continuing(true), Vec::new());
                &mut own
            }
        };
        // SAFETY: a function of the caller's, with what it asked for. The session is not held meanwhile.
        let wants_more = |piece: trion_piece| piece.size == 0 || unsafe { on_text(user, piece.data, piece.size) } != 0;
        let mut reason = trion_stop::TRION_STOP_MAX_TOKENS;
        for _ in 0..max_tokens {
            let event = session.advance(usize::MAX)?;
            if event.kind != trion_event_kind::TRION_EVENT_TOKEN {
                reason = event.reason.into();
                break;
            }
            let piece = text.push(event.token)?;
            if !wants_more(piece) {
                reason = trion_stop::TRION_STOP_CANCELLED;
                break;
            }
            if piece.stopped != 0 {
                reason = trion_stop::TRION_STOP_STRING;
                break;
            }
        }
        let last = text.finish();
        if reason != trion_stop::TRION_STOP_CANCELLED {
            wants_more(last);
        }
        if let Some(out) = stop {
            out.write(reason);
        }
        Ok(())
    })
}

impl From<trion_reason> for trion_stop {
    fn from(reason: trion_reason) -> Self {
        match reason {
            trion_reason::TRION_REASON_END => trion_stop::TRION_STOP_END,
            trion_reason::TRION_REASON_CONTEXT => trion_stop::TRION_STOP_CONTEXT,
            // A call without a budget comes back without a token only when it is cancelled.
            trion_reason::TRION_REASON_NONE | trion_reason::TRION_REASON_CANCELLED => trion_stop::TRION_STOP_CANCELLED,
            trion_reason::TRION_REASON_CONSTRAINT => trion_stop::TRION_STOP_CONSTRAINT,
            trion_reason::TRION_REASON_DEAD_END => trion_stop::TRION_STOP_DEAD_END,
        }
    }
}
