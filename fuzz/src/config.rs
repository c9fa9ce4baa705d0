//! `config.json` beside tensors that are right: the first byte chooses the kind of checkpoint, the others are the file.

use std::sync::LazyLock;

use trion_engine::Model;

use crate::check::opened;
use crate::directory::Directory;

static DIRECTORIES: LazyLock<Vec<Directory>> = LazyLock::new(|| Directory::of_every_kind("config"));

/// Opens the checkpoint, and runs it if it opens.
///
/// # Panics
/// If what opens does not hold to [`crate::check`].
pub fn run(bytes: &[u8]) {
    let Some((kind, config)) = bytes.split_first() else { return };
    let directory = &DIRECTORIES[usize::from(*kind) % DIRECTORIES.len()];
    directory.write("config.json", config);
    opened(Model::open(directory.path()));
}
