//! The command `trion`: run, convert, inspect and measure ternary language models.

mod bench;
mod c_tables;
mod chat;
mod common;
mod constraint;
mod embed;
mod generate;
#[cfg(feature = "cuda")]
mod gpu_plan;
mod inspect;
mod interrupt;
mod kernel_speed;
mod layer_times;
mod logits;
mod perplexity;
mod quantize;
mod tokenize;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use common::{Failure, Outcome};

/// Ternary language models (`BitNet` b1.58 and its kin), with the same bits on every machine.
#[derive(Parser)]
#[command(name = "trion", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a text
    Generate(generate::Arguments),
    /// Talk with a model that has a chat template
    Chat(chat::Arguments),
    /// Pack a checkpoint (Hugging Face directory, GGUF file) into one file
    Quantize(quantize::Arguments),
    /// Write a model as C, for programs on bare metal
    Embed(embed::Arguments),
    /// Show what a model is made of
    Inspect(inspect::Arguments),
    /// Turn text into tokens, or tokens into text
    Tokenize(tokenize::Arguments),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Arguments),
    /// Write the logits of every position to a safetensors file
    Logits(logits::Arguments),
    /// Measure speed
    Bench(bench::Arguments),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Tokenize(arguments) => tokenize::run(&arguments),
        Command::Perplexity(arguments) => perplexity::run(&arguments),
        Command::Logits(arguments) => logits::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Completions { shell } => completions(shell),
    };
    match outcome {
        Ok(code) => code,
        // Whoever read the output has enough of it.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // If standard error is closed too, the exit code is all that is left to say.
            let _ = writeln!(io::stderr(), "error: {failure}");
            if let Some(help) = failure.help() {
                let _ = writeln!(io::stderr(), "help: {help}");
            }
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    // Into memory first: the generator panics where its output fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "trion", &mut script);
    io::stdout().write_all(&script)?;
    io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}
