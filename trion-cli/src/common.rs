//! What the subcommands share.

use std::fmt;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use trion_core::{FloatData, Matrix, Rescale};
use trion_engine::tokenizer::Tokenizer;
use trion_engine::{CacheType, Device, DeviceName, Isa, Kernel, Model, Pool};

/// Why a subcommand failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine refused something.
    Engine(trion_engine::Error),
    /// Standard output failed.
    Output(io::Error),
    /// An argument cannot be used.
    Argument(String),
    /// As [`Failure::Argument`], with what to do about it.
    Advised {
        /// What was found, and what was expected.
        message: String,
        /// What to do.
        help: String,
    },
}

impl Failure {
    /// A failure with what to do about it.
    pub(crate) fn advised(message: impl Into<String>, help: impl Into<String>) -> Self {
        Failure::Advised { message: message.into(), help: help.into() }
    }

    /// A text that is not whole, after it was written.
    pub(crate) fn dead_end() -> Self {
        let help = "the constraint asks for what the model has no tokens for, or went beyond a bound of its work";
        Failure::advised("dead end: the text follows its constraint so far, and no token continues it", help)
    }

    /// What to do about it, where that is known.
    pub(crate) fn help(&self) -> Option<&str> {
        match self {
            Failure::Advised { help, .. } => Some(help),
            Failure::Engine(trion_engine::Error::Core(
                trion_core::Error::ContextOverflow { .. } | trion_core::Error::Options { field: "context", .. },
            )) => {
                Some("trion inspect shows the longest context of a model; give less text, or a --context that holds it")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Engine(error) => write!(f, "{error}"),
            Failure::Output(error) => write!(f, "standard output: {error}"),
            Failure::Argument(message) | Failure::Advised { message, .. } => write!(f, "{message}"),
        }
    }
}

impl From<trion_engine::Error> for Failure {
    fn from(error: trion_engine::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<trion_core::Error> for Failure {
    fn from(error: trion_core::Error) -> Self {
        trion_engine::Error::from(error).into()
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
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Kernel. Does not change results
    #[arg(long, value_enum, default_value_t = KernelName::Auto)]
    kernel: KernelName,
    /// Number format of keys and values
    #[arg(long, value_enum, default_value_t = CacheName::F32)]
    cache: CacheName,
    /// Where to compute: cpu, cuda, cuda:NUMBER or auto. Does not change results
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
}

#[derive(Clone, Copy, ValueEnum)]
enum KernelName {
    Auto,
    Scalar,
    Avx2,
    AvxVnni,
    Avx512,
    Amx,
    Neon,
    NeonDot,
    Simd128,
}

impl ComputeArguments {
    pub(crate) fn pool(&self) -> Result<Pool, Failure> {
        Ok(Pool::new(self.threads)?)
    }

    /// The model on the device that was asked for.
    pub(crate) fn place(&self, model: &Model) -> Result<Model, Failure> {
        let advise = |error: trion_engine::Error| Failure::advised(error.to_string(), "--device cpu computes the same");
        let device = Device::open(self.device).map_err(advise)?;
        model.on(&device).map_err(advise)
    }

    pub(crate) fn cache(&self) -> CacheType {
        self.cache.into()
    }

    pub(crate) fn kernel(&self) -> Result<Kernel, Failure> {
        let isa = match self.kernel {
            KernelName::Auto => return Ok(Kernel::fastest()),
            KernelName::Scalar => Isa::Scalar,
            KernelName::Avx2 => Isa::Avx2,
            KernelName::AvxVnni => Isa::AvxVnni,
            KernelName::Avx512 => Isa::Avx512,
            KernelName::Amx => Isa::Amx,
            KernelName::Neon => Isa::Neon,
            KernelName::NeonDot => Isa::NeonDot,
            KernelName::Simd128 => Isa::Simd128,
        };
        Kernel::new(isa).ok_or_else(|| {
            let names: Vec<_> = Kernel::available().map(|kernel| kernel.isa().name()).collect();
            let message = format!("this CPU has no kernel {}", isa.name());
            Failure::advised(message, format!("it has {}; auto takes the fastest", names.join(", ")))
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
    static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/tales-14m.safetensors"));
    Ok(Model::from_static(&BYTES.0)?)
}

#[cfg(not(feature = "default-model"))]
fn default_model() -> Result<Model, Failure> {
    Err(Failure::advised("no model is named, and this build has none inside", MODEL_HELP))
}

/// What a model argument may be.
const MODEL_HELP: &str = "give the path of a packed file, a Hugging Face directory or a GGUF file";

/// Opens a model, with a progress bar while a checkpoint is packed; the one inside the program if none is named.
pub(crate) fn open(path: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = path else { return default_model() };
    let mut progress = Progress::new("packing");
    let model = Model::open_with_progress(path, &mut |done, total| progress.show(done, total));
    progress.finish();
    model.map_err(|error| match error {
        trion_engine::Error::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::advised(error.to_string(), MODEL_HELP)
        }
        error => Failure::Engine(error),
    })
}

/// The tokenizer of a model.
///
/// # Errors
/// When it has none.
pub(crate) fn tokenizer(model: &Model) -> Result<&Tokenizer, Failure> {
    let help = "put the checkpoint's tokenizer.json beside its weights; trion logits --ids works without";
    model.tokenizer().map_err(|error| Failure::advised(error.to_string(), help))
}

/// Writes a line to standard output. Unlike `println!` it does not panic when nobody reads it or the disk is full.
///
/// # Errors
/// [`Failure::Output`].
pub(crate) fn print_line(line: impl fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// Why standard input could not be read.
pub(crate) fn input_failure(error: io::Error) -> Failure {
    Failure::Argument(format!("standard input: {error}"))
}

/// Bytes of a matrix with its scales.
pub(crate) fn matrix_bytes(matrix: &Matrix<'_>) -> usize {
    match matrix {
        Matrix::Ternary(m) => {
            m.packed().len()
                + match m.rescale() {
                    Rescale::Multiply(_) | Rescale::Divide(_) => size_of::<f32>(),
                    Rescale::Groups { scales, .. } => size_of_val(scales),
                }
        }
        Matrix::Int6(m) => m.packed().len() + size_of_val(m.row_scales()),
        Matrix::Float(m) => match m.data() {
            FloatData::F32(values) => size_of_val(values),
            FloatData::F16(bits) | FloatData::Bf16(bits) => size_of_val(bits),
            FloatData::I8 { values, scales } => size_of_val(values) + size_of_val(scales),
        },
    }
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
    io::stdin().read_to_string(&mut text).map_err(input_failure)?;
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
