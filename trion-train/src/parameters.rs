//! Parameters: how they start, and how they are kept in safetensors files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use trion_core::Projection;

use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::layout::{Entry, Kind};

/// How parameters start. Norms are ones, and the embedding is normal, with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialization {
    /// Every matrix normal with a standard deviation of 0.02.
    Normal,
    /// Query, key and value projections are the identity, output projections near zero (a standard deviation of 0.0002),
    /// and those of the MLP Kaiming's (the root of 2 / columns): a block begins as little more than its MLP.
    Identity,
}

/// Parameters of a model that has learned nothing, the same for a seed on every device.
pub fn initial(entries: &[Entry], start: Initialization, seed: u64) -> Vec<Vec<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = |entry: &Entry, deviation: f32| -> Vec<f32> {
        (0..entry.count()).map(|_| standard_normal(&mut random) * deviation).collect()
    };
    let parameter = |entry: &Entry| {
        let [rows, cols] = entry.shape;
        match (entry.kind, start) {
            (Kind::Norm, _) => vec![1.0; entry.count()],
            (Kind::Embedding, _) | (Kind::Matrix(_), Initialization::Normal) => normal(entry, 0.02),
            (Kind::Matrix(Projection::Query | Projection::Key | Projection::Value), Initialization::Identity) => {
                (0..rows * cols).map(|i| f32::from(u8::from(i / cols == i % cols))).collect()
            }
            (Kind::Matrix(Projection::Output | Projection::Down), Initialization::Identity) => normal(entry, 0.0002),
            (Kind::Matrix(Projection::Gate | Projection::Up), Initialization::Identity) => {
                normal(entry, (2.0 / cols as f32).sqrt())
            }
        }
    };
    entries.iter().map(parameter).collect()
}

/// A number of the normal distribution, by the method of Box and Muller.
fn standard_normal(random: &mut impl RngCore) -> f32 {
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0;
    let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
    (radius * angle.cos()) as f32
}

/// A tensor of a file that is to be written: its name, type, shape and bytes.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    /// A tensor of singles.
    pub(crate) fn floats(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Stored { name, dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

/// Writes a safetensors file, whole or not at all.
pub(crate) fn save(path: &Path, tensors: &[Stored], metadata: BTreeMap<String, String>) -> Result<()> {
    let malformed = |e: safetensors::SafeTensorError| Error::malformed(path, e.to_string());
    let views = tensors
        .iter()
        .map(|t| Ok((t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(malformed)?;
    let bytes = safetensors::serialize(views, Some(metadata.into_iter().collect())).map_err(malformed)?;
    write_whole(path, |file| std::io::Write::write_all(file, &bytes))
}

/// The bytes of a safetensors file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path))
}

/// The tensor `name` of `file`, which was read from `path`, that belongs to `entry`: singles, or what can be made singles
/// without loss.
pub(crate) fn tensor(path: &Path, file: &SafeTensors<'_>, name: &str, entry: &Entry) -> Result<Vec<f32>> {
    let stored_shape = entry.stored_shape();
    let tensor = file.tensor(name).map_err(|e| Error::malformed(path, format!("{name}: {e}")))?;
    if tensor.shape() != stored_shape {
        let message = format!("{name} has shape {:?}, expected {stored_shape:?}", tensor.shape());
        return Err(Error::malformed(path, message));
    }
    match tensor.dtype() {
        Dtype::F32 => Ok(tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            Ok(tensor.data().as_chunks::<2>().0.iter().map(wide).collect())
        }
        other => Err(Error::malformed(path, format!("{name} has dtype {other:?}, expected F32 or BF16"))),
    }
}

/// Reads parameters from a checkpoint in the names of Hugging Face.
///
/// # Errors
/// [`Error::Malformed`] if one is missing or has another shape or type.
pub fn load(path: &Path, entries: &[Entry]) -> Result<Vec<Vec<f32>>> {
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::malformed(path, e.to_string()))?;
    entries.iter().map(|entry| tensor(path, &file, &entry.name, entry)).collect()
}
