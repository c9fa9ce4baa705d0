//! What the tests share: where data lies, and how references are read.

pub mod firmware;
pub mod oracle;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use safetensors::tensor::{Dtype, SafeTensors};
use trion_engine::Model;

/// Names of the golden checkpoints of Hugging Face's form, which differ in everything that can take another path through
/// the core. The last has scales by group, and a reference with float activations.
pub const GOLDEN: [&str; 8] = [
    "bitnet_offline",
    "bitnet_online",
    "llama_bitlinear",
    "llama_rms_norm",
    "1bitllm",
    "llama_float",
    "qwen3_online",
    "qwen3_groups",
];

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Golden data of the repository.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// Larger data beside the repository; `None`, with a word about it, where there is none.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} does not exist", path.display());
    None
}

/// A directory for the files of one test, emptied first.
///
/// # Panics
/// If it cannot be made.
pub fn scratch(test: &str) -> PathBuf {
    let directory = root().join("target/test-scratch").join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a directory for the test's files");
    directory
}

/// A copy of a golden checkpoint, for one test to change.
///
/// # Panics
/// If it cannot be made.
pub fn copy_golden(test: &str, name: &str) -> PathBuf {
    let directory = scratch(test);
    for file in fs::read_dir(golden(name)).expect("a golden checkpoint") {
        let file = file.expect("a file of the checkpoint");
        fs::copy(file.path(), directory.join(file.file_name())).expect("a copy of the file");
    }
    directory
}

/// A copy of a golden checkpoint that admits longer contexts than it was made with, for one test.
///
/// # Panics
/// If it cannot be made.
pub fn long_golden(test: &str, name: &str) -> PathBuf {
    let directory = copy_golden(&format!("{test}-{name}"), name);
    let config = fs::read(directory.join("config.json")).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    config["max_position_embeddings"] = 512.into();
    fs::write(directory.join("config.json"), config.to_string()).expect("a place for the configuration");
    directory
}

/// The model of [`long_golden`].
///
/// # Panics
/// If it cannot be opened.
pub fn model(test: &str, name: &str) -> Model {
    Model::open(long_golden(test, name)).expect("a golden model")
}

/// A tensor of a reference file.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Singles.
    F32(Vec<f32>),
    /// Token ids.
    I32(Vec<u32>),
}

/// The F32 and I32 tensors of a safetensors file.
///
/// # Panics
/// If the file cannot be read.
pub fn reference(path: &Path) -> HashMap<String, Values> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let read = |view: &safetensors::tensor::TensorView<'_>| {
        let words = view.data().as_chunks::<4>().0;
        match view.dtype() {
            Dtype::F32 => Some(Values::F32(words.iter().map(|le| f32::from_le_bytes(*le)).collect())),
            Dtype::I32 => Some(Values::I32(words.iter().map(|le| u32::from_le_bytes(*le)).collect())),
            _ => None,
        }
    };
    tensors.iter().filter_map(|(name, view)| Some((name.to_owned(), read(&view)?))).collect()
}

/// The Python packages of the tests of exports to ONNX, ONNX Runtime among them; `None`, with a word about it, where it
/// is not installed.
///
/// # Panics
/// If it is not installed and `CI` is set.
pub fn onnx_packages() -> Option<PathBuf> {
    let packages = root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("onnxruntime");
    if packages.join("onnxruntime").exists() {
        return Some(packages);
    }
    assert!(env::var_os("CI").is_none(), "{} does not exist: cargo xtask onnxruntime", packages.display());
    println!("skipped: {} does not exist (cargo xtask onnxruntime makes it)", packages.display());
    None
}

/// Runs a script of the repository with these packages.
///
/// # Panics
/// If Python does not run.
pub fn python(packages: &Path, script: &str, arguments: &[&Path]) -> Output {
    let mut command = Command::new("python3");
    command.arg(root().join(script)).args(arguments).env("PYTHONPATH", packages).output().expect("python3 runs")
}
