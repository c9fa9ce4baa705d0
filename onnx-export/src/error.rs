//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a model and a checked graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused a model, a session or a token.
    #[error(transparent)]
    Engine(#[from] trion_engine::Error),
    /// The operating system refused to open, read or write a file.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A model has something that the graph asked for has no form for.
    #[error("{place}: {message}")]
    Unsupported {
        /// The module of the model.
        place: String,
        /// What was asked for, and what is supported.
        message: String,
    },
    /// ONNX Runtime is missing, or refused a graph or its inputs.
    #[error("{0}")]
    Runtime(String),
    /// A file is not a graph that this crate exports.
    #[error("{}: {message}", .file.display())]
    Graph {
        /// The file.
        file: PathBuf,
        /// What was found, and what was expected.
        message: String,
    },
    /// A graph does not compute what the model does.
    #[error("the check fails: {0}")]
    Check(crate::check::Failure),
    /// An argument of a call is out of its range.
    #[error("{0}")]
    Argument(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] about `file`.
    pub(crate) fn io(file: &Path, source: io::Error) -> Self {
        Error::Io { file: file.to_owned(), source }
    }

    /// An [`Error::Unsupported`] about `place`.
    pub(crate) fn unsupported(place: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Unsupported { place: place.into(), message: message.into() }
    }
}
