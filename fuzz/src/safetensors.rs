//! The tensors of a Hugging Face checkpoint beside a configuration that is right: the first byte chooses the kind of
//! checkpoint, the others are `model.safetensors`.

use std::sync::LazyLock;

use trion_engine::Model;

use crate::check::opened;
use crate::directory::Directory;

static DIRECTORIES: LazyLock<Vec<Directory>> = LazyLock::new(|| Directory::of_every_kind("safetensors"));

/// Opens the checkpoint, and runs it if it opens.
///
/// # Panics
/// If what opens does not hold to [`crate::check`].
pub fn run(bytes: &[u8]) {
    let Some((kind, tensors)) = bytes.split_first() else { return };
    let directory = &DIRECTORIES[usize::from(*kind) % DIRECTORIES.len()];
    directory.write("model.safetensors", tensors);
    opened(Model::open(directory.path()));
}
