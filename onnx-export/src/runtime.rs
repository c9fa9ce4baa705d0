//! ONNX Runtime: where its library is found, and graphs that run in it.

use std::collections::HashMap;
use std::env;
use std::fmt::Display;
use std::path::{Path, PathBuf, absolute};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor as OrtTensor, TensorElementType};

use crate::error::{Error, Result};

/// Where `cargo xtask onnxruntime` puts the library.
const INSTALLED: &str = "target/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.31.1";
/// Names under which the system's loader knows the library.
const SYSTEM: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_vendor = "apple") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};
/// The variable that names the library; `ort` uses the same.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The folder of a graph's external data, where the graph itself comes from memory.
const DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The library that was loaded: a process can have only one.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// ONNX Runtime, loaded into this process.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
}

impl Runtime {
    /// Loads ONNX Runtime from `library`; or else from where `ORT_DYLIB_PATH` says, from where `cargo xtask
    /// onnxruntime` puts it below the current directory, or from the system.
    ///
    /// # Errors
    /// [`Error::Runtime`] if it is not there or too old, with the places that were looked at; or if another one is
    /// loaded.
    pub fn load(library: Option<&Path>) -> Result<Self> {
        let library = find(library)?;
        // What a panic elsewhere has left is a whole value or none.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            if runtime.library == library {
                return Ok(runtime.clone());
            }
            return Err(Error::Runtime(format!(
                "{}: this process has loaded {} already, and can have only one ONNX Runtime",
                library.display(),
                runtime.library.display()
            )));
        }
        let environment = ort::init_from(&library)
            .map_err(|e| {
                let looked = if library == Path::new(SYSTEM) {
                    format!("{VARIABLE} is not set, there is no {INSTALLED} here, and of the system ")
                } else {
                    String::new()
                };
                Error::Runtime(format!("no ONNX Runtime: {looked}{e}\n{HOW}"))
            })?
            .with_telemetry(false)
            .build()
            .map_err(|e| failed("ONNX Runtime does not start", e))?;
        environment.set_log_level(LogLevel::Error);
        let runtime = Runtime { environment, library };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// The file that it was loaded from, or the name that the system's loader was given.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// What it is: the name of the file, which has the version in it where pip installed it, and how the library
    /// describes its build. (The number itself can only be had by unsafe code.)
    pub fn description(&self) -> String {
        let name = self.library.file_name().unwrap_or(self.library.as_os_str()).to_string_lossy();
        format!("{name} ({})", ort::info().trim_start_matches("ORT Build Info: "))
    }

    /// Loads a graph: the bytes of a `ModelProto`, whose external data lies in the folder `data`, to run on `threads`
    /// threads.
    ///
    /// # Errors
    /// [`Error::Runtime`] if ONNX Runtime refuses it.
    pub fn graph(&self, proto: &[u8], data: &Path, threads: usize) -> Result<Graph> {
        let data = data.to_str().ok_or_else(|| {
            Error::Runtime(format!("{}: ONNX Runtime wants a folder whose name is UTF-8", data.display()))
        })?;
        let build = || -> std::result::Result<Session, String> {
            let text = |e: ort::Error<SessionBuilder>| e.to_string();
            Session::builder(&self.environment)
                .map_err(|e| e.to_string())?
                .with_config_entry(DATA_FOLDER, data)
                .map_err(text)?
                .with_intra_threads(threads)
                .map_err(text)?
                .with_log_level(LogLevel::Error)
                .map_err(text)?
                .commit_from_memory(proto)
                .map_err(|e| e.to_string())
        };
        Ok(Graph { session: build().map_err(|e| failed("ONNX Runtime does not load the graph", e))? })
    }
}

/// What to do about a missing library.
const HOW: &str = "get it with `cargo xtask onnxruntime` in the repository, or with `pip install onnxruntime==1.31.1`, and \
                   give its path with --runtime";

