//! Exported graphs of every model at hand, with the tools of others.

mod check;
mod export;
mod genai;

use std::path::PathBuf;

use trion_tests::{GOLDEN, golden, root, shared};

/// The default model.
fn default_model() -> PathBuf {
    root().join("models/tales-14m.safetensors")
}

/// Every model at hand, with a name: golden ones, the default one, and larger ones beside the repository.
fn models() -> Vec<(String, PathBuf)> {
    let cases = [
        "cases/a_bitnet_packed_autobitlinear_offline",
        "cases/b_bitnet_bf16_autobitlinear_online",
        "cases/c_llama_packed_bitlinear",
        "cases/c2_llama_packed_bitlinear_rmsnorm",
        "cases/d_1bitllm_bitnet_fp32_online",
        "models/tales-14m",
    ];
    let golden = GOLDEN.map(|name| (name.to_owned(), golden(name)));
    let shared = cases.into_iter().filter_map(|name| Some((name.replace('/', "-"), shared(name)?)));
    golden.into_iter().chain([("default".to_owned(), default_model())]).chain(shared).collect()
}
