//! The command `trion-onnx check`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use trion_engine::{Model, prompt_tokens};
use trion_onnx::check::{CheckOptions, check, default_prompts};
use trion_onnx::runtime::Runtime;
use trion_onnx::{Error, ExportOptions, export};

/// Tokens behind each prompt, where the model has room for them.
const TOKENS: usize = 64;

/// Arguments of `trion-onnx check`.
#[derive(Args)]
pub(crate) struct CheckArguments {
    /// A Hugging Face directory, a GGUF file, or a file packed by Trion
    model: PathBuf,
    /// The folder of an export; by default the model is exported for the check
    #[arg(long, value_name = "FOLDER")]
    onnx: Option<PathBuf>,
    /// A text file with a prompt in each line; by default twenty sentences
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens that are generated behind each prompt [default: 64, or half of a shorter context]
    #[arg(long)]
    tokens: Option<usize>,
    /// Threads of either engine; 0 for as many as the machine has cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// The library of ONNX Runtime
    #[arg(long, value_name = "FILE")]
    runtime: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Checks an export and prints the report; failure if the check fails.
///
/// # Errors
/// If there is nothing to check, or nothing to check it with.
pub(crate) fn run(arguments: &CheckArguments) -> Result<ExitCode, Error> {
    // First, since a model takes longer.
    let runtime = Runtime::load(arguments.runtime.as_deref())?;
    let model = Model::open(&arguments.model)?;
    let room = model.config().max_position_embeddings;
    let tokens = arguments.tokens.unwrap_or(TOKENS.min(room / 2));
    let prompts = match &arguments.prompts {
        None => default_prompts(&model, tokens)?,
        Some(file) => {
            let text = fs::read_to_string(file).map_err(|source| Error::Io { file: file.clone(), source })?;
            let lines = text.lines().filter(|line| !line.is_empty());
            lines.map(|line| Ok(prompt_tokens(&model, line, true)?)).collect::<Result<_, Error>>()?
        }
    };
    let options = CheckOptions { prompts, tokens, threads: arguments.threads };
    let report = if let Some(folder) = &arguments.onnx {
        check(&model, folder, &runtime, &options)?
    } else {
        let scratch = Scratch::new();
        export(&model, &scratch.0, &ExportOptions::default())?;
        check(&model, &scratch.0, &runtime, &options)?
    };
    let text = match serde_json::to_string_pretty(&report) {
        Ok(json) if arguments.json => json + "\n",
        _ => report.to_string(),
    };
    // Whoever closed the output does not want to know.
    let _ = io::stdout().write_all(text.as_bytes());
    match report.failure {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => Err(Error::Check(failure)),
    }
}

/// A folder that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Scratch(std::env::temp_dir().join(format!("trion-onnx-check-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        // What cannot be removed stays in the system's temporary directory.
        let _ = fs::remove_dir_all(path);
    }
}
