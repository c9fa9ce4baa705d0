//! `trion bench`.

use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum, value_parser};
use memmap2::MmapMut;
use serde_json::json;
use trion_engine::{
    Activation, Batch, Config, Device, FloatFormat, Kernel, PackOptions, Parallel, SHAPE_2B4T, Session, SessionOptions,
    random_model,
};

use crate::common::{ComputeArguments, Failure, Outcome, open, print_line};
use crate::generate::rate;
use crate::kernel_speed;
use crate::layer_times::{LayerTime, layer_bytes};
use crate::quantize::PackingName;

/// Bytes that the bandwidth is measured on: beyond any cache.
const BANDWIDTH_BYTES: usize = 512 << 20;
/// Bytes that a thread reads at once.
const CHUNK: usize = 1 << 18;
/// Tokens of the prompt where the model has room for them.
const DEFAULT_PROMPT: usize = 512;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A packed file, a Hugging Face directory or a GGUF file [default: the model inside this program]
    #[arg(conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Random trits in the shape of a known model instead
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// Number format of the embedding and head of a shape
    #[arg(long, value_enum, default_value_t = HeadName::Bf16)]
    head: HeadName,
    /// How the trits of a shape lie in memory
    #[arg(long, value_enum, default_value_t = PackingName::Twos)]
    packing: PackingName,
    /// Tokens of the prompt [default: 512, or what the model's context has room for]
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    prompt: Option<u32>,
    /// Tokens to decode
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..))]
    decode: u32,
    /// Tokens of the prompt that go through the model together
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Decode in this many sessions together too
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..=Batch::MAX_SESSIONS as i64))]
    sessions: u8,
    /// Tell the time of each kind of layers, too
    #[arg(long)]
    layers: bool,
    /// Measure products of trits by themselves, beside memory and the processor's instructions, without a model
    #[arg(long, conflicts_with_all = ["model", "shape", "layers", "json", "device"])]
    kernels: bool,
    /// Measurements; the median counts
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    compute: ComputeArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Number format of the embedding and head of a shape.
#[derive(Clone, Copy, ValueEnum)]
enum HeadName {
    Bf16,
    F16,
    Int8,
    Int6,
}

