//! The command `trion-onnx`: ternary language models for ONNX Runtime.

mod check_command;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use check_command::CheckArguments;
use clap::{Args, Parser, Subcommand};
use trion_engine::Model;
use trion_onnx::{Error, ExportOptions, HeadFormat, WeightFormat, export};

/// Ternary language models as ONNX graphs, checked against ONNX Runtime.
#[derive(Parser)]
#[command(name = "trion-onnx", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a model as an ONNX graph, in a folder that runtimes open
    Export(ExportArguments),
    /// Compare an export in ONNX Runtime with the model in Trion, integer by integer
    Check(CheckArguments),
}

#[derive(Args)]
struct ExportArguments {
    /// A Hugging Face directory, a GGUF file, or a file packed by Trion
    model: PathBuf,
    /// The folder to write
    #[arg(short, long)]
    output: PathBuf,
    /// How ternary weights are stored and multiplied; all give the same integers
    #[arg(long, value_enum, default_value_t)]
    weights: WeightFormat,
    /// Number format of a float embedding and head
    #[arg(long, value_enum, default_value_t)]
    head: HeadFormat,
    /// A plain graph that computes whole sequences, without keys and values in and out
    #[arg(long)]
    no_cache: bool,
    /// Put tensors of together more than this many MiB into a file of their own
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    external_over: u64,
    /// Licence of the weights (SPDX), for the graph's metadata; by default what the checkpoint's README.md states
    #[arg(long)]
    license: Option<String>,
    /// Replace the folder if it exists
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Export(arguments) => run_export(&arguments),
        Command::Check(arguments) => check_command::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // If standard error is closed too, the exit code is all that is left to say.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_export(arguments: &ExportArguments) -> Result<ExitCode, Error> {
    let model = Model::open(&arguments.model)?;
    let options = ExportOptions {
        weights: arguments.weights,
        head: arguments.head,
        cache: !arguments.no_cache,
        external_over: arguments.external_over.saturating_mul(1 << 20),
        license: arguments.license.clone().or_else(|| stated_license(&arguments.model)),
        replace: arguments.force,
    };
    let bytes = export(&model, &arguments.output, &options)?;
    // Whoever closed the output does not want to know.
    let _ = writeln!(io::stdout(), "{}: {bytes} bytes", arguments.output.display());
    Ok(ExitCode::SUCCESS)
}

/// The licence in the head of the README.md beside a checkpoint, as Hugging Face's model cards state it.
fn stated_license(model: &Path) -> Option<String> {
    let directory = if model.is_dir() { model } else { model.parent()? };
    let card = fs::read_to_string(directory.join("README.md")).ok()?;
    let head = card.strip_prefix("---\n")?.split("\n---").next()?;
    let license = head.lines().find_map(|line| line.strip_prefix("license:"))?.trim();
    (!license.is_empty()).then(|| license.to_owned())
}
