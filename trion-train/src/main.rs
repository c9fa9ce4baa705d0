//! The command `trion-train`: from text to a ternary model.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use trion_engine::{FloatFormat, GenerateOptions, Model, PackOptions, Packing, Pool, SamplerOptions, generate};
use trion_train::data::{Tokens, encode};
use trion_train::export::{Format, export};
use trion_train::parameters::Initialization;
use trion_train::recipe::{OptimizerName, Precision, Recipe};
use trion_train::schedule::Schedule;
use trion_train::shape::{Architecture, Shape};
use trion_train::{Device, Error, Result, Trained, Trainer, draw, draw_sizes, tokenizer};

/// Trains ternary language models
#[derive(Parser)]
#[command(name = "trion-train", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Learn a byte-level BPE tokenizer from texts
    Tokenizer {
        /// UTF-8 texts; documents are separated by <|endoftext|>
        #[arg(required = true)]
        texts: Vec<PathBuf>,
        /// Tokens of the vocabulary
        #[arg(long, default_value_t = 4096)]
        vocab_size: usize,
        /// The file to write
        #[arg(short, long, default_value = "tokenizer.json")]
        output: PathBuf,
    },
    /// Encode texts into shards of tokens
    Data {
        /// UTF-8 texts; documents are separated by <|endoftext|>
        #[arg(required = true)]
        texts: Vec<PathBuf>,
        /// The tokenizer
        #[arg(long, default_value = "tokenizer.json")]
        tokenizer: PathBuf,
        /// The directory to write
        #[arg(short, long)]
        output: PathBuf,
        /// Tokens of a shard
        #[arg(long, default_value_t = 1 << 26)]
        shard_tokens: u64,
    },
    /// Train a model, or go on with a run
    Train(Box<TrainArguments>),
    /// Measure the last checkpoint of a run
    Eval {
        /// The run's directory
        run: PathBuf,
        /// Shards of other text
        data: PathBuf,
        /// Where to compute: cpu, cuda or cuda:N
        #[arg(long, default_value = "cpu")]
        device: String,
    },
    /// Write the last checkpoint of a run for transformers, or for Trion
    Export {
        /// The run's directory
        run: PathBuf,
        /// The directory, or the file, to write
        #[arg(short, long)]
        output: PathBuf,
        /// What to write
        #[arg(long, value_enum, default_value = "trion")]
        format: Format,
        /// Number format of embedding and head in Trion's file
        #[arg(long, value_enum, default_value = "int8")]
        embedding: Embedding,
    },
    /// Draw the losses of runs
    Curves {
        /// The runs' directories
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// The picture to write
        #[arg(short, long, default_value = "curves.svg")]
        output: PathBuf,
    },
    /// Draw the last measurements of runs by the size of their models
    Sizes {
        /// The runs' directories
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// The picture to write
        #[arg(short, long, default_value = "sizes.svg")]
        output: PathBuf,
    },
}

#[derive(Args)]
struct TrainArguments {
    /// Shards of tokens
    data: PathBuf,
    /// The run's directory; a run that is there goes on
    #[arg(short, long)]
    output: PathBuf,
    /// Shards of other text, to measure the model with
    #[arg(long)]
    valid: Option<PathBuf>,
    /// The model
    #[arg(long, value_enum, default_value = "1m")]
    shape: Shape,
    /// A config.json of Hugging Face's form with another shape
    #[arg(long, conflicts_with = "shape")]
    config: Option<PathBuf>,
    /// Tokens of a sequence, the model's context
    #[arg(long, default_value_t = 512)]
    positions: usize,
    /// Sequences that are computed together
    #[arg(long, default_value_t = 16)]
    sequences: usize,
    /// How often that many make a step
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Steps
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Steps in which the learning rates rise [default: a fiftieth]
    #[arg(long)]
    warmup: Option<u64>,
    /// What moves the blocks' matrices
    #[arg(long, value_enum, default_value = "muon")]
    optimizer: OptimizerName,
    /// Peak learning rate of `AdamW`
    #[arg(long, default_value_t = 6e-3)]
    adamw_rate: f64,
    /// Peak learning rate of Muon
    #[arg(long, default_value_t = 0.03)]
    muon_rate: f64,
    /// Weight decay of the first half
    #[arg(long, default_value_t = 0.03)]
    weight_decay: f64,
    /// Part of the peak rate at half of the steps
    #[arg(long, default_value_t = 0.5)]
    middle: f64,
    /// Part of the peak rate at the end
    #[arg(long, default_value_t = 0.001)]
    last: f64,
    /// Largest norm of a gradient
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// How parameters start
    #[arg(long, value_enum, default_value = "normal")]
    initialization: Initialization,
    /// A safetensors file to start from, in the names of Hugging Face
    #[arg(long)]
    from: Option<PathBuf>,
    /// Steps in which quantisation sets in, for a model that was float
    #[arg(long, default_value_t = 0)]
    lambda_steps: u64,
    /// Train the float twin instead: plain linear layers
    #[arg(long)]
    float: bool,
    /// Weights of a row that have a scale of their own: 64 or 128, or 0 for one scale of a matrix
    #[arg(long, default_value_t = 0)]
    weight_group: usize,
    /// What products are computed in [default: bf16 on a GPU, f32 on a CPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Starts the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Steps between measurements
    #[arg(long, default_value_t = 500)]
    eval_every: u64,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 500)]
    save_every: u64,
    /// How texts begin that are written at each measurement
    #[arg(long)]
    sample: Vec<String>,
}

