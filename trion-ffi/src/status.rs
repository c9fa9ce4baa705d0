//! Status
//!
//! Every call that can fail returns one of these numbers. Their meaning never changes, and a number that is retired is
//! not used again. A function with an `error` parameter also says in words what was found and what was expected; NULL
//! is allowed where nobody wants the words.

use core::ffi::{c_char, c_int};
use core::fmt::{self, Display, Write};
use core::mem::MaybeUninit;

use trion_core::StateError;

/// What became of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_status {
    /// Done; the outputs are written. Any other status means that no output was written.
    TRION_OK = 0,
    /// An argument is NULL where it may not be, an option is outside its range, or text is not UTF-8. Cure: the message
    /// says what was expected.
    TRION_INVALID_ARGUMENT = 1,
    /// The caller's buffer is too small. Cure: ask for the size first; each such function tells how.
    TRION_BUFFER_TOO_SMALL = 2,
    /// Memory could not be had, from the system, from the caller's allocator or on the GPU. Cure: a smaller `context`
    /// or `max_batch`, or fewer sessions.
    TRION_OUT_OF_MEMORY = 3,
    /// A file could not be read, or the caller's reader failed. Cure: the message says what the system said.
    TRION_IO = 4,
    /// A model is not what it claims to be: truncated, overlapping, of the wrong type, shape or value. Cure: another
    /// copy of the file; the message names the tensor or field.
    TRION_MALFORMED = 5,
    /// A model is well formed, but needs something that Trion does not do. Cure: docs/formats.md lists what it does.
    TRION_UNSUPPORTED = 6,
    /// There is nothing to compute. Cure: push tokens first.
    TRION_NO_TOKENS = 7,
    /// A token is not in the model's vocabulary. Cure: use the tokenizer of this model.
    TRION_TOKEN_OUT_OF_RANGE = 8,
    /// The tokens do not fit in the session's context. Cure: rewind, or make a session with a larger `context`.
    TRION_CONTEXT_FULL = 9,
    /// Bytes are not a saved state, of another version, damaged, or of a session with another `cache` or a larger
    /// `context`. Cure: the message says which.
    TRION_STATE = 10,
    /// A state, a session or a constraint belongs to another model. Cure: use the model that it was made with.
    TRION_OTHER_MODEL = 11,
    /// The session is in use by another call, on another thread. Cure: one call at a time; only trion_session_cancel()
    /// may come between.
    TRION_BUSY = 12,
    /// The session has no logits at present. Cure: ask between TRION_EVENT_TOKEN and the next trion_session_advance().
    TRION_NO_LOGITS = 13,
    /// The model comes without a tokenizer or a chat template. Cure: put tokenizer.json or chat_template.jinja beside
    /// the checkpoint before it is packed.
    TRION_NO_TOKENIZER = 14,
    /// The tokenizer or the chat template refused the text. Cure: the message says why.
    TRION_TEXT = 15,
    /// A schema, a regular expression or a grammar cannot be used. Cure: the message says what is wrong with it, and
    /// where.
    TRION_CONSTRAINT = 16,
    /// A defect of Trion. The process is unharmed; the session that was in use answers only trion_session_free() from
    /// now on. Cure: please report it.
    TRION_INTERNAL = 17,
    /// A GPU cannot be had, or it failed: no driver, no GPU of that number, one that is too old, or a library that was
    /// built without. Cure: the device "cpu" computes the same, and "auto" takes it where there is no GPU.
    TRION_DEVICE = 18,
}

use trion_status::*;

/// One sentence about a status, for people; "unknown status" for a number that is none. The text is constant. Any
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn trion_status_string(status: c_int) -> *const c_char {
    let text = match status {
        0 => c"done",
        1 => c"an argument is NULL, outside its range, or not UTF-8",
        2 => c"the buffer is too small",
        3 => c"there is not enough memory",
        4 => c"a file or a reader failed",
        5 => c"the model is malformed",
        6 => c"the model needs something that is not supported",
        7 => c"no tokens were pushed",
        8 => c"a token is not in the vocabulary",
        9 => c"the context is full",
        10 => c"the saved state cannot be loaded here",
        11 => c"it belongs to another model",
        12 => c"the session is in use by another call",
        13 => c"the session has no logits at present",
        14 => c"the model has no tokenizer or no chat template",
        15 => c"the tokenizer or the chat template refused the text",
        16 => c"the constraint cannot be used",
        17 => c"a defect of Trion, please report it",
        18 => c"there is no such GPU, or it failed",
        _ => c"unknown status",
    };
    text.as_ptr()
}

/// Bytes of trion_error.message, the final zero included.
pub const TRION_MESSAGE_SIZE: usize = 512;

/// What went wrong, in words. It belongs to the caller, and is written only by a call that fails.
#[repr(C)]
pub struct trion_error {
    /// What the call returned.
    pub status: trion_status,
    /// UTF-8 with a zero at the end, cut off where it would be longer.
    pub message: [c_char; TRION_MESSAGE_SIZE],
}

