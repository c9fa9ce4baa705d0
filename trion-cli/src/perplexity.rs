//! `trion perplexity`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use trion_engine::{Logits, Session, SessionOptions};

use crate::common::{ComputeArguments, Failure, Outcome, Progress, open, print_line, tokenizer};

/// Tokens that go through the model together.
const BATCH: usize = 64;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The text
    file: PathBuf,
    /// The model [default: the model inside this program]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Tokens of a window; windows do not overlap, and the first token of each is given [default: the model's context]
    #[arg(long)]
    window: Option<usize>,
    /// Windows to measure at most
    #[arg(long)]
    max_windows: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let text =
        fs::read(&arguments.file).map_err(|e| Failure::Argument(format!("{}: {e}", arguments.file.display())))?;
    let text = String::from_utf8(text)
        .map_err(|e| Failure::Argument(format!("{}: is not UTF-8: {e}", arguments.file.display())))?;
    let model = arguments.compute.place(&open(arguments.model.as_deref())?)?;
    let tokenizer = tokenizer(&model)?;
    // A text says itself where its documents begin; tokens that are not in it are not measured.
    let ids = tokenizer.encode(&text, false)?;
    let window = arguments.window.unwrap_or(model.config().max_position_embeddings);
    if window < 2 {
        return Err(Failure::Argument(format!("a window of {window} tokens predicts nothing; give at least 2")));
    }
    let windows: Vec<&[u32]> =
        ids.chunks(window).filter(|w| w.len() > 1).take(arguments.max_windows.unwrap_or(usize::MAX)).collect();
    if windows.is_empty() {
        return Err(Failure::Argument(format!("{}: has fewer than two tokens", arguments.file.display())));
    }
    let options = SessionOptions {
        max_batch: BATCH.min(window),
        cache: arguments.compute.cache(),
        logits: Logits::All,
        ..SessionOptions::new(window)
    };
    let pool = arguments.compute.pool()?;
    let mut session = Session::with_kernel(&model, options, arguments.compute.kernel()?)?;
    let (mut nats, mut predicted) = (0.0, 0);
    let mut progress = Progress::new("windows");
    for (n, window) in windows.iter().enumerate() {
        session.rewind(0)?;
        for (piece, targets) in window[..window.len() - 1].chunks(BATCH).zip(window[1..].chunks(BATCH)) {
            let logits = session.evaluate(piece, &pool)?;
            for (row, target) in logits.chunks(model.config().vocab_size).zip(targets) {
                nats += cross_entropy(row, *target as usize);
            }
        }
        predicted += window.len() - 1;
        progress.show(n as u64 + 1, windows.len() as u64);
    }
    progress.finish();
    // In one piece: a window may end within a character.
    let covered = tokenizer.decode(&ids[..predicted + windows.len()], false)?.len();
    let mean = nats / predicted as f64;
    let bits_per_byte = nats / std::f64::consts::LN_2 / covered.max(1) as f64;
    if arguments.json {
        print_line(json!({
            "windows": windows.len(),
            "tokens": predicted,
            "bytes": covered,
            "nats_per_token": mean,
            "perplexity": mean.exp(),
            "bits_per_byte": bits_per_byte,
        }))?;
    } else {
        print_line(format_args!(
            "{mean:.4} nats/token, perplexity {:.3}, {bits_per_byte:.4} bits/byte ({predicted} tokens, {covered} bytes, {} \
             windows)",
            mean.exp(),
            windows.len()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// -ln softmax(logits)\[target\].
fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    total.ln() + largest - logits.get(target).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit))
}
