//! The one error type of this crate.

use cudarc::driver::DriverError;

/// Why there is no GPU, or what it refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has no usable NVIDIA driver.
    #[error("no NVIDIA driver: {0}")]
    NoDriver(String),
    /// There is no GPU of this number.
    #[error("there is no GPU number {index}: the driver sees {count}")]
    NoDevice {
        /// The number asked for, from 0.
        index: usize,
        /// GPUs that the driver sees.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}, expected at least 6.1 (a GeForce GTX 1050)")]
    TooOld {
        /// The GPU's name.
        name: String,
        /// The first number of its compute capability.
        major: i32,
        /// The second.
        minor: i32,
    },
    /// The GPU has not enough memory.
    #[error("no room on the GPU for {what}: {needed} bytes are needed and {free} are free; {advice}")]
    Memory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes that were asked for.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// What to lower.
        advice: &'static str,
    },
    /// A model asks for what the kernels do not do.
    #[error("{field} is {found}, expected at most {limit} on a GPU")]
    Unsupported {
        /// The field of the configuration.
        field: &'static str,
        /// Its value.
        found: usize,
        /// Its largest value.
        limit: usize,
    },
    /// A matrix has six bits a weight.
    #[error("the embedding or head has six bits a weight, which no kernel of the GPU reads: pack the model with int8")]
    Int6,
    /// The driver reported an error.
    #[error("the NVIDIA driver, {doing}: {source}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        source: DriverError,
    },
    /// A token, an option or a saved state was refused, for the reasons the CPU's session has.
    #[error(transparent)]
    Core(#[from] trion_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when the driver failed.
pub(crate) trait Doing<T> {
    /// The value, or an [`Error::Driver`].
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Driver { doing, source })
    }
}
