//! `trion tokenize`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use trion_engine::prompt_tokens;

use crate::common::{Failure, Outcome, open, parse_ids, print_line, text_or_stdin, tokenizer};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The text; - or nothing for standard input
    text: Option<String>,
    /// The model whose tokenizer is used [default: the model inside this program]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// The other way: ids, separated by commas, to text
    #[arg(long, conflicts_with = "text")]
    decode: Option<String>,
    /// Leave out the tokens that begin and end a text
    #[arg(long)]
    no_special: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let model = open(arguments.model.as_deref())?;
    let tokenizer = tokenizer(&model)?;
    let (ids, text) = if let Some(ids) = &arguments.decode {
        let ids = parse_ids(ids)?;
        let text = tokenizer.decode(&ids, false)?;
        (ids, text)
    } else {
        let text = text_or_stdin(arguments.text.as_deref())?;
        let text =
            text.ok_or_else(|| Failure::Argument("no text: give it as an argument or on standard input".into()))?;
        let ids =
            if arguments.no_special { tokenizer.encode(&text, false)? } else { prompt_tokens(&model, &text, true)? };
        (ids, text)
    };
    if arguments.json {
        let tokens: Vec<_> = ids.iter().map(|id| tokenizer.id_to_token(*id)).collect();
        print_line(json!({ "text": text, "ids": ids, "tokens": tokens }))?;
    } else if arguments.decode.is_some() {
        print_line(text)?;
    } else {
        print_line(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))?;
    }
    Ok(ExitCode::SUCCESS)
}
