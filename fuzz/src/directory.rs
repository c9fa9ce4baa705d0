//! A directory for the files of one process: checkpoints of Hugging Face's form are opened by their path.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::small::{Checkpoint, Kind};

/// The root of this process's files.
static ROOT: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("trion-fuzz-{}", std::process::id())));

/// A small checkpoint as a directory, its files named as Hugging Face names them.
pub struct Directory(PathBuf);

impl Directory {
    /// The directory of this name, with the files of a checkpoint.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new(name: &str, checkpoint: &Checkpoint) -> Self {
        let directory = Directory(ROOT.join(name));
        fs::create_dir_all(&directory.0).expect("a directory for the target's files");
        directory.write("config.json", checkpoint.config.to_string().as_bytes());
        directory.write("model.safetensors", &checkpoint.tensors);
        directory
    }

    /// One directory for each kind of checkpoint.
    pub fn of_every_kind(target: &str) -> Vec<Self> {
        Kind::ALL.iter().map(|kind| Directory::new(&format!("{target}-{kind:?}"), &Checkpoint::new(*kind))).collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Replaces a file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.0.join(file), bytes).expect("a file of the target's");
    }
}
