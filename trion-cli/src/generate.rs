//! `trion generate`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use trion_engine::{GenerateOptions, Generated, SamplerOptions, StopReason, generate};

use crate::common::{ComputeArguments, Failure, ModelArgument, Outcome, open, text_or_stdin, tokenizer};
use crate::interrupt::{self, Interrupt};

/// Suits the model inside the program.
const DEFAULT_PROMPT: &str = "The ship had been at sea for nine days when";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArgument,
    /// The beginning of the text; - for standard input
    #[arg(short, long)]
    prompt: Option<String>,
    /// Most tokens to write
    #[arg(short = 'n', long, default_value_t = 128)]
    tokens: usize,
    #[command(flatten)]
    sampler: SamplerArguments,
    #[command(flatten)]
    constraint: crate::constraint::ConstraintArguments,
    /// End the text before this string; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    /// Positions of the session [default: what prompt and tokens need]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    context: usize,
    #[command(flatten)]
    compute: ComputeArguments,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
    /// Leave out the timing summary
    #[arg(long)]
    no_timing: bool,
}

/// How tokens are chosen.
#[derive(Args)]
pub(crate) struct SamplerArguments {
    /// 0 for always the most probable token, 1 for the model's own distribution
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the k most probable tokens; 0 for off, at most 256
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Choose among the most probable tokens that together reach p
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Choose among tokens at least this fraction as probable as the first
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Make recent tokens less probable; 1 for off
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Starts the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplerArguments {
    pub(crate) fn options(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SamplerOptions::GREEDY
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let prompt = text_or_stdin(arguments.prompt.as_deref())?.unwrap_or_else(|| DEFAULT_PROMPT.to_owned());
    let model = arguments.compute.place(&open(arguments.model.model.as_deref())?)?;
    tokenizer(&model)?;
    let options = GenerateOptions {
        max_tokens: arguments.tokens,
        sampler: arguments.sampler.options(),
        constraint: arguments.constraint.constraint(&model)?,
        stop: arguments.stop.clone(),
        context: arguments.context,
        cache: arguments.compute.cache(),
        kernel: arguments.compute.kernel()?,
        ..GenerateOptions::default()
    };
    let pool = arguments.compute.pool()?;
    let interrupt = Interrupt::listen()?;
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    if !arguments.json {
        write!(out, "{prompt}")?;
        out.flush()?;
    }
    let start = Instant::now();
    let mut first = None;
    let generated = generate(&model, &prompt, &options, &pool, |piece| {
        first.get_or_insert_with(|| start.elapsed());
        interrupt.writing();
        if !arguments.json {
            written = write!(out, "{piece}").and_then(|()| out.flush());
        }
        written.is_ok() && !interrupt.asked()
    })?;
    written?;
    if arguments.json {
        writeln!(out, "{}", summary(&prompt, &generated, first))?;
    } else {
        writeln!(out)?;
        if !arguments.no_timing {
            // Whoever closed standard error does not want it.
            let _ = writeln!(io::stderr(), "{}", timing(&generated, first));
        }
    }
    if generated.stop == StopReason::DeadEnd {
        return Err(Failure::dead_end());
    }
    Ok(if interrupt.ended() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// Tokens a second; 0 for no time at all.
pub(crate) fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// `first` is the time to the first text, if any was written.
fn timing(generated: &Generated, first: Option<Duration>) -> String {
    let (prompt, decode) = (generated.prompt_time.as_secs_f64(), generated.decode_time.as_secs_f64());
    format!(
        "prompt {} tokens in {:.3} s ({:.1}/s), then {} tokens in {:.3} s ({:.1}/s){}",
        generated.prompt_tokens,
        prompt,
        rate(generated.prompt_tokens, prompt),
        generated.tokens.len(),
        decode,
        rate(generated.tokens.len(), decode),
        first.map_or_else(String::new, |first| format!(", first text after {:.3} s", first.as_secs_f64()))
    )
}

fn summary(prompt: &str, generated: &Generated, first: Option<Duration>) -> serde_json::Value {
    json!({
        "prompt": prompt,
        "text": generated.text,
        "prompt_tokens": generated.prompt_tokens,
        "tokens": generated.tokens,
        "stop": match generated.stop {
            StopReason::MaxTokens => "max_tokens",
            StopReason::Context => "context",
            StopReason::EndOfText => "end_of_text",
            StopReason::StopString => "stop_string",
            StopReason::Cancelled => "cancelled",
            StopReason::Constraint => "constraint",
            StopReason::DeadEnd => "dead_end",
        },
        "prompt_seconds": generated.prompt_time.as_secs_f64(),
        "decode_seconds": generated.decode_time.as_secs_f64(),
        "first_text_seconds": first.map(|first| first.as_secs_f64()),
    })
}