/// Why a call failed. It takes no memory from the heap but what the engine's own errors take.
#[derive(Debug)]
pub(crate) enum Failure {
    Core(trion_core::Error),
    /// The tables of a model in the program's memory are not what they claim to be.
    Tables {
        layer: Option<usize>,
        tensor: &'static str,
        error: trion_core::Error,
    },
    #[cfg(feature = "std")]
    Engine(trion_engine::Error),
    /// The device that was asked for is not there.
    #[cfg(feature = "std")]
    Device(trion_engine::Error),
    Plain(trion_status, &'static str),
    #[cfg(feature = "std")]
    TooSmall {
        found: usize,
        expected: usize,
    },
}

impl Failure {
    /// An argument that may not be NULL.
    pub(crate) const NULL: Failure = Failure::Plain(TRION_INVALID_ARGUMENT, "a pointer is NULL that may not be");
    #[cfg(feature = "std")]
    pub(crate) const BUSY: Failure = Failure::Plain(TRION_BUSY, "the session is in use by another call");
    #[cfg(feature = "text")]
    pub(crate) const OTHER_MODEL: Failure = Failure::Plain(TRION_OTHER_MODEL, "it was made with another model");
    #[cfg(feature = "std")]
    pub(crate) const DEFECT: Failure = Failure::Plain(TRION_INTERNAL, "a defect of Trion, please report it");

    pub(crate) const fn argument(message: &'static str) -> Self {
        Failure::Plain(TRION_INVALID_ARGUMENT, message)
    }

    pub(crate) fn status(&self) -> trion_status {
        match self {
            Failure::Plain(status, _) => *status,
            #[cfg(feature = "std")]
            Failure::TooSmall { .. } => TRION_BUFFER_TOO_SMALL,
            Failure::Core(error) => status_of_core(error),
            Failure::Tables { .. } => TRION_MALFORMED,
            #[cfg(feature = "std")]
            Failure::Engine(error) => status_of(error),
            #[cfg(feature = "std")]
            Failure::Device(_) => TRION_DEVICE,
        }
    }

    /// The status, with the words written to where the caller wants them.
    pub(crate) fn report(&self, error: Option<&mut MaybeUninit<trion_error>>) -> trion_status {
        let status = self.status();
        if let Some(error) = error {
            let mut message = [0; TRION_MESSAGE_SIZE];
            // A message that does not fit is cut off, which is no failure.
            let _ = write!(Message { out: &mut message, length: 0 }, "{self}");
            error.write(trion_error { status, message });
        }
        status
    }
}

fn status_of_core(error: &trion_core::Error) -> trion_status {
    use trion_core::Error;
    match error {
        Error::BufferTooSmall { .. } => TRION_BUFFER_TOO_SMALL,
        Error::ContextOverflow { .. } => TRION_CONTEXT_FULL,
        Error::TokenOutOfRange { .. } => TRION_TOKEN_OUT_OF_RANGE,
        Error::NoTokens => TRION_NO_TOKENS,
        Error::OtherModel | Error::State { reason: StateError::OtherModel } => TRION_OTHER_MODEL,
        Error::State { .. } => TRION_STATE,
        _ => TRION_INVALID_ARGUMENT,
    }
}

#[cfg(feature = "std")]
fn status_of(error: &trion_engine::Error) -> trion_status {
    #[cfg(feature = "cuda")]
    use trion_engine::CudaError;
    use trion_engine::Error;
    match error {
        Error::Io { .. } => TRION_IO,
        Error::Malformed { .. } => TRION_MALFORMED,
        Error::Unsupported { .. } => TRION_UNSUPPORTED,
        Error::Memory { .. } => TRION_OUT_OF_MEMORY,
        Error::Tokenizer(_) | Error::ChatTemplate(_) => TRION_TEXT,
        Error::Core(core) => status_of_core(core),
        #[cfg(feature = "text")]
        Error::Constraint(_) => TRION_CONSTRAINT,
        #[cfg(feature = "cuda")]
        Error::Cuda(error) => match error {
            CudaError::Memory { .. } => TRION_OUT_OF_MEMORY,
            CudaError::Unsupported { .. } => TRION_UNSUPPORTED,
            _ => TRION_DEVICE,
        },
        _ => TRION_INVALID_ARGUMENT,
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Core(error) => error.fmt(f),
            Failure::Tables { layer: None, tensor, error } => write!(f, "{tensor}: {error}"),
            Failure::Tables { layer: Some(n), tensor, error } => write!(f, "layer {n}: {tensor}: {error}"),
            #[cfg(feature = "std")]
            Failure::Engine(error) => error.fmt(f),
            #[cfg(feature = "std")]
            Failure::Device(error) => write!(f, "{error}; the device cpu computes the same"),
            Failure::Plain(_, message) => f.write_str(message),
            #[cfg(feature = "std")]
            Failure::TooSmall { found, expected } => {
                write!(f, "the buffer holds {found}, expected room for {expected}")
            }
        }
    }
}

#[cfg(feature = "std")]
impl From<trion_engine::Error> for Failure {
    fn from(error: trion_engine::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<trion_core::Error> for Failure {
    fn from(error: trion_core::Error) -> Self {
        Failure::Core(error)
    }
}

/// Writes text into an array of zeros, whole characters only, and leaves a zero at its end.
struct Message<'a> {
    out: &'a mut [c_char; TRION_MESSAGE_SIZE],
    length: usize,
}

impl Write for Message<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.out.len() - 1 - self.length;
        let mut fits = text.len().min(room);
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        for (to, byte) in self.out[self.length..].iter_mut().zip(&text.as_bytes()[..fits]) {
            *to = *byte as c_char;
        }
        self.length += fits;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
