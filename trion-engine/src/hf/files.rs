//! The safetensors files of a checkpoint, mapped, and their tensors by name.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::map::{Mmap, map_file};

/// Name of the only file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";
/// Name of the table that says which shard holds a tensor.
const INDEX: &str = "model.safetensors.index.json";

/// One mapped file.
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where tensor data begins.
    data: usize,
}

/// All files of a checkpoint.
pub(super) struct TensorFiles {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// The shard that holds each tensor.
    tensors: HashMap<String, usize>,
}

/// A tensor in a mapped file.
pub(super) struct Tensor<'a> {
    /// The file it lies in.
    pub(super) file: &'a Path,
    /// Its name.
    pub(super) name: String,
    /// Its number format.
    pub(super) dtype: Dtype,
    /// Its dimensions.
    pub(super) shape: &'a [usize],
    /// Its bytes, little-endian.
    pub(super) bytes: &'a [u8],
}

impl TensorFiles {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let mut files = TensorFiles { directory: directory.to_owned(), shards: Vec::new(), tensors: HashMap::new() };
        let index = directory.join(INDEX);
        if directory.join(SINGLE).exists() || !index.exists() {
            files.add(SINGLE)?;
            for (name, _) in files.shards[0].metadata.tensors() {
                files.tensors.insert(name, 0);
            }
            return Ok(files);
        }
        let text = fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| Error::malformed(&index, "file", format!("is not JSON: {e}")))?;
        let Some(Value::Object(weight_map)) = json.get("weight_map") else {
            return Err(Error::malformed(&index, "weight_map", "is missing, expected an object of file names"));
        };
        let mut opened: HashMap<String, usize> = HashMap::new();
        for (tensor, file) in weight_map {
            let Some(file) = file.as_str().filter(|name| is_plain_shard_name(name)) else {
                let message = format!("is in {file}, expected the name of a .safetensors file in the same directory");
                return Err(Error::malformed(&index, tensor.as_str(), message));
            };
            let shard = if let Some(shard) = opened.get(file) {
                *shard
            } else {
                files.add(file)?;
                opened.insert(file.to_owned(), files.shards.len() - 1);
                files.shards.len() - 1
            };
            if files.shards[shard].metadata.info(tensor).is_none() {
                return Err(Error::malformed(
                    &index,
                    tensor.as_str(),
                    format!("is not in {file}, where the index puts it"),
                ));
            }
            files.tensors.insert(tensor.clone(), shard);
        }
        Ok(files)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        let map = map_file(&path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::malformed(&path, "header", format!("is not a safetensors header: {e}")))?;
        self.shards.push(Shard { path, map, metadata, data: header + 8 });
        Ok(())
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether there is a tensor of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor; `None` if there is none of this name.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor<'_>>> {
        let Some(shard) = self.tensors.get(name) else { return Ok(None) };
        let shard = &self.shards[*shard];
        let found = shard.metadata.info(name).and_then(|info| {
            let (from, to) = info.data_offsets;
            let bytes = shard.map.get(shard.data.checked_add(from)?..shard.data.checked_add(to)?)?;
            Some(Tensor { file: &shard.path, name: name.to_owned(), dtype: info.dtype, shape: &info.shape, bytes })
        });
        let outside = || Error::malformed(&shard.path, name, "has offsets outside the file");
        Ok(Some(found.ok_or_else(outside)?))
    }
}

/// A file name, and no path: an index must not reach outside its directory, nor name itself.
fn is_plain_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\']) && !name.starts_with('.')
}
