//! What the subcommands share.

use std::fmt;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trion_engine::{CacheType, Isa, Kernel, Model, Pool};

/// Why a subcommand failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine refused something.
    Engine(trion_engine::Error),
    /// Standard output or input failed.
    Output(io::Error),
    /// An argument cannot be used.
    Argument(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Engine(error) => write!(f, "{error}"),
            Failure::Output(error) => write!(f, "{error}"),
            Failure::Argument(message) => write!(f, "{message}"),
        }
    }
}

impl From<trion_engine::Error> for Failure {
    fn from(error: trion_engine::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// What a subcommand gives.
pub(crate) type Outcome = Result<std::process::ExitCode, Failure>;

/// Where and how to compute.
#[derive(Args)]
pub(crate) struct ComputeArguments {
    /// Threads; 0 for one for each physical core. Does not change results
    #[arg(long, default_value_t = 0, global = true)]
    threads: usize,
    /// Kernel. Does not change results
    #[arg(long, value_enum, default_value_t = KernelName::Auto)]
    kernel: KernelName,
}

#[derive(Clone, Copy, ValueEnum)]
enum KernelName {
    Auto,
    Scalar,
    Avx2,
    AvxVnni,
    Avx512,
}

impl ComputeArguments {
    pub(crate) fn pool(&self) -> Result<Pool, Failure> {
        Ok(Pool::new(self.threads)?)
    }

    pub(crate) fn kernel(&self) -> Result<Kernel, Failure> {
        let isa = match self.kernel {
            KernelName::Auto => return Ok(Kernel::detect()),
            KernelName::Scalar => Isa::Scalar,
            KernelName::Avx2 => Isa::Avx2,
            KernelName::AvxVnni => Isa::AvxVnni,
            KernelName::Avx512 => Isa::Avx512,
        };
        Kernel::new(isa).ok_or_else(|| {
            let names: Vec<_> = Kernel::available().map(|kernel| kernel.isa().name()).collect();
            Failure::Argument(format!("this CPU has no kernel {}; it has {}", isa.name(), names.join(", ")))
        })
    }
}

/// Number format of keys and values.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CacheName {
    F32,
    F16,
}

impl From<CacheName> for CacheType {
    fn from(name: CacheName) -> Self {
        match name {
            CacheName::F32 => CacheType::F32,
            CacheName::F16 => CacheType::F16,
        }
    }
}

#[cfg(feature = "default-model")]
fn default_model() -> Result<Model, Failure> {
    /// Aligned as the packed file is.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);
    static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/classics-14m.safetensors"));
    Ok(Model::from_static(&BYTES.0)?)
}

#[cfg(not(feature = "default-model"))]
fn default_model() -> Result<Model, Failure> {
    Err(Failure::Argument("name a model: this build has none inside".to_owned()))
}

/// Opens a model, with a progress bar while a checkpoint is packed; the one inside the program if none is named.
pub(crate) fn open(path: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = path else { return default_model() };
    let mut progress = Progress::new("packing");
    let model = Model::open_with_progress(path, &mut |done, total| progress.show(done, total));
    progress.finish();
    Ok(model?)
}

/// A bar on a terminal, for what takes over a second.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    pub(crate) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // The template is a constant of this program; without it the bar looks plain.
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {percent}%") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Progress { bar, start: Instant::now() }
    }

    pub(crate) fn show(&mut self, done: u64, total: u64) {
        if self.bar.is_hidden() && io::stderr().is_terminal() && self.start.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Text from an argument; from standard input for `-`, or without an argument when that is not a terminal.
pub(crate) fn text_or_stdin(argument: Option<&str>) -> Result<Option<String>, Failure> {
    match argument {
        Some("-") => {}
        Some(text) => return Ok(Some(text.to_owned())),
        None if io::stdin().is_terminal() => return Ok(None),
        None => {}
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok((argument.is_some() || !text.is_empty()).then_some(text))
}

/// Ids separated by commas or blanks.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, Failure> {
    let words = text.split([',', ' ', '\n']).filter(|word| !word.is_empty());
    let ids = words.map(|word| word.parse().map_err(|_| Failure::Argument(format!("{word:?} is not a token id"))));
    ids.collect()
}

/// A model argument that may be left out.
#[derive(Args)]
pub(crate) struct ModelArgument {
    /// A packed file, a Hugging Face directory or a GGUF file [default: the model inside this program]
    pub(crate) model: Option<PathBuf>,
}
