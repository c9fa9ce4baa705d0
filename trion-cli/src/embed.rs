//! `trion embed`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trion_core::{Layer, Sampler, Session};
use trion_engine::{CacheType, Model, SessionOptions};

use crate::c_tables::{CTables, Names};
use crate::common::{CacheName, Failure, Outcome, open, print_line};

/// What the parts of a session before the core's buffer may lose to alignment.
const SLACK: usize = 64;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A packed file, a Hugging Face directory or a GGUF file
    model: PathBuf,
    /// The directory to write NAME.c and NAME.h to; it is made if it is not there
    #[arg(short, long)]
    output: PathBuf,
    /// What the names in C begin with
    #[arg(long, default_value = "model")]
    name: String,
    /// Positions of the session that `NAME_options` and `NAME_SESSION_SIZE` are for [default: all of the model's]
    #[arg(long)]
    context: Option<usize>,
    /// Tokens of a prompt that it computes together
    #[arg(long, default_value_t = 1)]
    max_batch: usize,
    /// Number format of its keys and values
    #[arg(long, value_enum, default_value_t = CacheName::F16)]
    cache: CacheName,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let names = Names::new(&arguments.name).ok_or_else(|| {
        let message = format!("--name {:?} is no name in C", arguments.name);
        Failure::advised(message, "a letter, then letters, digits and underscores")
    })?;
    let paths = ["c", "h"].map(|extension| arguments.output.join(format!("{}.{extension}", arguments.name)));
    if let Some(path) = paths.iter().find(|path| path.exists() && !arguments.force) {
        return Err(Failure::advised(format!("{} exists", path.display()), "--force replaces it"));
    }
    let model = open(Some(&arguments.model))?;
    let options = session_options(&model, arguments)?;
    let tables = CTables::new(&model, &names, &options, session_size(&model, &options))?;
    let written = |path: &PathBuf, text: &str| {
        fs::write(path, text).map_err(|e| Failure::Argument(format!("{}: {e}", path.display())))
    };
    fs::create_dir_all(&arguments.output)
        .map_err(|e| Failure::Argument(format!("{}: {e}", arguments.output.display())))?;
    for (path, text) in paths.iter().zip([&tables.source, &tables.header]) {
        written(path, text)?;
        print_line(path.display())?;
    }
    print_line(format_args!("weights      {:>10} bytes, constant", tables.weight_bytes))?;
    print_line(format_args!("token texts  {:>10} bytes, constant", tables.text_bytes))?;
    let SessionOptions { context, max_batch, .. } = options;
    let size = session_size(&model, &options);
    print_line(format_args!("a session    {size:>10} bytes at most, context {context}, max_batch {max_batch}"))?;
    Ok(ExitCode::SUCCESS)
}

fn session_options(model: &Model, arguments: &Arguments) -> Result<SessionOptions, Failure> {
    let limit = model.config().max_position_embeddings;
    let context = arguments.context.unwrap_or(limit);
    let max_batch = arguments.max_batch;
    for (field, found, limit) in [("context", context, limit), ("max_batch", max_batch, context)] {
        if found == 0 || found > limit {
            return Err(trion_core::Error::Options { field, found, limit }.into());
        }
    }
    Ok(SessionOptions { max_batch, cache: CacheType::from(arguments.cache), ..SessionOptions::new(context) })
}

/// What `trion_bare_size` comes to, at most: the library also keeps the model's layers in a session's buffer, and pointers
/// here are as wide as anywhere.
fn session_size(model: &Model, options: &SessionOptions) -> usize {
    let layers = model.config().num_hidden_layers * size_of::<Layer<'_>>();
    let handle = size_of::<Session<'_, '_>>() + size_of::<Sampler>() + size_of::<trion_core::Model<'_>>();
    Session::bytes(model.config(), options).saturating_add(layers + handle + SLACK)
}