/// A number format of embedding and head.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Embedding {
    /// As it was trained
    Keep,
    /// Half precision
    F16,
    /// A byte a weight
    Int8,
    /// Six bits a weight
    Int6,
}

impl From<Embedding> for FloatFormat {
    fn from(embedding: Embedding) -> Self {
        match embedding {
            Embedding::Keep => FloatFormat::Keep,
            Embedding::F16 => FloatFormat::F16,
            Embedding::Int8 => FloatFormat::Int8,
            Embedding::Int6 => FloatFormat::Int6,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Tokenizer { texts, vocab_size, output } => {
            tokenizer::train(&texts, vocab_size, &output)?;
            println!("{}: {vocab_size} tokens", output.display());
        }
        Command::Data { texts, tokenizer, output, shard_tokens } => {
            let bar = bar("bytes");
            let manifest = encode(&texts, &tokenizer, &output, shard_tokens, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            bar.finish_and_clear();
            let (tokens, shards) = (manifest.tokens(), manifest.shards.len());
            println!("{}: {tokens} tokens of {} bytes in {shards} shards", output.display(), manifest.bytes);
        }
        Command::Train(arguments) => train(&arguments)?,
        Command::Eval { run, data, device } => {
            let evaluation = Trained::open(&run)?.evaluate(&Tokens::open(&data)?, device.parse()?)?;
            println!("{}", json!(evaluation));
        }
        Command::Export { run, output, format, embedding } => {
            let model = Trained::open(&run)?;
            let options = PackOptions { embedding: embedding.into(), packing: Packing::Twos };
            export(&model, &output, format, &options)?;
            println!("{}", output.display());
        }
        Command::Curves { runs, output } => {
            draw(&runs, &output)?;
            println!("{}", output.display());
        }
        Command::Sizes { runs, output } => {
            draw_sizes(&runs, &output)?;
            println!("{}", output.display());
        }
    }
    Ok(())
}

fn train(arguments: &TrainArguments) -> Result<()> {
    let device: Device = arguments.device.parse()?;
    let precision = if device == Device::Cpu { Precision::F32 } else { Precision::Bf16 };
    let recipe = Recipe {
        shape: match &arguments.config {
            Some(path) => Architecture::read(path)?,
            None => Architecture::Named(arguments.shape),
        },
        positions: arguments.positions,
        sequences: arguments.sequences,
        accumulate: arguments.accumulate,
        schedule: Schedule {
            steps: arguments.steps,
            warmup: arguments.warmup.unwrap_or(arguments.steps / 50),
            adamw: arguments.adamw_rate,
            muon: arguments.muon_rate,
            weight_decay: arguments.weight_decay,
            middle: arguments.middle,
            last: arguments.last,
            lambda_steps: arguments.lambda_steps,
        },
        optimizer: arguments.optimizer,
        initialization: arguments.initialization,
        from: arguments.from.clone(),
        ternary: !arguments.float,
        weight_group: arguments.weight_group,
        precision: arguments.precision.unwrap_or(precision),
        clip: arguments.clip,
        seed: arguments.seed,
    };
    let valid = arguments.valid.as_deref().map(Tokens::open).transpose()?;
    let mut trainer = Trainer::open(&arguments.output, &recipe, Tokens::open(&arguments.data)?, device)?;
    let interrupted = listen()?;
    let bar = bar("steps");
    bar.set_length(recipe.schedule.steps);
    let (mut since, mut energy, mut steps_since) = (Instant::now(), trainer.energy(), 0);
    while trainer.steps() < recipe.schedule.steps {
        let step = trainer.step()?;
        steps_since += 1;
        bar.set_position(step.step);
        bar.set_message(format!("loss {:.4}", step.loss));
        let every = |n: u64| n > 0 && step.step % n == 0;
        let last = step.step == recipe.schedule.steps;
        let rates = recipe.schedule.rates(step.step);
        trainer.record(json!({
            "tokens": step.step * recipe.tokens_a_step(),
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "adamw_rate": rates.adamw,
            "muon_rate": rates.muon,
        }))?;
        if every(arguments.eval_every) || last {
            let tokens = (steps_since * recipe.tokens_a_step()) as f64;
            let joules = energy.zip(trainer.energy()).map(|(from, to)| to - from);
            let cost = Cost {
                tokens_per_second: tokens / since.elapsed().as_secs_f64(),
                // Counters begin anew now and then.
                joules_per_token: joules.filter(|joules| *joules > 0.0).map(|joules| joules / tokens),
            };
            measure(&mut trainer, arguments, valid.as_ref(), cost, step.loss, &bar)?;
            (since, energy, steps_since) = (Instant::now(), trainer.energy(), 0);
        }
        let stop = interrupted.load(Ordering::Relaxed);
        if every(arguments.save_every) || last || stop {
            trainer.save()?;
        }
        if stop {
            say(&bar, &format!("stopped after step {}; the same command goes on", step.step));
            break;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// What tokens cost since the last measurement.
#[derive(Clone, Copy)]
struct Cost {
    tokens_per_second: f64,
    joules_per_token: Option<f64>,
}

/// Says how the run goes, measures the model, and lets it write.
fn measure(
    trainer: &mut Trainer,
    arguments: &TrainArguments,
    valid: Option<&Tokens>,
    cost: Cost,
    loss: f32,
    bar: &ProgressBar,
) -> Result<()> {
    let mut line = format!("step {}: loss {loss:.4}, {:.0} tokens/s", trainer.steps(), cost.tokens_per_second);
    let mut metrics = json!({ "tokens_per_second": cost.tokens_per_second });
    if let Some(joules) = cost.joules_per_token {
        line = format!("{line}, {joules:.3e} J/token");
        metrics["joules_per_token"] = json!(joules);
    }
    if let Some(valid) = valid {
        let evaluation = trainer.evaluate(valid)?;
        let (nats, bits) = (evaluation.nats_per_token, evaluation.bits_per_byte);
        line = format!("{line}, other text {nats:.4} nats/token, {bits:.4} bits/byte");
        metrics["evaluation"] = json!(evaluation);
    }
    say(bar, &line);
    if !arguments.sample.is_empty() && !arguments.float {
        let texts = samples(&trainer.model()?, &arguments.output, &arguments.sample)?;
        texts.iter().for_each(|text| say(bar, &format!("> {text}")));
        metrics["samples"] = json!(texts);
    }
    trainer.record(metrics)
}

/// What the engine makes of beginnings, with the model as it is.
fn samples(model: &Trained, run: &Path, beginnings: &[String]) -> Result<Vec<String>> {
    let directory = run.join("sample");
    export(model, &directory, Format::Masters, &PackOptions::default())?;
    let engine = Model::open(&directory)?;
    let pool = Pool::new(0)?;
    let sampler = SamplerOptions { temperature: 0.8, top_p: 0.9, seed: 1, ..SamplerOptions::GREEDY };
    let options = GenerateOptions { max_tokens: 64, sampler, ..GenerateOptions::default() };
    let texts = beginnings.iter().map(|beginning| {
        // Documents begin with the token that ends them.
        let prompt = format!("{}{beginning}", tokenizer::END);
        Ok(format!("{beginning}{}", generate(&engine, &prompt, &options, &pool, |_| true)?.text))
    });
    let texts = texts.collect::<Result<Vec<_>>>()?;
    fs::remove_dir_all(&directory).map_err(|source| Error::Io { path: directory, source })?;
    Ok(texts)
}

/// Whether the user asked to stop.
fn listen() -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let handler = Arc::clone(&asked);
    ctrlc::set_handler(move || handler.store(true, Ordering::Relaxed))
        .map_err(|e| Error::Argument(format!("signals: {e}")))?;
    Ok(asked)
}

/// Prints a line above a bar, or plainly where there is none.
fn say(bar: &ProgressBar, line: &str) {
    bar.suspend(|| println!("{line}"));
}

/// A bar on a terminal.
fn bar(what: &'static str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    // The template is a constant of this program; without it the bar looks plain.
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
