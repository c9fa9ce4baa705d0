//! A GGUF file in memory.

use trion_engine::Model;

use crate::check::opened;

/// Opens the bytes, and runs the model if they are one.
///
/// # Panics
/// If what opens does not hold to [`crate::check`].
pub fn run(bytes: &[u8]) {
    opened(Model::from_bytes(bytes));
}
