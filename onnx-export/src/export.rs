//! From a model to a folder that ONNX Runtime, onnxruntime-genai and transformers.js open.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use trion_engine::Model;

use crate::decoder::write_decoder;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};
use crate::settings;

/// The standard operators' version: the first with 2-bit integers.
const OPSET: i64 = 25;
/// The format's version that belongs to it.
const IR_VERSION: i64 = 13;
/// The graph, in the exported folder.
pub const GRAPH_FILE: &str = "onnx/model.onnx";
/// Its tensors, where they are many. The name is the one that transformers.js looks for.
pub const DATA_FILE: &str = "onnx/model.onnx_data";

/// How ternary weights are stored and multiplied. All give the same integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum WeightFormat {
    /// 2 bits a weight; made int8 when the graph is loaded
    #[default]
    Int2,
    /// 8 bits a weight
    Int8,
    /// 2 bits a weight, also in memory: ONNX Runtime's own operator `MatMulNBits`
    Matmulnbits,
    /// Floats, for runtimes without integer products
    Float,
}

/// Number format of a float embedding and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum HeadFormat {
    /// As the model has them
    #[default]
    Keep,
    /// Single precision
    F32,
    /// Half precision, rounded
    F16,
    /// bfloat16, rounded
    Bf16,
}

/// What [`export`] writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// How ternary weights are stored and multiplied.
    pub weights: WeightFormat,
    /// Number format of a float embedding and head.
    pub head: HeadFormat,
    /// Whether keys and values go in and out. Without, the graph computes whole sequences.
    pub cache: bool,
    /// Tensors of together more bytes lie in a file of their own. At most 2^30: a graph file cannot hold more than 2
    /// GB.
    pub external_over: u64,
    /// The licence of the weights, an SPDX identifier, for the graph's metadata.
    pub license: Option<String>,
    /// Whether an export that is there already is replaced; other files beside it stay.
    pub replace: bool,
}

impl Default for ExportOptions {
    fn default() -> Self {
        ExportOptions {
            weights: WeightFormat::default(),
            head: HeadFormat::default(),
            cache: true,
            external_over: 64 << 20,
            license: None,
            replace: false,
        }
    }
}

/// Writes the folder `directory`: the graph, and the configuration and tokenizer files that runtimes want beside it.
///
/// The folder must not exist, or be empty, or hold an export that is to be replaced. Nothing appears there before all
/// is written. Memory beyond the model's own is one matrix, and `external_over` twice. Gives the bytes of all files.
///
/// # Errors
/// When the model has something that the options have no form for, or the folder cannot be written.
pub fn export(model: &Model, directory: &Path, options: &ExportOptions) -> Result<u64> {
    if options.external_over > 1 << 30 {
        let message = format!("external data over {} bytes, expected at most 2^30", options.external_over);
        return Err(Error::Argument(message));
    }
    let exists = directory.exists();
    if exists && fs::read_dir(directory).map_err(|e| Error::io(directory, e))?.next().is_some() {
        let holds_export = directory.join(GRAPH_FILE).exists();
        if !holds_export || !options.replace {
            let what = if holds_export { "holds an export already" } else { "is not empty, and holds no export" };
            return Err(Error::Argument(format!("{} {what}", directory.display())));
        }
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let name =
        directory.file_name().ok_or_else(|| Error::Argument(format!("{} names no folder", directory.display())))?;
    let staging = Staging::new(parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id())))?;
    write_graph(model, &staging.0, options)?;
    settings::write(model, &staging.0, options)?;
    let bytes = size(&staging.0)?;
    if exists {
        replace(&staging.0, directory)?;
    } else {
        fs::rename(&staging.0, directory).map_err(|e| Error::io(directory, e))?;
    }
    Ok(bytes)
}

/// Moves an export's files over those of another, or into an empty folder.
fn replace(staging: &Path, directory: &Path) -> Result<()> {
    let folder = directory.join(GRAPH_FILE).parent().map_or_else(PathBuf::new, Path::to_path_buf);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    for name in settings::FILES.into_iter().chain([DATA_FILE, GRAPH_FILE]) {
        let (from, to) = (staging.join(name), directory.join(name));
        if from.exists() {
            fs::rename(&from, &to).map_err(|e| Error::io(&to, e))?;
        } else if to.exists() {
            fs::remove_file(&to).map_err(|e| Error::io(&to, e))?;
        }
    }
    Ok(())
}

/// A folder under construction, which goes away unless it was renamed.
struct Staging(PathBuf);

impl Staging {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Staging(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; before it, what cannot be removed stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes [`GRAPH_FILE`], and [`DATA_FILE`] if there is much.
fn write_graph(model: &Model, directory: &Path, options: &ExportOptions) -> Result<()> {
    let (file, data) = (directory.join(GRAPH_FILE), directory.join(DATA_FILE));
    let folder = file.parent().unwrap_or(directory);
    fs::create_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut graph = Graph::new("decoder", &data)?;
    write_decoder(&mut graph, model.core(), options)?;
    let graph = graph.finish(options.external_over)?;

    let hash: Vec<String> = Sha256::digest(model.packed()).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut metadata = vec![("name", model.name().to_owned()), ("source_sha256", hash.concat())];
    if let Some(license) = &options.license {
        metadata.push(("license", license.clone()));
    }
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
    let mut opset_import = vec![opset("", OPSET)];
    if graph.node.iter().any(|node| node.domain() == "com.microsoft") {
        opset_import.push(opset("com.microsoft", 1));
    }
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import,
        producer_name: Some("trion-onnx".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(graph),
        metadata_props: metadata
            .into_iter()
            .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) })
            .collect(),
        ..ModelProto::default()
    };
    fs::write(&file, model.encode_to_vec()).map_err(|e| Error::io(&file, e))
}

/// Bytes of all files below a folder.
fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(|e| Error::io(directory, e))? {
        let path = entry.map_err(|e| Error::io(directory, e))?.path();
        let metadata = path.metadata().map_err(|e| Error::io(&path, e))?;
        bytes += if metadata.is_dir() { size(&path)? } else { metadata.len() };
    }
    Ok(bytes)
}
