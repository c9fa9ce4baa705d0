//! Compares a GPU with the CPU, bit for bit, and measures it: `trion-gpu-test [--speed | --only-speed | --only-models |
//! --only-kernels | --predict] [MODEL ...]`. With `--predict` it says how fast a GTX 1050 and an H100 ought to be,
//! which needs no GPU.
//!
//! Models are files or directories; every kernel by itself and random models of awkward shapes come besides. Prints
//! tables, and fails if a bit differs.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use trion_core::{
    Activation, CacheType, Config, FloatData, Logits, Matrix, Progress, Sampler, SamplerOptions, SessionOptions,
    TokenLogit,
};
use trion_cuda::roofline::{self, Card, Launch, total_ms};
use trion_cuda::{CudaBatch, CudaDevice, CudaModel, CudaSession, KernelSet, check, measure};
use trion_engine::{FloatFormat, Model, Pool, Session, random_model};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().cloned().unwrap_or_default();
    let everything = !what.starts_with("--only");
    let parts = Parts {
        kernels: everything || what == "--only-kernels",
        random_models: everything,
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
    for device in if parts.random_models { devices } else { &[] } {
        let outcome = compare_top_k(device)?;
        failed += usize::from(outcome.is_some());
        let result = outcome.unwrap_or_else(|| "equal".to_owned());
        println!("{:?}, the largest logits of random rows: {result}", device.kernel_set());
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
        let (mut moved, mut sampled) = (None, None);
        for uploaded in &uploaded {
            moved = moved.or(operations(model, uploaded, pool, cache)?).or(together(model, uploaded, cache)?);
            sampled = sampled.or(sampling(model, uploaded, pool, cache)?);
        }
        for (what, outcome) in [("all, fork, save, batch", moved), ("sampling", sampled)] {
            failed += usize::from(outcome.is_some());
            let result = outcome.unwrap_or_else(|| "equal".to_owned());
            println!("{name:44}  {:>5}  {what:>22}  {result}", format!("{cache:?}"));
        }
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

/// Tokens drawn from the largest logits that the GPU finds, against those drawn on the CPU from all; and sessions that
/// are copied and saved while the GPU alone has their logits.
fn sampling(model: &Model, uploaded: &CudaModel, pool: &Pool, cache: CacheType) -> Outcome<Option<String>> {
    let context = 40.min(model.config().max_position_embeddings);
    let options = SessionOptions { max_batch: 4.min(context), cache, ..SessionOptions::new(context) };
    let prompt = tokens(model, 6.min(context / 2));
    let warm = SamplerOptions { temperature: 0.8, top_k: 40, seed: 7, ..SamplerOptions::GREEDY };
    for sampler in [
        SamplerOptions::GREEDY,
        warm,
        SamplerOptions { top_k: 1, ..warm },
        SamplerOptions { top_k: 256, repetition_penalty: 1.2, ..warm },
        SamplerOptions { top_k: 0, top_p: 0.9, min_p: 0.01, temperature: 3.0, ..warm },
        SamplerOptions { temperature: 0.0, repetition_penalty: 1.5, ..warm },
    ] {
        let (mut all, mut some) = (Sampler::new(sampler)?, Sampler::new(sampler)?);
        let mut cpu = Session::new(model, options)?;
        let mut gpu = CudaSession::new(uploaded, options)?;
        let mut next = prompt.clone();
        while gpu.tokens().len() + next.len() <= context {
            cpu.evaluate(&next, pool)?;
            gpu.push(&next)?;
            while gpu.compute(usize::MAX)? == Progress::More {}
            let token = all.sample(cpu.logits().unwrap_or(&[]), cpu.tokens());
            let count = some.candidates(gpu.tokens().len()).ok_or("these options need all logits")?;
            let found = gpu.top_k(count)?;
            if gpu.logits().is_some() {
                return Ok(Some("logits were copied that nobody asked for".to_owned()));
            }
            if let Some(what) = difference_of_top_k(&found, cpu.logits().unwrap_or(&[]), count) {
                return Ok(Some(format!("{sampler:?}, position {}: {what}", cpu.tokens().len())));
            }
            if some.sample_candidates(&found, gpu.tokens()) != token || some != all {
                return Ok(Some(format!("{sampler:?}, position {}: another token", cpu.tokens().len())));
            }
            next = vec![token];
        }
        let expected = cpu.logits().unwrap_or(&[]);
        let mut saved = vec![0; gpu.saved_bytes()];
        gpu.save(&mut saved)?;
        let mut loaded = CudaSession::new(uploaded, options)?;
        loaded.load(&saved)?;
        let again = loaded.top_k(7)?;
        let copied = gpu.fork()?;
        gpu.read_logits()?;
        for (what, session) in [("loaded", &loaded), ("copied", &copied), ("read", &gpu)] {
            if let Some(what) = difference(what, session.logits().unwrap_or(&[]), expected) {
                return Ok(Some(what));
            }
        }
        if let Some(what) = difference_of_top_k(&again, expected, 7) {
            return Ok(Some(format!("loaded: {what}")));
        }
    }
    Ok(None)
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
        if round == 3 {
            // The batch finds these logits on the device alone.
            let _ = rows[0].compute(usize::MAX)?;
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

/// The largest logits, as the sampler orders them.
fn largest(logits: &[f32]) -> Vec<TokenLogit> {
    let number = |l: &TokenLogit| if l.logit.is_nan() { f32::MIN } else { l.logit };
    let mut all: Vec<TokenLogit> = (0..).zip(logits).map(|(token, &logit)| TokenLogit { token, logit }).collect();
    all.sort_unstable_by(|a, b| number(b).total_cmp(&number(a)).then(a.token.cmp(&b.token)));
    // To total_cmp zeros differ by their sign.
    for zeros in all.chunk_by_mut(|a, b| number(a) == number(b)) {
        zeros.sort_unstable_by_key(|l| l.token);
    }
    all
}

/// What differs first between what a GPU found and the `k` largest, if anything.
fn difference_of_top_k(found: &[TokenLogit], logits: &[f32], k: usize) -> Option<String> {
    let mut expected = largest(logits);
    expected.truncate(k);
    difference_of_found(found, &expected)
}

fn difference_of_found(found: &[TokenLogit], expected: &[TokenLogit]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} of the largest logits, expected {}", found.len(), expected.len()));
    }
    let equal = |a: &TokenLogit, b: &TokenLogit| {
        a.token == b.token && (a.logit.to_bits() == b.logit.to_bits() || (a.logit.is_nan() && b.logit.is_nan()))
    };
    let first = (0..found.len()).find(|i| !equal(&found[*i], &expected[*i]))?;
    Some(format!("number {first} of the largest logits is {:?}, expected {:?}", found[first], expected[first]))
}

/// A number without a pattern.
fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as u32
}

/// A number of a random one and of the place in its row.
type Numbers = &'static dyn Fn(u32, usize) -> f32;

/// Between -8 and 8.
fn wide(random: u32) -> f32 {
    (random >> 8) as f32 / (1 << 20) as f32 - 8.0
}

/// The largest logits of random rows, with ties, zeros of both signs, NaN and infinities, against the host's.
fn compare_top_k(device: &CudaDevice) -> Outcome<Option<String>> {
    let kinds: [(&str, Numbers); 9] = [
        ("random", &|r, _| wide(r)),
        ("any bits", &|r, _| f32::from_bits(r)),
        ("few numbers", &|r, _| wide(r).floor()),
        ("all equal", &|_, _| -1.5),
        ("no numbers", &|r, _| if r % 50 == 0 { f32::NAN } else { f32::NEG_INFINITY }),
        ("NaN and the smallest", &|r, _| [f32::NAN, f32::MIN, f32::NEG_INFINITY, f32::MIN][r as usize % 4]),
        ("zeros and infinity", &|r, _| [0.0, -0.0, -0.0, f32::INFINITY][if r % 99 == 0 { 3 } else { r as usize % 3 }]),
        ("falling", &|_, i| -(i as f32)),
        ("rising", &|_, i| i as f32 - 1000.0),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for (vocab_size, rows) in
        [(1, 1), (2, 3), (31, 1), (301, 2), (4096, 1), (4097, 2), (9000, 1), (128_256, 2), (600_000, 1)]
    {
        for (kind, number) in kinds {
            let logits: Vec<f32> = (0..rows * vocab_size).map(|i| number(random(&mut state), i % vocab_size)).collect();
            let sorted: Vec<_> = logits.chunks(vocab_size).map(largest).collect();
            for k in [1, 2, 40, 256, 320, CudaSession::MOST_CANDIDATES] {
                let (found, _) = measure::top_k(device, &logits, rows, k)?;
                let expected: Vec<_> = sorted.iter().flat_map(|row| &row[..k.min(vocab_size)]).copied().collect();
                if let Some(what) = difference_of_found(&found, &expected) {
                    return Ok(Some(format!("{kind}, {rows} x {vocab_size}, k {k}: {what}")));
                }
            }
        }
    }
    Ok(None)
}

/// Times of finding the largest logits of a vocabulary of 128256, without the way to the host.
fn speed_of_top_k(device: &CudaDevice) -> Outcome<()> {
    let mut state = 1;
    // Sums of some numbers, which are more often small than large, as logits are.
    let logits: Vec<f32> = (0..128_256)
        .map(|_| (0..6).map(|_| (random(&mut state) >> 8) as f32).sum::<f32>() / (1 << 23) as f32)
        .collect();
    for k in [1, 40, 104, 256, 320] {
        println!("the {k} largest of {} logits: {:.2} us", logits.len(), measure::top_k(device, &logits, 1, k)?.1);
    }
    Ok(())
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

/// What `speed_of_2b4t` measures, and its options.
const PROMPT: usize = 512;
const DECODED: usize = 128;
const OPTIONS: SessionOptions =
    SessionOptions { max_batch: PROMPT, cache: CacheType::F16, ..SessionOptions::new(1024) };

/// Milliseconds that are predicted of a token in the middle of those decoded, and of the prompt.
fn predicted(model: &Model, card: &Card) -> [f64; 2] {
    let token = roofline::token(model.core(), &OPTIONS, PROMPT + DECODED / 2, card);
    [total_ms(&token), total_ms(&roofline::prompt(model.core(), &OPTIONS, PROMPT, card))]
}

/// What a GTX 1050 and an H100 ought to need, from their ceilings alone.
fn predict() -> Outcome<()> {
    let model = random_model(&shape_2b4t(), FloatFormat::Int8, 1)?;
    let card = Card::GTX_1050;
    println!("{card:?}");
    print_launches("a token", &roofline::token(model.core(), &OPTIONS, PROMPT + DECODED / 2, &card), &card);
    print_launches("a prompt", &roofline::prompt(model.core(), &OPTIONS, PROMPT, &card), &card);
    println!("{:?}", Card::H100);
    for (set, overlaps) in [(KernelSet::Sm61, false), (KernelSet::Sm90, true)] {
        let [token, prompt] = predicted(&model, &Card { overlaps, ..Card::H100 });
        println!("H100, {set:?}: {token:.3} ms a token at position 576, {prompt:.1} ms a prompt of 512 by dp4a");
    }
    Ok(())
}

fn print_launches(what: &str, launches: &[Launch], card: &Card) {
    let heads = ["count", "blocks", "threads", "MB", "M dp4a", "us each", "ms"];
    let [count, blocks, threads, mb, dp4a, micros, ms] = heads;
    println!("{what:22}  {count:>5}  {blocks:>6}  {threads:>7}  {mb:>7}  {dp4a:>7}  {micros:>8}  {ms:>7}");
    let mut bytes = 0.0;
    for launch in launches {
        let Launch { name, count, shape: [blocks, threads], micros, .. } = *launch;
        let (mb, dp4a) = (launch.bytes as f64 / 1e6, launch.dp4a as f64 / 1e6);
        bytes += mb * count as f64 / 1e3;
        let ms = count as f64 * micros / 1e3;
        println!("{name:22}  {count:>5}  {blocks:>6}  {threads:>7}  {mb:>7.2}  {dp4a:>7.2}  {micros:>8.1}  {ms:>7.3}");
    }
    let (ms, floor) = (total_ms(launches), 1e3 * bytes / card.bandwidth);
    println!("{what}: {ms:.2} ms; its {bytes:.3} GB alone {floor:.2} ms at {:.1} GB/s", card.bandwidth);
}

/// Time of a token at position 512 and of a prompt of 512, at the shape of 2B4T with random weights and an int8 head.
fn speed_of_2b4t(device: &CudaDevice, pool: &Pool) -> Outcome<usize> {
    let model = random_model(&shape_2b4t(), FloatFormat::Int8, 1)?;
    let options = OPTIONS;
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

    let prompt = tokens(&model, PROMPT);
    let mut session = CudaSession::new(&uploaded, options)?;
    session.evaluate(&prompt)?;
    session.greedy(8)?;
    let (mut prompt_times, mut token_times) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        session.rewind(0)?;
        let start = Instant::now();
        session.evaluate(&prompt)?;
        prompt_times.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        session.greedy(DECODED)?;
        token_times.push(start.elapsed().as_secs_f64() * 1e3 / DECODED as f64);
    }
    let sampled = sampling_times(&mut session, &prompt)?;
    println!("ms a token of 128 drawn by top-k 40, from the largest logits and from all: {sampled:.3?}");
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
    drop(session);
    let card = measure::card(device)?;
    println!("{card:?}");
    let measured = [&mut token_times, &mut prompt_times].map(|times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let names = ["a token at positions 512 to 640", "a prompt of 512"];
    for ((name, measured), predicted) in names.into_iter().zip(measured).zip(predicted(&model, &card)) {
        // Prompts are reckoned as `dp4a` makes them.
        if card.overlaps && name.contains("prompt") {
            println!("{name}: {measured:.3} ms by tensor cores");
            continue;
        }
        let ratio = predicted / measured;
        let judgement = if (0.75..=1.25).contains(&ratio) { "within" } else { "not within" };
        println!("{name}: {measured:.3} ms, predicted {predicted:.3}, ratio {ratio:.2}, {judgement} 25 %");
    }
    Ok(usize::from(failed.is_some()) + usize::from(sampled.is_none()))
}

/// Milliseconds of a drawn token behind a prompt: from the largest logits, and from all. None if other tokens are drawn.
fn sampling_times(session: &mut CudaSession, prompt: &[u32]) -> Outcome<Option<[f64; 2]>> {
    let options = SamplerOptions { temperature: 0.8, top_k: 40, seed: 7, ..SamplerOptions::GREEDY };
    let (mut times, mut texts) = ([0.0; 2], [Vec::new(), Vec::new()]);
    for (i, reads_all) in [false, true].into_iter().enumerate() {
        let mut sampler = Sampler::new(options)?;
        session.rewind(0)?;
        session.evaluate(prompt)?;
        let start = Instant::now();
        for _ in 0..128 {
            let token = if reads_all {
                session.read_logits()?;
                sampler.sample(session.logits().unwrap_or(&[]), session.tokens())
            } else {
                sampler.sample_candidates(&session.top_k(options.top_k)?, session.tokens())
            };
            texts[i].push(token);
            session.push(&[token])?;
            while session.compute(usize::MAX)? == Progress::More {}
        }
        session.read_logits()?;
        times[i] = start.elapsed().as_secs_f64() * 1e3 / 128.0;
    }
    Ok((texts[0] == texts[1]).then_some(times))
}
