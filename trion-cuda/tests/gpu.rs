//! What can be tested on any machine, and on one with a GPU everything that `trion-gpu-test` compares.

use std::path::{Path, PathBuf};
use std::process::Command;

use trion_core::{Activation, CacheType, Config, SessionOptions};
use trion_cuda::{CudaDevice, Error, KernelSet, MemoryPlan, check};
use trion_engine::{FloatFormat, PackOptions, random_model};

/// The models that are in the repository.
fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let golden = std::fs::read_dir(root.join("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<PathBuf> = golden.filter(|path| path.join("config.json").exists()).collect();
    models.push(root.join("models/tales-14m.safetensors"));
    models
}

#[test]
fn the_gpu_gives_the_bits_of_the_cpu() {
    if let Err(e) = CudaDevice::open(0) {
        println!("skipped: {e}");
        return;
    }
    // Beside the directory of this test, where Cargo puts what it builds with it.
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/trion-gpu-test");
    let status = Command::new(program).args(models()).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_kernel_gives_the_bits_of_the_contract() {
    for open in [CudaDevice::open, CudaDevice::open_compatible] {
        let device = match open(0) {
            Ok(device) => device,
            Err(e) => {
                println!("skipped: {e}");
                return;
            }
        };
        let checks = check::kernels(&device).unwrap();
        let wrong: Vec<_> = checks.iter().filter(|check| check.failed > 0).collect();
        assert!(wrong.is_empty(), "{:?}: {wrong:#?}", device.kernel_set());
        assert!(checks.iter().all(|check| check.cases > 0));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let Err(e) = CudaDevice::open(1000) else { panic!("opened GPU 1000") };
    assert!(matches!(e, Error::NoDriver(_) | Error::NoDevice { index: 1000, .. }), "{e}");
    assert!(!e.to_string().is_empty());
}

#[test]
fn a_plan_counts_what_a_model_and_a_session_take() {
    let config = Config {
        vocab_size: 300,
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-5,
        projection_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        hidden_act: Activation::Relu2,
        activation_group: 0,
    };
    let model =
        random_model(&config, &PackOptions { embedding: FloatFormat::Int8, ..PackOptions::default() }, 1).unwrap();
    let options = SessionOptions { cache: CacheType::F16, ..SessionOptions::new(1024) };
    let plan = MemoryPlan::new(model.core(), &options, 5, KernelSet::Sm61);
    // Bytes of rows, and a scale for each.
    assert_eq!(plan.embedding, 300 * 512 + (300_usize * 4).next_multiple_of(256));
    // Layers, heads, keys and values, positions, columns, bytes.
    assert_eq!(plan.cache, 2 * 2 * 2 * 1024 * 64 * 2);
    // Two bits for each weight, and less than a tenth for norms.
    let trits = 2 * (256 * 256 * 2 + 2 * 128 * 256 + 3 * 256 * 512) / 4;
    assert!((trits..trits + trits / 10).contains(&plan.weights), "{plan:?}");
    assert_eq!(plan.total(), plan.weights + plan.embedding + plan.cache + plan.scratch);
    let longer = SessionOptions { cache: CacheType::F32, ..options };
    assert_eq!(MemoryPlan::new(model.core(), &longer, 5, KernelSet::Sm61).cache, 2 * plan.cache);
    // Nothing here is so large that newer cards store it in fewer bits.
    assert_eq!(MemoryPlan::new(model.core(), &options, 5, KernelSet::Sm90), plan);
}
