//! `trion logits`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use trion_engine::{Logits, Session, SessionOptions, prompt_tokens};

use crate::common::{ComputeArguments, Failure, ModelArgument, Outcome, open, parse_ids, tokenizer};

/// Tokens that go through the model together.
const BATCH: usize = 64;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArgument,
    /// Token ids, separated by commas
    #[arg(long, required_unless_present = "prompt", conflicts_with = "prompt")]
    ids: Option<String>,
    /// Text instead of ids
    #[arg(short, long)]
    prompt: Option<String>,
    /// The safetensors file to write: tensor `logits`, F32 [tokens, `vocab_size`]
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    compute: ComputeArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let model = arguments.compute.place(&open(arguments.model.model.as_deref())?)?;
    let ids = match (&arguments.ids, &arguments.prompt) {
        (Some(ids), _) => parse_ids(ids)?,
        (None, Some(prompt)) => {
            tokenizer(&model)?;
            prompt_tokens(&model, prompt, true)?
        }
        (None, None) => Vec::new(),
    };
    if ids.is_empty() {
        return Err(Failure::Argument("no tokens: give at least one id".to_owned()));
    }
    let options = SessionOptions {
        max_batch: BATCH.min(ids.len()),
        cache: arguments.compute.cache(),
        logits: Logits::All,
        ..SessionOptions::new(ids.len())
    };
    let pool = arguments.compute.pool()?;
    let mut session = Session::with_kernel(&model, options, arguments.compute.kernel()?)?;
    let mut bytes = Vec::new();
    for piece in ids.chunks(BATCH) {
        bytes.extend(session.evaluate(piece, &pool)?.iter().flat_map(|logit| logit.to_le_bytes()));
    }
    let shape = vec![ids.len(), model.config().vocab_size];
    TensorView::new(Dtype::F32, shape, &bytes)
        .and_then(|view| serialize_to_file([("logits", view)], None, &arguments.output))
        .map_err(|e| Failure::Argument(format!("{}: {e}", arguments.output.display())))?;
    Ok(ExitCode::SUCCESS)
}
