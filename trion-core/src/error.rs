//! One error enum, without strings to allocate: what was found, what was expected, and where.

use core::fmt;

/// Why the core refused a model, a buffer, a token or a saved state.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A field of [`Config`](crate::Config) is outside its range.
    Config {
        /// The field, as it is named in `config.json`.
        field: &'static str,
        /// Its value.
        found: f64,
        /// The range it must lie in.
        expected: &'static str,
    },
    /// A tensor does not have the shape that the configuration asks for.
    Shape {
        /// The tensor's role, e.g. `mlp.gate_proj`.
        tensor: &'static str,
        /// The layer it belongs to, if any.
        layer: Option<usize>,
        /// `[rows, cols]` of the tensor.
        found: [usize; 2],
        /// `[rows, cols]` that the configuration asks for.
        expected: [usize; 2],
    },
    /// The bytes of a tensor are not as many as its shape asks for.
    Length {
        /// The tensor's role.
        tensor: &'static str,
        /// Elements or bytes found.
        found: usize,
        /// Elements or bytes expected.
        expected: usize,
    },
    /// A scale, epsilon or norm weight is NaN, infinite, or zero where it divides.
    NotFinite {
        /// The tensor's role.
        tensor: &'static str,
        /// The layer it belongs to, if any.
        layer: Option<usize>,
    },
    /// Borrowed bytes do not lie at an address that their type needs.
    Misaligned {
        /// The tensor's role, or `buffer`.
        tensor: &'static str,
        /// Alignment needed, in bytes.
        expected: usize,
    },
    /// Two bits hold the code 3, or five bits 27 or more, which stand for no trit.
    InvalidTrit {
        /// Row of the first such trit.
        row: usize,
        /// Column of the first such trit.
        col: usize,
    },
    /// A group of columns with a scale of its own is not a positive multiple of 16.
    GroupSize {
        /// The size that was asked for.
        found: usize,
    },
    /// An option of a session is outside its range.
    Options {
        /// The option.
        field: &'static str,
        /// Its value.
        found: usize,
        /// Its largest value.
        limit: usize,
    },
    /// The caller's buffer is too small.
    BufferTooSmall {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// More tokens than the session has positions for.
    ContextOverflow {
        /// Tokens that there would be.
        found: usize,
        /// Positions of the session.
        limit: usize,
    },
    /// More tokens than fit in one batch of a session that keeps every position's logits.
    BatchOverflow {
        /// Tokens that were pushed.
        found: usize,
        /// `max_batch` of the session.
        limit: usize,
    },
    /// A token that the vocabulary does not have.
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// Nothing to do: no token was pushed.
    NoTokens,
    /// Sessions that are to advance together were made with different models.
    OtherModel,
    /// A rewind to a position that was not reached.
    RewindBeyond {
        /// The position asked for.
        found: usize,
        /// Tokens in the session.
        limit: usize,
    },
    /// A saved state that cannot be loaded here.
    State {
        /// What is wrong with it.
        reason: StateError,
    },
    /// A sampler option is outside its range.
    Sampler {
        /// The option.
        field: &'static str,
        /// The range it must lie in.
        expected: &'static str,
    },
}

/// What is wrong with a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes end early, or go on after the end.
    Length,
    /// The bytes do not begin as a saved state does.
    NotAState,
    /// The state was written by another version of the format.
    Version,
    /// The state belongs to another model.
    OtherModel,
    /// The cache's number format differs.
    CacheType,
    /// The state holds more tokens than this session has positions.
    Context,
    /// The contents contradict each other.
    Corrupt,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = |f: &mut fmt::Formatter<'_>, layer: &Option<usize>| match layer {
            Some(n) => write!(f, "layer {n}: "),
            None => Ok(()),
        };
        match self {
            Error::Config { field, found, expected } => write!(f, "{field} is {found}, expected {expected}"),
            Error::Shape { tensor, layer: l, found, expected } => {
                layer(f, l)?;
                write!(f, "{tensor} has shape {found:?}, expected {expected:?}")
            }
            Error::Length { tensor, found, expected } => {
                write!(f, "{tensor} has {found} elements, expected {expected}")
            }
            Error::NotFinite { tensor, layer: l } => {
                layer(f, l)?;
                write!(f, "{tensor} holds a NaN, an infinity or a zero divisor, expected finite numbers")
            }
            Error::Misaligned { tensor, expected } => {
                write!(f, "{tensor} does not begin at a multiple of {expected} bytes")
            }
            Error::InvalidTrit { row, col } => write!(
                f,
                "row {row}, column {col} holds no trit: code 3, expected 0, 1 or 2, or a byte that stands for no five trits"
            ),
            Error::GroupSize { found } => write!(f, "group of {found} columns, expected a positive multiple of 16"),
            Error::Options { field, found, limit } => write!(f, "option {field} is {found}, expected 1 to {limit}"),
            Error::BufferTooSmall { found, expected } => {
                write!(f, "buffer of {found} bytes, expected at least {expected}")
            }
            Error::ContextOverflow { found, limit } => {
                write!(f, "{found} tokens do not fit in a context of {limit}: rewind, or make a longer session")
            }
            Error::BatchOverflow { found, limit } => {
                write!(f, "{found} tokens at once, expected at most max_batch = {limit} when all logits are kept")
            }
            Error::TokenOutOfRange { token, vocab_size } => {
                write!(f, "token {token} is outside the vocabulary of {vocab_size}")
            }
            Error::NoTokens => write!(f, "no tokens were pushed, expected at least one"),
            Error::OtherModel => write!(f, "a session of another model, expected all to be of one"),
            Error::RewindBeyond { found, limit } => write!(f, "rewind to position {found}, but only {limit} exist"),
            Error::State { reason } => write!(
                f,
                "saved state: {}",
                match reason {
                    StateError::Length => "its length is not the one it states",
                    StateError::NotAState => "it does not begin as a saved state does",
                    StateError::Version => "it was written by another version of the format",
                    StateError::OtherModel => "it belongs to another model",
                    StateError::CacheType => "its cache has another number format than this session",
                    StateError::Context => "it holds more tokens than this session has positions",
                    StateError::Corrupt => "its contents contradict each other",
                }
            ),
            Error::Sampler { field, expected } => write!(f, "sampler: {field} must be {expected}"),
        }
    }
}

impl core::error::Error for Error {}
