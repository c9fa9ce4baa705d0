//! Compares a GPU with the CPU, bit for bit, and measures it: `trion-gpu-test [--speed | --only-speed | --only-models |
//! --only-kernels] [MODEL ...]`.
//!
//! Models are files or directories; every kernel by itself and random models of awkward shapes come besides. Prints
//! tables, and fails if a bit differs.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use trion_core::{Activation, CacheType, Config, FloatData, Logits, Matrix, Sampler, SamplerOptions, SessionOptions};
use trion_cuda::{CudaBatch, CudaDevice, CudaModel, CudaSession, KernelSet, check, measure};
use trion_engine::{FloatFormat, Model, Pool, Session, random_model};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("", String::as_str);
    let everything = !what.starts_with("--only");
    let parts = Parts {
        kernels: everything || what == "--only-kernels",
        random_models: everything,
        speed: what.ends_with("speed"),
    };
    if what.starts_with("--") {
        arguments.remove(0);
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
    speed: bool,
}

fn run(devices: &[CudaDevice], parts: Parts, models: &[String]) -> Outcome<usize> {
    let device = &devices[0];
    println!("{}, {} multiprocessors, memory {:?}", device.name(), device.multiprocessors(), device.memory()?);
    println!("kernels: {:?}", devices.iter().map(CudaDevice::kernel_set).collect::<Vec<_>>());
    let pool = Pool::new(0)?;
    let mut failed = 0;
    for device in if parts.kernels { devices } else { &[] } {
        failed += check_kernels(device)?;
    }
    println!("{:44}  {:>5}  {:>6}  {:>6}  {:>6}  result", "model", "cache", "prompt", "batch", "decode");
    for (name, config, embedding) in if parts.random_models { shapes() } else { Vec::new() } {
        let model = random_model(&config, embedding, 7)?;
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
        failed += compare_model(devices, &pool, &name, &model, &[1, 17, 64, 500], 200)?;
    }
    if parts.speed {
        for device in devices {
            println!("{:?}", device.kernel_set());
            speed_of_gemv(device)?;
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

/// The shape of Microsoft's `BitNet` b1.58 2B4T.
fn shape_2b4t() -> Config {
    Config {
        vocab_size: 128_256,
        hidden_size: 2560,
        intermediate_size: 6912,
        num_hidden_layers: 30,
        num_attention_heads: 20,
        num_key_value_heads: 5,
        head_dim: 128,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        projection_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        hidden_act: Activation::Relu2,
        activation_group: 0,
    }
}

/// Shapes that no block of rows, columns, lanes or heads divides.
fn shapes() -> Vec<(String, Config, FloatFormat)> {
    let base = Config { vocab_size: 301, num_hidden_layers: 2, max_position_embeddings: 200, ..shape_2b4t() };
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

/// Compares prompts and greedy decoding, with both caches and several batch sizes, and everything a session can do.
fn compare_model(
    devices: &[CudaDevice],
    pool: &Pool,
    name: &str,
    model: &Model,
    prompts: &[usize],
    decode: usize,
) -> Outcome<usize> {
    let uploaded: Vec<CudaModel> =
        devices.iter().map(|device| CudaModel::upload(device, model.core())).collect::<Result<_, _>>()?;
    let longest = model.config().max_position_embeddings;
    let mut failed = 0;
    for cache in [CacheType::F32, CacheType::F16] {
        for (i, prompt) in prompts.iter().enumerate() {
            let prompt = (*prompt).min(longest - 1);
            let decode = decode.min(longest - prompt);
            let context = prompt + decode;
            let max_batch = [64, 7, 512][i % 3].min(context);
            let options = SessionOptions { max_batch, cache, ..SessionOptions::new(context) };
            let outcome = compare(model, &uploaded, pool, options, &tokens(model, prompt), decode)?;
            failed += usize::from(outcome.is_some());
            let result = outcome.unwrap_or_else(|| "equal".to_owned());
            println!("{name:44}  {:>5}  {prompt:>6}  {max_batch:>6}  {decode:>6}  {result}", format!("{cache:?}"));
        }
        let mut outcome = None;
        for uploaded in &uploaded {
            outcome = outcome.or(operations(model, uploaded, pool, cache)?).or(together(model, uploaded, cache)?);
        }
        failed += usize::from(outcome.is_some());
        let result = outcome.unwrap_or_else(|| "equal".to_owned());
        println!("{name:44}  {:>5}  {:>22}  {result}", format!("{cache:?}"), "all, fork, save, batch");
    }
    Ok(failed)
}

/// The model with a bfloat16 number in the last column of the embedding of the second token; none if it has other
/// numbers there.
fn with_number(model: &Model, bits: u16) -> Outcome<Option<Model>> {
    let Matrix::Float(embedding) = model.core().embedding() else { return Ok(None) };
    let FloatData::Bf16(values) = embedding.data() else { return Ok(None) };
    let mut bytes = model.packed().to_vec();
    let row = tokens(model, 2)[1] as usize;
    let at =
        values.as_ptr() as usize - model.packed().as_ptr() as usize + 2 * ((row + 1) * model.config().hidden_size - 1);
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    Ok(Some(Model::from_bytes(&bytes)?))
}

/// Tokens without a pattern.
fn tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocab_size = model.config().vocab_size as u64;
    (1..=count as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % vocab_size).map(|t| t as u32).collect()
}

/// What differs first, if anything.
fn difference(what: &str, gpu: &[f32], cpu: &[f32]) -> Option<String> {
    if gpu.len() != cpu.len() {
        return Some(format!("{what}: {} logits, expected {}", gpu.len(), cpu.len()));
    }
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let count = gpu.iter().zip(cpu).filter(|pair| differ(*pair)).count();
    let first = gpu.iter().zip(cpu).position(differ)?;
    Some(format!("{what}: {count} of {} differ, first {first}: {:e}, expected {:e}", gpu.len(), gpu[first], cpu[first]))
}

fn compare(
    model: &Model,
    uploaded: &[CudaModel],
    pool: &Pool,
    options: SessionOptions,
    prompt: &[u32],
    decode: usize,
) -> Outcome<Option<String>> {
    let mut cpu = Session::new(model, options)?;
    let mut greedy = Sampler::new(SamplerOptions::GREEDY)?;
    let expected = cpu.evaluate(prompt, pool)?;
    let mut gpus = Vec::new();
    for uploaded in uploaded {
        let mut gpu = CudaSession::new(uploaded, options)?;
        let set = uploaded.device().kernel_set();
        if let Some(what) = difference(&format!("{set:?}, prompt"), gpu.evaluate(prompt)?, expected) {
            return Ok(Some(what));
        }
        let on_device = gpu.fork()?;
        gpus.push((set, gpu, on_device));
    }
    let mut chosen = Vec::new();
    for i in 0..decode {
        let token = greedy.sample(cpu.logits().unwrap_or(&[]), &[]);
        chosen.push(token);
        let expected = cpu.evaluate(&[token], pool)?;
        for (set, gpu, _) in &mut gpus {
            if let Some(what) = difference(&format!("{set:?}, token {i}"), gpu.evaluate(&[token])?, expected) {
                return Ok(Some(what));
            }
        }
    }
    for (set, _, on_device) in &mut gpus {
        if on_device.greedy(decode)? != chosen {
            return Ok(Some(format!("{set:?}, greedy tokens differ")));
        }
        let (found, expected) = (on_device.logits().unwrap_or(&[]), cpu.logits().unwrap_or(&[]));
        if let Some(what) = difference(&format!("{set:?}, greedy"), found, expected) {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Logits of every position, rewinding, forks, and states that move between CPU and GPU.
fn operations(model: &Model, uploaded: &CudaModel, pool: &Pool, cache: CacheType) -> Outcome<Option<String>> {
    let context = 40.min(model.config().max_position_embeddings);
    let options = SessionOptions { max_batch: 32.min(context), cache, logits: Logits::All, context };
    let tokens = tokens(model, 30.min(context));
    let (first, rest) = tokens.split_at(tokens.len() / 2);
    let mut cpu = Session::new(model, options)?;
    let mut gpu = CudaSession::new(uploaded, options)?;
    if let Some(what) = difference("all logits", gpu.evaluate(first)?, cpu.evaluate(first, pool)?) {
        return Ok(Some(what));
    }
    let mut saved = vec![0; gpu.saved_bytes()];
    if gpu.save(&mut saved)? != saved.len() {
        return Ok(Some("a saved state has another length than was said".to_owned()));
    }
    // The sign and payload of a NaN may differ.
    if saved != cpu.save()? && !cpu.logits().unwrap_or(&[]).iter().any(|logit| logit.is_nan()) {
        return Ok(Some("saved states differ".to_owned()));
    }
    let expected = cpu.evaluate(rest, pool)?.to_vec();
    let mut fork = gpu.fork()?;
    if let Some(what) = difference("fork", fork.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    // Of another shape, and with something else in it.
    let roomier = SessionOptions { context: (context + 5).min(model.config().max_position_embeddings), ..options };
    let mut taken = CudaSession::new(uploaded, roomier)?;
    taken.push(&rest[..1])?;
    taken.fork_from(&gpu)?;
    if let Some(what) = difference("taken over", taken.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    let mut loaded = CudaSession::new(uploaded, options)?;
    loaded.load(&saved)?;
    if let Some(what) = difference("loaded", loaded.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    let mut from_gpu = Session::new(model, options)?;
    from_gpu.load(&saved)?;
    if let Some(what) = difference("loaded by the CPU", from_gpu.evaluate(rest, pool)?, &expected) {
        return Ok(Some(what));
    }
    loaded.rewind(first.len())?;
    Ok(difference("rewound", loaded.evaluate(rest)?, &expected))
}

/// Sessions that advance together, at different positions, against each alone.
fn together(model: &Model, uploaded: &CudaModel, cache: CacheType) -> Outcome<Option<String>> {
    let context = 100.min(model.config().max_position_embeddings);
    let (mut alone, mut joined) = (Vec::new(), Vec::new());
    for i in 0..9_usize {
        // Contexts differ, so that caches are laid out differently.
        let options = SessionOptions { max_batch: 8, cache, ..SessionOptions::new(context - i) };
        let mut session = CudaSession::new(uploaded, options)?;
        session.push(&tokens(model, 1 + 9 * i % (context - 30)))?;
        joined.push(session.fork()?);
        alone.push(session);
    }
    let mut batch = CudaBatch::new(uploaded, 9, context)?;
    for (round, count) in [9, 8, 1, 2, 5].into_iter().enumerate() {
        let mut rows: Vec<&mut CudaSession> = joined.iter_mut().take(count).collect();
        if round > 0 {
            for row in &mut rows {
                row.push(&[3])?;
            }
        }
        let _ = batch.advance(&mut rows)?;
        batch.greedy(&mut rows, 2)?;
        for session in alone.iter_mut().take(count) {
            if round > 0 {
                session.push(&[3])?;
            }
            let _ = session.advance(usize::MAX)?;
            session.greedy(2)?;
        }
        for (i, (joined, alone)) in joined.iter().zip(&alone).take(count).enumerate() {
            if joined.tokens() != alone.tokens() {
                return Ok(Some(format!("{count} sessions together, session {i}: other tokens")));
            }
            let (found, expected) = (joined.logits().unwrap_or(&[]), alone.logits().unwrap_or(&[]));
            if let Some(what) = difference(&format!("{count} sessions together, session {i}"), found, expected) {
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}

/// Times of products from device memory, and what part of a copy's bandwidth that is.
fn speed_of_gemv(device: &CudaDevice) -> Outcome<()> {
    let copy = measure::copy_bandwidth(device)?;
    println!("copy: {copy:.0} GB/s, read and written");
    println!("{:>7}  {:>6}  {:>8}  {:>6}  {:>10}", "rows", "cols", "us", "GB/s", "of a copy");
    let shapes = [(2560, 2560), (3840, 2560), (6912, 2560), (13_824, 2560), (2560, 6912), (55_296, 5120)];
    for (rows, cols) in shapes {
        let micros = measure::gemv_time(device, rows, cols, 0)?;
        let rate = (rows * cols / 4 + cols + 4 * rows) as f64 / micros / 1e3;
        println!("{rows:>7}  {cols:>6}  {micros:>8.2}  {rate:>6.0}  {:>8.1} %", 100.0 * rate / copy);
    }
    Ok(())
}

/// Time of a token at position 512 and of a prompt of 512, at the shape of 2B4T with random weights and an int8 head.
fn speed_of_2b4t(device: &CudaDevice, pool: &Pool) -> Outcome<usize> {
    let model = random_model(&shape_2b4t(), FloatFormat::Int8, 1)?;
    let options = SessionOptions { max_batch: 512, cache: CacheType::F16, ..SessionOptions::new(1024) };
    println!("{:?}", trion_cuda::MemoryPlan::new(model.core(), &options, device.multiprocessors()));
    let start = Instant::now();
    let uploaded = CudaModel::upload(device, model.core())?;
    println!("2b4t shape, int8 head: upload {:.2} s", start.elapsed().as_secs_f64());
    let failed = compare(
        &model,
        std::slice::from_ref(&uploaded),
        pool,
        SessionOptions { context: 100, max_batch: 64, ..options },
        &tokens(&model, 80),
        8,
    )?;
    println!("2b4t shape, prompt 80, decode 8: {}", failed.as_deref().unwrap_or("equal"));

    let prompt = tokens(&model, 512);
    let mut session = CudaSession::new(&uploaded, options)?;
    session.evaluate(&prompt)?;
    session.greedy(8)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        session.rewind(0)?;
        let start = Instant::now();
        session.evaluate(&prompt)?;
        let prompt_time = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        session.greedy(128)?;
        times.push((prompt_time, start.elapsed().as_secs_f64() * 1e3 / 128.0));
    }
    println!("ms of a prompt of 512, ms a token of 128 greedy ones behind it: {times:.3?}");
    session.rewind(512)?;
    session.evaluate(&[1])?;
    for count in [2, 4, 8, 16] {
        let mut sessions = (0..count).map(|_| session.fork()).collect::<Result<Vec<_>, _>>()?;
        let mut rows: Vec<&mut CudaSession> = sessions.iter_mut().collect();
        let mut batch = CudaBatch::new(&uploaded, count, options.context)?;
        batch.greedy(&mut rows, 8)?;
        let start = Instant::now();
        batch.greedy(&mut rows, 128)?;
        let step = start.elapsed().as_secs_f64() * 1e3 / 128.0;
        println!("{count} sessions together: {step:.3} ms a step, {:.0} tokens/s", count as f64 / step * 1e3);
    }
    Ok(usize::from(failed.is_some()))
}
