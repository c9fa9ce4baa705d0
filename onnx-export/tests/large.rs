//! A model of the shape of bitnet_b1_58-large (0.7 billion weights), random. A process of its own, since it measures
//! memory.

use std::fs;

use trion_engine::{Activation, Config, PackOptions, random_model};
use trion_onnx::check::{CheckOptions, ModeReport, check, default_prompts};
use trion_onnx::runtime::Runtime;
use trion_onnx::{DATA_FILE, ExportOptions, export};
use trion_tests::{onnx_packages, python, scratch};

const CONFIG: Config = Config {
    vocab_size: 32_002,
    hidden_size: 1536,
    intermediate_size: 4096,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    head_dim: 96,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    projection_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    hidden_act: Activation::Silu,
    activation_group: 0,
};

/// Tokens behind each prompt.
const TOKENS: usize = 64;

/// Bytes of memory that this process has at most had, since [`reset_peak`].
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Begins the measurement anew at what is in use now.
fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
#[ignore = "takes minutes; cargo xtask test runs it, optimised"]
fn a_large_model_is_exported_in_little_memory_and_agrees() {
    let model = random_model(&CONFIG, &PackOptions::default(), 1).unwrap();
    let directory = scratch("onnx-large").join("export");
    reset_peak();
    let before = peak();
    let bytes = export(&model, &directory, &ExportOptions::default()).unwrap();
    let grown = peak() - before;
    println!("{bytes} bytes exported, {grown} bytes of memory beyond the model's {}", model.packed().len());
    assert!(grown < 256 << 20, "{grown} bytes beyond the model");
    assert!(directory.join(DATA_FILE).exists());

    let Some(packages) = onnx_packages() else { return };
    let output = python(&packages, "onnx-export/tests/python/check_export.py", &[&directory]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let runtime = Runtime::load(Some(&packages.join("onnxruntime/capi/libonnxruntime.so.1.31.1"))).unwrap();
    // Two engines of one thread each do more in the same time than one of two.
    let prompts = default_prompts(&model, TOKENS).unwrap();
    std::thread::scope(|scope| {
        for half in prompts.chunks(10) {
            let options = CheckOptions { prompts: half.to_vec(), tokens: TOKENS, threads: 1 };
            let (model, directory, runtime) = (&model, &directory, &runtime);
            scope.spawn(move || {
                let report = check(model, directory, runtime, &options).unwrap();
                println!("{report}");
                assert!(report.passed, "{:?}", report.failure);
                let whole = |mode: &ModeReport| (mode.prompts, mode.greedy_tokens) == (10, 10 * TOKENS as u64);
                assert!(report.modes.len() == 3 && report.modes.iter().all(whole));
            });
        }
    });
}
