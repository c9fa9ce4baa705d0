//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What was found, and what was expected.
        message: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Argument(String),
    /// The loss or the gradient is not a number any more.
    #[error(
        "step {step}: the loss is {loss} and the gradient's norm {gradient_norm}, expected finite numbers; lower the \
         learning rate"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f32,
        /// The norm.
        gradient_norm: f32,
    },
    /// A GPU was not found, or failed.
    #[error("GPU: {0}")]
    Gpu(String),
    /// The engine refused a checkpoint.
    #[error(transparent)]
    Engine(#[from] trion_engine::Error),
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { path, source }
    }

    pub(crate) fn malformed(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Malformed { path: path.as_ref().to_owned(), message: message.into() }
    }
}
