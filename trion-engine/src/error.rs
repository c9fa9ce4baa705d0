//! The one error type of this crate: what was found, what was expected, and where.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a file on disk and text on the screen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, map, read or write a file.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what it claims to be: truncated, overlapping, the wrong type, shape or value.
    #[error("{}: {place}: {message}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The tensor, key or header field in it.
        place: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A file is well formed, but asks for something that Trion does not do.
    #[error("{}: {place}: {message}", .file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The tensor, key or header field in it.
        place: String,
        /// What was asked for, and what is supported.
        message: String,
    },
    /// The system has not enough memory.
    #[error("no memory for {bytes} bytes: {source}")]
    Memory {
        /// Bytes that were asked for.
        bytes: usize,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no GPU to compute on, or it failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(trion_cuda::Error),
    /// The core refused a model, a session or a token.
    #[error(transparent)]
    Core(#[from] trion_core::Error),
    /// Text could not be turned into tokens or back.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template does not compile or refused the conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// A grammar cannot be compiled, or a token does not follow it.
    #[error("constraint: {0}")]
    Constraint(String),
    /// An argument of a call is out of its range.
    #[error("{0}")]
    Argument(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(feature = "cuda")]
impl From<trion_cuda::Error> for Error {
    /// What the CPU's session refuses too is the same error.
    fn from(error: trion_cuda::Error) -> Self {
        match error {
            trion_cuda::Error::Core(error) => Error::Core(error),
            error => Error::Cuda(error),
        }
    }
}

impl Error {
    /// An [`Error::Io`] about `file`.
    pub(crate) fn io(file: &Path, source: io::Error) -> Self {
        Error::Io { file: file.to_owned(), source }
    }

    /// An [`Error::Malformed`] about `place` in `file`.
    pub(crate) fn malformed(file: &Path, place: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Malformed { file: file.to_owned(), place: place.into(), message: message.into() }
    }

    /// An [`Error::Unsupported`] about `place` in `file`.
    pub(crate) fn unsupported(file: &Path, place: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Unsupported { file: file.to_owned(), place: place.into(), message: message.into() }
    }
}
