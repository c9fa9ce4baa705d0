//! A model of the shape of bitnet_b1_58-large (0.7 billion weights), random. A process of its own, since it measures
//! memory.

use std::fs;
use std::sync::Mutex;

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

/// One test at a time, since they measure memory.
static ALONE: Mutex<()> = Mutex::new(());

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

/// Exports the model, and compares tokens behind so many of the standard prompts.
fn exported_and_compared(name: &str, prompts: usize, tokens: usize) {
    let _alone = ALONE.lock();
    let model = random_model(&CONFIG, &PackOptions::default(), 1).unwrap();
    let directory = scratch(name).join("export");
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
    let half = prompts / 2;
    std::thread::scope(|scope| {
        for prompts in default_prompts(&model, tokens).unwrap()[..2 * half].chunks(half) {
            let options = CheckOptions { prompts: prompts.to_vec(), tokens, threads: 1 };
            let (model, directory, runtime) = (&model, &directory, &runtime);
            scope.spawn(move || {
                let report = check(model, directory, runtime, &options).unwrap();
                println!("{report}");
                assert!(report.passed, "{:?}", report.failure);
                let whole =
                    |mode: &ModeReport| (mode.prompts, mode.greedy_tokens) == (half as u64, (half * tokens) as u64);
                assert!(report.modes.len() == 3 && report.modes.iter().all(whole));
            });
        }
    });
}

#[test]
#[ignore = "takes a minute; cargo xtask test runs it, optimised"]
fn a_large_model_is_exported_in_little_memory_and_agrees() {
    exported_and_compared("onnx-large", 4, 16);
}

#[test]
#[ignore = "takes minutes, optimised"]
fn twenty_prompts_of_a_large_model_agree() {
    exported_and_compared("onnx-twenty-prompts", 20, 64);
}