/// The library to load: the path of a file that exists, or the name for the system's loader.
fn find(library: Option<&Path>) -> Result<PathBuf> {
    let variable = env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = [(library.map(Path::to_owned), "--runtime"), (variable, VARIABLE)];
    let installed = PathBuf::from(INSTALLED);
    let path = match named.into_iter().find_map(|(path, who)| Some((path?, who))) {
        Some((path, _)) if path.is_file() => path,
        Some((path, who)) => {
            let message = format!("{}: no such file, where {who} says that ONNX Runtime is\n{HOW}", path.display());
            return Err(Error::Runtime(message));
        }
        None if installed.is_file() => installed,
        None => return Ok(PathBuf::from(SYSTEM)),
    };
    // `ort` takes a relative path from where the executable lies.
    absolute(&path).map_err(|e| failed(path.display(), e))
}

/// An [`Error::Runtime`].
fn failed(what: impl Display, why: impl Display) -> Error {
    Error::Runtime(format!("{what}: {why}"))
}

/// A graph in ONNX Runtime.
pub struct Graph {
    session: Session,
}

impl Graph {
    /// Runs the graph, for all its outputs.
    ///
    /// # Errors
    /// [`Error::Runtime`] if inputs are missing, or of another type or shape than they should be, or a node fails.
    pub fn run(&mut self, inputs: Vec<(String, Tensor)>) -> Result<HashMap<String, Tensor>> {
        let inputs: Vec<(String, SessionInputValue<'_>)> =
            inputs.into_iter().map(|(name, tensor)| (name, tensor.0.into())).collect();
        let outputs = self.session.run(inputs).map_err(|e| failed("ONNX Runtime does not run the graph", e))?;
        Ok(outputs.into_iter().map(|(name, value)| (name.to_owned(), Tensor(value))).collect())
    }
}

/// A tensor of ONNX Runtime's.
pub struct Tensor(DynValue);

impl Tensor {
    /// A tensor of singles; a dimension may be 0.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there are not as many values as the shape asks for.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        let tensor = OrtTensor::from_array((shape.to_vec(), values)).map_err(|e| failed("a tensor of f32", e))?;
        Ok(Tensor(tensor.into_dyn()))
    }

    /// A tensor of 64-bit integers.
    ///
    /// # Errors
    /// As [`Tensor::f32`].
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Result<Self> {
        let tensor = OrtTensor::from_array((shape.to_vec(), values)).map_err(|e| failed("a tensor of i64", e))?;
        Ok(Tensor(tensor.into_dyn()))
    }

    /// Its dimensions.
    pub fn shape(&self) -> Vec<usize> {
        self.0.shape().iter().map(|dimension| *dimension as usize).collect()
    }

    /// Its numbers as they are.
    ///
    /// # Errors
    /// [`Error::Runtime`] if they are of a type that no exported graph gives.
    pub fn numbers(&self) -> Result<Numbers<'_>> {
        let found = *self.0.data_type();
        let numbers = match found {
            TensorElementType::Float32 => self.0.try_extract_tensor().map(|(_, values)| Numbers::F32(values)),
            TensorElementType::Int32 => self.0.try_extract_tensor().map(|(_, values)| Numbers::I32(values)),
            TensorElementType::Uint8 => self.0.try_extract_tensor().map(|(_, values)| Numbers::U8(values)),
            TensorElementType::Int8 => self.0.try_extract_tensor().map(|(_, values)| Numbers::I8(values)),
            _ => {
                return Err(Error::Runtime(format!(
                    "a tensor of shape {:?} has elements of type {found}, expected f32, i32, u8 or i8",
                    self.shape()
                )));
            }
        };
        numbers.map_err(|e| failed("a tensor cannot be read", e))
    }

    /// Its numbers, which are singles.
    ///
    /// # Errors
    /// [`Error::Runtime`] if they are not.
    pub fn singles(&self) -> Result<&[f32]> {
        match self.numbers()? {
            Numbers::F32(values) => Ok(values),
            other => Err(Error::Runtime(format!("a tensor of {} numbers, expected f32", other.name()))),
        }
    }
}

/// The numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Numbers<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Accumulators.
    I32(&'a [i32]),
    /// Quantised activations, 128 higher.
    U8(&'a [u8]),
    /// Small integers.
    I8(&'a [i8]),
}

impl Numbers<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(values) => values.len(),
            Numbers::I32(values) => values.len(),
            Numbers::U8(values) => values.len(),
            Numbers::I8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn name(&self) -> &'static str {
        match self {
            Numbers::F32(_) => "f32",
            Numbers::I32(_) => "i32",
            Numbers::U8(_) => "u8",
            Numbers::I8(_) => "i8",
        }
    }
}