impl From<HeadName> for FloatFormat {
    fn from(name: HeadName) -> Self {
        match name {
            // What the engine makes random embeddings of.
            HeadName::Bf16 => FloatFormat::Keep,
            HeadName::F16 => FloatFormat::F16,
            HeadName::Int8 => FloatFormat::Int8,
            HeadName::Int6 => FloatFormat::Int6,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// microsoft/bitnet-b1.58-2B-4T
    #[value(name = "2b4t")]
    Bitnet2B4T,
    /// `1bitLLM/bitnet_b1_58-large`
    #[value(name = "0.7b")]
    Bitnet07B,
    /// The model inside this program
    #[value(name = "14m")]
    Classics14M,
}

impl Shape {
    fn config(self) -> Config {
        match self {
            Shape::Bitnet2B4T => SHAPE_2B4T,
            Shape::Bitnet07B => Config {
                vocab_size: 32_002,
                hidden_size: 1536,
                intermediate_size: 4096,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                num_key_value_heads: 16,
                head_dim: 96,
                max_position_embeddings: 2048,
                rope_theta: 10_000.0,
                hidden_act: Activation::Silu,
                ..SHAPE_2B4T
            },
            Shape::Classics14M => Config {
                vocab_size: 4096,
                hidden_size: 384,
                intermediate_size: 1024,
                num_hidden_layers: 8,
                num_attention_heads: 6,
                num_key_value_heads: 2,
                head_dim: 64,
                max_position_embeddings: 512,
                rope_theta: 10_000.0,
                ..SHAPE_2B4T
            },
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.kernels {
        return kernel_speed::run(arguments.compute.kernel()?, &arguments.compute.pool()?);
    }
    let model = match arguments.shape {
        Some(shape) => {
            let options = PackOptions { embedding: arguments.head.into(), packing: arguments.packing.into() };
            random_model(&shape.config(), &options, 1)?
        }
        None => open(arguments.model.as_deref())?,
    };
    let model = arguments.compute.place(&model)?;
    if arguments.layers && !matches!(model.device(), Device::Cpu) {
        return Err(Failure::advised("--layers tells of the CPU alone", "leave out --device, or --layers"));
    }
    let pool = arguments.compute.pool()?;
    let kernel = arguments.compute.kernel()?;
    let decode = arguments.decode as usize;
    let room = model.config().max_position_embeddings.saturating_sub(decode).max(1);
    let prompt_tokens = arguments.prompt.map_or(DEFAULT_PROMPT.min(room), |prompt| prompt as usize);
    let context = prompt_tokens.saturating_add(decode);
    let options = SessionOptions {
        max_batch: arguments.batch.min(context),
        cache: arguments.compute.cache(),
        ..SessionOptions::new(context)
    };
    let mut session = Session::with_kernel(&model, options, kernel)?;
    let vocab_size = model.config().vocab_size as u32;
    let prompt: Vec<u32> = (0..prompt_tokens as u32).map(|i| i.wrapping_mul(7919) % vocab_size).collect();
    let (mut prompts, mut decodes, mut together) = (Vec::new(), Vec::new(), Vec::new());
    let (mut others, mut memory_use) = (Vec::new(), None);
    for _ in 0..arguments.repeats {
        session.rewind(0)?;
        let start = Instant::now();
        session.evaluate(&prompt, &pool)?;
        prompts.push(rate(prompt.len(), start.elapsed().as_secs_f64()));
        let start = Instant::now();
        for token in 0..arguments.decode {
            session.evaluate(&[token % vocab_size], &pool)?;
        }
        decodes.push(rate(decode, start.elapsed().as_secs_f64()));
        // Of the first measurement: of one session, and before the bandwidth is measured, whose buffer is no part of
        // the model.
        memory_use.get_or_insert_with(|| (memory("VmRSS:"), memory("VmHWM:")));
        if arguments.sessions > 1 {
            session.rewind(prompt.len())?;
            while others.len() + 1 < usize::from(arguments.sessions) {
                others.push(session.fork()?);
            }
            let start = Instant::now();
            decode_together(&mut session, &mut others, arguments.decode, &pool)?;
            together.push(rate(decode * usize::from(arguments.sessions), start.elapsed().as_secs_f64()));
            others.iter_mut().try_for_each(|session| session.rewind(prompt.len()))?;
        }
    }
    let (prompt_rate, decode_rate) = (median(&mut prompts), median(&mut decodes));
    let together_rate = (!together.is_empty()).then(|| median(&mut together));
    let (resident, peak) = memory_use.unwrap_or_default();
    // What this machine's own memory gives says nothing of a GPU's.
    let device = model.device();
    let cache_bytes = options.cache.bytes();
    let layers = if arguments.layers {
        LayerTime::measure(&mut session, &prompt, arguments.decode, cache_bytes, &pool)?
    } else {
        Vec::new()
    };
    let bandwidth = matches!(device, Device::Cpu).then(|| bandwidth(kernel, &pool)).transpose()?;
    let bytes = layer_bytes(&model, prompt_tokens + decode / 2, cache_bytes).iter().sum::<usize>();
    let fraction = bandwidth.map(|bandwidth| bytes as f64 * decode_rate / bandwidth);
    if arguments.json {
        print_line(json!({
            "device": device.name(),
            "kernel": kernel.isa().name(),
            "threads": pool.threads(),
            "prompt_tokens": prompt_tokens,
            "prompt_tokens_per_second": prompt_rate,
            "decode_tokens": decode,
            "decode_tokens_per_second": decode_rate,
            "sessions": arguments.sessions,
            "together_tokens_per_second": together_rate,
            "bytes_per_token": bytes,
            "bandwidth": bandwidth,
            "fraction_of_bandwidth": fraction,
            "layers": layers.iter().map(LayerTime::json).collect::<Vec<_>>(),
            "packed_bytes": model.packed().len(),
            "resident_bytes": resident,
            "peak_resident_bytes": peak,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    let (isa, threads, packed) = (kernel.isa().name(), pool.threads(), model.packed().len());
    let device = device.name();
    writeln!(out, "device {device}, kernel {isa}, {threads} threads, packed model {packed} bytes")?;
    writeln!(out, "prompt of {prompt_tokens}: {prompt_rate:.1} tokens/s")?;
    writeln!(out, "decode of {decode}: {decode_rate:.1} tokens/s")?;
    if let Some(together) = together_rate {
        let (sessions, times) = (arguments.sessions, together / decode_rate);
        writeln!(
            out,
            "decode of {decode} in each of {sessions} sessions: {together:.1} tokens/s, {times:.2} times as many"
        )?;
    }
    write!(out, "{:.1} MB read for a token", bytes as f64 / 1e6)?;
    match (fraction, bandwidth) {
        (Some(fraction), Some(bandwidth)) => {
            let (percent, rate) = (100.0 * fraction, bandwidth / 1e9);
            writeln!(out, ": {percent:.0} % of the {rate:.1} GB/s that reading memory gives here")?;
        }
        _ => writeln!(out, ": {:.1} GB/s", bytes as f64 * decode_rate / 1e9)?,
    }
    if let (Some(bandwidth), false) = (bandwidth, layers.is_empty()) {
        writeln!(out, "{}", LayerTime::HEADING)?;
        layers.iter().try_for_each(|layer| writeln!(out, "{}", layer.line(bandwidth)))?;
    }
    if let (Some(resident), Some(peak)) = (resident, peak) {
        writeln!(out, "{:.0} MB resident, {:.0} MB at most", resident as f64 / 1e6, peak as f64 / 1e6)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Decodes `count` tokens in each session, all sessions together; the tokens of each differ.
fn decode_together(
    first: &mut Session,
    others: &mut [Session],
    count: u32,
    pool: &dyn Parallel,
) -> Result<(), Failure> {
    let vocab_size = first.model().config().vocab_size as u32;
    for token in 0..count {
        let mut batch = Batch::new();
        for (n, session) in iter::once(&mut *first).chain(&mut *others).enumerate() {
            session.push(&[(token + 100 * n as u32) % vocab_size])?;
            batch.add(session)?;
        }
        // Nobody cancels, so one call computes all.
        let _ = batch.advance(usize::MAX, pool)?;
    }
    Ok(())
}

/// Bytes a second that all threads together read from memory, in huge pages where the system gives them.
fn bandwidth(kernel: Kernel, pool: &dyn Parallel) -> Result<f64, Failure> {
    let mut map = huge_pages(BANDWIDTH_BYTES)?;
    // So that no page is the one page of zeros.
    map.fill(1);
    let mut rates = Vec::new();
    for _ in 0..5 {
        let (next, total) = (AtomicUsize::new(0), AtomicU64::new(0));
        let start = Instant::now();
        pool.run(&|| {
            let mut sum = 0_u64;
            while let Some(chunk) = map.chunks(CHUNK).nth(next.fetch_add(1, Ordering::Relaxed)) {
                sum = sum.wrapping_add(kernel.read_memory(chunk, true));
            }
            total.fetch_add(sum, Ordering::Relaxed);
        });
        let seconds = start.elapsed().as_secs_f64();
        // The sum is used, or nothing would have to be read.
        rates.push(if total.into_inner() == 0 { 0.0 } else { rate(BANDWIDTH_BYTES, seconds) });
    }
    Ok(median(&mut rates))
}

/// Memory in huge pages where the system gives them.
pub(crate) fn huge_pages(bytes: usize) -> Result<MmapMut, Failure> {
    let no_memory = |e: io::Error| Failure::advised(format!("measuring memory: {e}"), "close other programs");
    let map = MmapMut::map_anon(bytes).map_err(no_memory)?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Bytes of RAM that this process has, by a line of Linux's `/proc/self/status`: `VmRSS:` for now, `VmHWM:` for the most
/// so far, the making of the model included. `None` on other systems.
fn memory(line: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|status| status.strip_prefix(line))?;
    value.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}
