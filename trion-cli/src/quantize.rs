//! `trion quantize`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use trion_engine::{FloatFormat, Kernel, Model, PackOptions, Packing, quantize};

use crate::common::{Failure, Outcome, Progress, print_line};
use crate::inspect::Size;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A Hugging Face directory or a GGUF file
    from: PathBuf,
    /// The packed file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Number format of the float embedding and head
    #[arg(long, value_enum, default_value_t = FormatName::Keep)]
    embedding: FormatName,
    /// How trits lie in the file
    #[arg(long, value_enum, default_value_t = PackingName::Twos)]
    packing: PackingName,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Number format of the float embedding and head.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FormatName {
    /// As the checkpoint has it
    Keep,
    F16,
    /// A byte for each weight, and a scale for each row
    Int8,
    /// Six bits for each weight, and a scale for each 16 of them
    Int6,
}

impl From<FormatName> for FloatFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Keep => FloatFormat::Keep,
            FormatName::F16 => FloatFormat::F16,
            FormatName::Int8 => FloatFormat::Int8,
            FormatName::Int6 => FloatFormat::Int6,
        }
    }
}

/// How trits lie in memory.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PackingName {
    /// Two bits for each trit: fast on every CPU
    Twos,
    /// A byte for five trits: a fifth less to read, for CPUs with AVX-512 VBMI
    Fives,
    /// The one that this machine reads fastest
    Auto,
}

impl From<PackingName> for Packing {
    fn from(name: PackingName) -> Self {
        match name {
            PackingName::Twos => Packing::Twos,
            PackingName::Fives => Packing::Fives,
            PackingName::Auto => Kernel::detect().packing(),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.output.exists() && !arguments.force {
        let message = format!("{} exists", arguments.output.display());
        return Err(Failure::advised(message, "--force replaces it"));
    }
    let options = PackOptions { embedding: arguments.embedding.into(), packing: arguments.packing.into() };
    let mut progress = Progress::new("packing");
    let bytes = quantize(&arguments.from, &arguments.output, &options, &mut |done, total| progress.show(done, total));
    progress.finish();
    print_line(format_args!("{}: {} bytes", arguments.output.display(), bytes?))?;
    let model = Model::open(&arguments.output)?;
    if model.has_tokenizer() {
        model.tokenizer()?;
    }
    print_line(Size::of(&model))?;
    Ok(ExitCode::SUCCESS)
}
