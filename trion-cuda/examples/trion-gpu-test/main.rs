//! Compares a GPU with the CPU, bit for bit, and measures it: `trion-gpu-test [--speed | --only-speed | --only-models |
//! --only-models-brief | --only-kernels | --predict] [MODEL ...]`. With `--predict` it says how fast a GTX 1050 and an
//! H100 ought to be, which needs no GPU; `--only-models-brief` computes few tokens, for a tool like compute-sanitizer
//! that makes kernels a thousand times slower.
//!
//! Models are files or directories; every kernel by itself and random models of awkward shapes come besides. Prints
//! tables, and fails if a bit differs.

mod compare;
mod speed;
mod top_k;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use trion_core::{Activation, Config};
use trion_cuda::{CudaDevice, KernelSet, check};
use trion_engine::{FloatFormat, Model, PackOptions, Pool, SHAPE_2B4T, random_model};

use crate::compare::{compare_model, with_number};
use crate::speed::{predict, speed_of_2b4t, speed_of_gemv};
use crate::top_k::{compare_top_k, speed_of_top_k};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().cloned().unwrap_or_default();
    let everything = !what.starts_with("--only");
    let parts = Parts {
        kernels: everything || what == "--only-kernels",
        random_models: everything,
        named: if what.ends_with("-brief") { (&[17], 2) } else { (&[1, 17, 64, 500], 200) },
        speed: what.ends_with("speed"),
    };
    if what.starts_with("--") {
        arguments.remove(0);
    }
    if what == "--predict" {
        return match predict() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::FAILURE
            }
        };
    }
    let devices = match CudaDevice::open(0).and_then(both_kernel_sets) {
        Ok(devices) => devices,
        Err(e @ (trion_cuda::Error::NoDriver(_) | trion_cuda::Error::NoDevice { .. })) => {
            println!("skipped: {e}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    match run(&devices, parts, &arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} comparisons failed");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// The device, and with the kernels of a GTX 1050 besides where its own are others.
fn both_kernel_sets(device: CudaDevice) -> trion_cuda::Result<Vec<CudaDevice>> {
    let is_newer = device.kernel_set() != KernelSet::Sm61;
    let mut devices = vec![device];
    if is_newer {
        devices.push(CudaDevice::open_compatible(0)?);
    }
    Ok(devices)
}

/// What to do besides comparing the models that are named.
#[derive(Debug, Clone, Copy)]
struct Parts {
    kernels: bool,
    random_models: bool,
    /// Prompts of the models that are named, and tokens that follow each.
    named: (&'static [usize], usize),
    speed: bool,
}

fn run(devices: &[CudaDevice], parts: Parts, models: &[String]) -> Outcome<usize> {
    let device = &devices[0];
    println!("{}, {} multiprocessors, memory {:?}", device.name(), device.multiprocessors(), device.memory()?);
    println!("kernels: {:?}", devices.iter().map(CudaDevice::kernel_set).collect::<Vec<_>>());
    let pool = Pool::new(0)?;
    let mut failed = 0;
    for device in if parts.kernels { devices } else { &[] } {
        let outcome = compare_top_k(device)?;
        failed += usize::from(outcome.is_some());
        let result = outcome.unwrap_or_else(|| "equal".to_owned());
        println!("{:?}, the largest logits of random rows: {result}", device.kernel_set());
        failed += check_kernels(device)?;
    }
    println!("{:44}  {:>5}  {:>6}  {:>6}  {:>6}  result", "model", "cache", "prompt", "batch", "decode");
    for (name, config, embedding) in if parts.random_models { shapes() } else { Vec::new() } {
        let model = random_model(&config, &PackOptions { embedding, ..PackOptions::default() }, 7)?;
        failed += compare_model(devices, &pool, &name, &model, &[1, 3, 17, 70, 1020], 20)?;
        for (kind, bits) in [("NaN", 0x7fc0), ("infinity", 0x7f80)] {
            if let Some(model) = with_number(&model, bits)? {
                failed +=
                    compare_model(devices, &pool, &format!("  with {kind} in the embedding"), &model, &[1, 2, 40], 5)?;
            }
        }
    }
    for path in models {
        let model = Model::open(path)?;
        let name = Path::new(path).file_name().map_or_else(|| path.clone(), |n| n.to_string_lossy().into_owned());
        let (prompts, decode) = parts.named;
        failed += compare_model(devices, &pool, &name, &model, prompts, decode)?;
    }
    if parts.speed {
        for device in devices {
            println!("{:?}", device.kernel_set());
            speed_of_gemv(device)?;
            speed_of_top_k(device)?;
            failed += speed_of_2b4t(device, &pool)?;
        }
    }
    Ok(failed)
}

/// Every kernel by itself.
fn check_kernels(device: &CudaDevice) -> Outcome<usize> {
    let start = Instant::now();
    let checks = check::kernels(device)?;
    println!("{:44}  {:>5}  result", format!("kernels alone, {:?}", device.kernel_set()), "cases");
    for check in &checks {
        let result = match &check.difference {
            None => "equal".to_owned(),
            Some(first) => format!("{} differ: {first}", check.failed),
        };
        println!("{:44}  {:>5}  {result}", check.kernel, check.cases);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(checks.iter().filter(|check| check.failed > 0).count())
}

/// Shapes that no block of rows, columns, lanes or heads divides.
fn shapes() -> Vec<(String, Config, FloatFormat)> {
    let base = Config { vocab_size: 301, num_hidden_layers: 2, max_position_embeddings: 200, ..SHAPE_2B4T };
    let sizes = [
        // hidden, intermediate, heads, key and value heads, head_dim
        (20, 36, 2, 1, 2),
        (33, 257, 3, 3, 10),
        (256, 512, 4, 2, 64),
        (500, 1000, 5, 1, 34),
        (1031, 2051, 7, 7, 66),
        (1280, 10_300, 8, 2, 160),
        (300, 260, 2, 1, 320),
        (192, 320, 6, 2, 32),
        // So large that newer cards store five trits in a byte: gate and up of odd width; queries, keys and values together,
        // and one matrix, of wide rows.
        (1000, 40_500, 5, 1, 34),
        (9216, 600, 72, 2, 128),
    ];
    let formats = [FloatFormat::Keep, FloatFormat::F16, FloatFormat::Int8];
    sizes
        .iter()
        .enumerate()
        .map(|(i, &(hidden, intermediate, heads, kv_heads, head_dim))| {
            let config = Config {
                hidden_size: hidden,
                intermediate_size: intermediate,
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                head_dim,
                // Attention is another kernel from position 1024 on.
                max_position_embeddings: if hidden < 200 { 1100 } else { 200 },
                hidden_act: if i % 2 == 0 { Activation::Relu2 } else { Activation::Silu },
                ..base
            };
            (
                format!("random {hidden} x {intermediate}, {heads}/{kv_heads} heads of {head_dim}"),
                config,
                formats[i % 3],
            )
        })
        .collect()
}

/// Tokens without a pattern.
pub(crate) fn tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocab_size = model.config().vocab_size as u64;
    (1..=count as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % vocab_size).map(|t| t as u32).collect()
}

/// What differs first, if anything.
pub(crate) fn difference(what: &str, gpu: &[f32], cpu: &[f32]) -> Option<String> {
    if gpu.len() != cpu.len() {
        return Some(format!("{what}: {} logits, expected {}", gpu.len(), cpu.len()));
    }
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let count = gpu.iter().zip(cpu).filter(|pair| differ(*pair)).count();
    let first = gpu.iter().zip(cpu).position(differ)?;
    Some(format!("{what}: {count} of {} differ, first {first}: {:e}, expected {:e}", gpu.len(), gpu[first], cpu[first]))
}
