//! What the tests of exports share.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use trion_engine::{Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};
use trion_tests::{golden, root, shared};

/// Checkpoints of the test suite, one of every kind.
pub(crate) const GOLDEN: [&str; 8] = [
    "bitnet_offline",
    "bitnet_online",
    "llama_bitlinear",
    "llama_rms_norm",
    "1bitllm",
    "llama_float",
    "qwen3_online",
    "qwen3_groups",
];

/// The default model.
pub(crate) fn default_model() -> PathBuf {
    root().join("models/classics-14m.safetensors")
}

/// Every model at hand, with a name: golden ones, the default one, and larger ones beside the repository.
pub(crate) fn models() -> Vec<(String, PathBuf)> {
    let cases = [
        "cases/a_bitnet_packed_autobitlinear_offline",
        "cases/b_bitnet_bf16_autobitlinear_online",
        "cases/c_llama_packed_bitlinear",
        "cases/c2_llama_packed_bitlinear_rmsnorm",
        "cases/d_1bitllm_bitnet_fp32_online",
        "models/classics-14m",
    ];
    let golden = GOLDEN.map(|name| (name.to_owned(), golden(name)));
    let shared = cases.into_iter().filter_map(|name| Some((name.replace('/', "-"), shared(name)?)));
    golden.into_iter().chain([("default".to_owned(), default_model())]).chain(shared).collect()
}

/// The directory of Python packages, ONNX Runtime among them; `None`, with a word about it, where it is not installed.
///
/// # Panics
/// If it is not installed and `CI` is set.
pub(crate) fn packages() -> Option<PathBuf> {
    let packages = root().join("target/onnxruntime");
    if packages.join("onnxruntime").exists() {
        return Some(packages);
    }
    assert!(env::var_os("CI").is_none(), "{} does not exist: cargo xtask onnxruntime", packages.display());
    println!("skipped: {} does not exist (cargo xtask onnxruntime makes it)", packages.display());
    None
}

/// Runs a script of `tests/python`.
pub(crate) fn python(packages: &Path, script: &str, arguments: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let mut command = Command::new("python3");
    command.arg(script).args(arguments).env("PYTHONPATH", packages).output().expect("python3 runs")
}

/// Trion's greedy continuation, and for each token by how much its logit exceeds the next one's.
pub(crate) fn greedy(model: &Model, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
    let context = prompt.len() + count;
    let options = SessionOptions { max_batch: context.min(64), ..SessionOptions::new(context) };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
    let (mut tokens, mut margins) = (Vec::new(), Vec::new());
    session.evaluate(prompt, &Serial).unwrap();
    while tokens.len() < count {
        let logits = session.logits().unwrap();
        let token = sampler.sample(logits, &[]);
        let others = logits.iter().enumerate().filter(|(i, _)| *i != token as usize).map(|(_, logit)| *logit);
        margins.push(logits[token as usize] - others.fold(f32::MIN, f32::max));
        tokens.push(token);
        session.evaluate(&[token], &Serial).unwrap();
    }
    (tokens, margins)
}
