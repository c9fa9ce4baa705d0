//! Trion's packed file: borrowing a model from its bytes.

use std::path::Path;

use bytemuck::Pod;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use trion_core::packing::TILE_ROWS;
use trion_core::{
    Activation, Config, FloatData, FloatMatrix, Int6Matrix, Layer, LayerNorm, Linear, Matrix, Packing, Projection,
    Rescale, TernaryMatrix,
};

use crate::error::{Error, Result};
use crate::source::Settings;

/// `__metadata__.format` of a packed file.
pub(crate) const FORMAT: &str = "trion";
/// `__metadata__.version` of the files that this version reads and writes.
pub(crate) const VERSION: &str = "1";

/// What the name of a tensor of trits ends with.
pub(crate) const fn trits_ending(packing: Packing) -> &'static str {
    match packing {
        Packing::Twos => "trits",
        Packing::Fives => "fives",
    }
}

/// The shape of a tensor of trits of a matrix `[rows, cols]`: tiles, blocks, bytes of a block.
pub(crate) fn trits_shape(packing: Packing, [rows, cols]: [usize; 2]) -> [usize; 3] {
    [rows.div_ceil(TILE_ROWS), cols.div_ceil(packing.block_cols()), packing.block_bytes()]
}

/// `__metadata__.config`: the configuration under the names of its fields, and the tokens that frame a text.
#[derive(Serialize, Deserialize)]
pub(crate) struct PackedConfig {
    #[serde(flatten, with = "ConfigFields")]
    pub(crate) config: Config,
    pub(crate) bos_token_id: Option<u32>,
    pub(crate) eos_token_id: Vec<u32>,
}

impl PackedConfig {
    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        // Numbers, names and lists of numbers always have a JSON form.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// How serde sees the core's configuration.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Config")]
struct ConfigFields {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    projection_norm_eps: f32,
    rope_theta: f32,
    #[serde(with = "ActivationNames")]
    hidden_act: Activation,
    activation_group: usize,
}

/// Hugging Face's names of activations.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Activation", rename_all = "lowercase")]
enum ActivationNames {
    Relu2,
    Silu,
}

/// The bytes of a packed file with its header read and checked.
pub(crate) struct PackedFile<'f, 'a> {
    file: &'f Path,
    bytes: &'a [u8],
    metadata: Metadata,
    data: usize,
}

/// Reverses the bytes of each number in a safetensors file: what makes one for big-endian machines of one.
pub(crate) fn swap_numbers(file: &Path, bytes: &mut [u8]) -> Result<()> {
    let (header, metadata) = read_header(file, bytes)?;
    for info in metadata.tensors().into_values() {
        let (from, to) = info.data_offsets;
        // A tensor that lies outside the file is found, and named, when it is wanted.
        let tensor = bytes.get_mut(header + 8 + from..header + 8 + to).unwrap_or_default();
        tensor.chunks_exact_mut(info.dtype.bitsize().div_ceil(8)).for_each(<[u8]>::reverse);
    }
    Ok(())
}

/// The length of a safetensors file's header, and what it says.
fn read_header(file: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::malformed(file, "header", format!("is not a safetensors header: {e}")))
}

/// A tensor of a packed file.
struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

/// The weights of a model, borrowed from a packed file.
pub(crate) struct Weights<'a> {
    pub(crate) embedding: Matrix<'a>,
    pub(crate) layers: Vec<Layer<'a>>,
    pub(crate) norm: &'a [f32],
    pub(crate) head: Option<Matrix<'a>>,
}

impl<'f, 'a> PackedFile<'f, 'a> {
    /// Reads the header of a safetensors file; `None` if it is not one of Trion's.
    pub(crate) fn open(file: &'f Path, bytes: &'a [u8]) -> Result<Option<Self>> {
        let (header, metadata) = read_header(file, bytes)?;
        let packed = PackedFile { file, bytes, metadata, data: header + 8 };
        match (packed.text("format"), packed.text("version")) {
            (Some(FORMAT), Some(VERSION)) => Ok(Some(packed)),
            (Some(FORMAT), version) => {
                let message = format!("is {}, expected {VERSION:?}", version.unwrap_or("missing"));
                Err(Error::unsupported(file, "__metadata__.version", message))
            }
            _ => Ok(None),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    fn malformed(&self, place: impl Into<String>, message: impl Into<String>) -> Error {
        Error::malformed(self.file, place, message)
    }

    /// Everything that is not a weight.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let place = "__metadata__.config";
        let text = self.text("config").ok_or_else(|| self.malformed(place, "is missing, expected JSON"))?;
        let PackedConfig { config, bos_token_id, eos_token_id } =
            serde_json::from_str(text).map_err(|e| self.malformed(place, format!("is wrong: {e}")))?;
        config.validate().map_err(|e| self.malformed(place, e.to_string()))?;
        Ok(Settings {
            config,
            bos_token_id,
            eos_token_ids: eos_token_id,
            tokenizer_json: self.text("tokenizer.json").map(str::to_owned),
            chat_template: self.text("chat_template").map(str::to_owned),
            name: self.text("name").unwrap_or("model").to_owned(),
            // The packer has seen to these.
            norms: &[],
            projection_norms: false,
        })
    }

    /// Borrows all weights.
    pub(crate) fn weights(&self, config: &Config) -> Result<Weights<'a>> {
        let table = [config.vocab_size, config.hidden_size];
        let layers = (0..config.num_hidden_layers).map(|n| self.layer(config, n)).collect::<Result<_>>()?;
        Ok(Weights {
            embedding: self.required_matrix("model.embed_tokens", table)?,
            layers,
            norm: self.required_vector("model.norm.weight", config.hidden_size)?,
            head: self.matrix("lm_head", table)?,
        })
    }

    fn layer(&self, config: &Config, n: usize) -> Result<Layer<'a>> {
        let mut projections = Vec::with_capacity(Projection::ALL.len());
        for projection in Projection::ALL {
            let name = format!("model.layers.{n}.{}", projection.name());
            let shape = projection.shape(config);
            let norm = self.vector(&format!("{name}.norm.weight"), shape[1])?;
            projections.push(Linear { matrix: self.required_matrix(&name, shape)?, norm });
        }
        let projections = projections.try_into().map_err(|_| self.malformed("layer", "has too few projections"))?;
        let mut norms = [None; LayerNorm::ALL.len()];
        for norm in LayerNorm::ALL {
            let name = format!("model.layers.{n}.{}.weight", norm.name());
            norms[norm as usize] = if norm.required() {
                Some(self.required_vector(&name, norm.length(config))?)
            } else {
                self.vector(&name, norm.length(config))?
            };
        }
        Ok(Layer { projections, norms })
    }

    fn required_matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix<'a>> {
        self.matrix(name, shape)?.ok_or_else(|| {
            self.malformed(name, "is missing, expected a tensor .trits, .fives, .int6 or .weight of this name")
        })
    }

    fn required_vector(&self, name: &str, length: usize) -> Result<&'a [f32]> {
        self.vector(name, length)?.ok_or_else(|| self.malformed(name, "is missing"))
    }

    /// A matrix by its name without the ending, or `None`.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Option<Matrix<'a>>> {
        let [rows, cols] = shape;
        for packing in [Packing::Twos, Packing::Fives] {
            let trits_name = format!("{name}.{}", trits_ending(packing));
            let Some(trits) = self.tensor(&trits_name)? else { continue };
            let expected = trits_shape(packing, shape);
            if trits.dtype != Dtype::U8 || trits.shape != expected {
                let message = format!("is {:?} {:?}, expected U8 {expected:?}", trits.dtype, trits.shape);
                return Err(self.malformed(trits_name, message));
            }
            let matrix = TernaryMatrix::new(rows, cols, packing, trits.bytes, self.rescale(name)?)
                .map_err(|e| self.malformed(trits_name, e.to_string()))?;
            return Ok(Some(matrix.into()));
        }
        let int6_name = format!("{name}.int6");
        if let Some(codes) = self.tensor(&int6_name)? {
            if codes.dtype != Dtype::U8 {
                return Err(self.malformed(int6_name, format!("has dtype {:?}, expected U8", codes.dtype)));
            }
            let row_scales = self.required_vector(&format!("{name}.row_scales"), rows)?;
            let matrix = Int6Matrix::new(rows, cols, codes.bytes, row_scales)
                .map_err(|e| self.malformed(int6_name, e.to_string()))?;
            return Ok(Some(matrix.into()));
        }
        let weight_name = format!("{name}.weight");
        let Some(weight) = self.tensor(&weight_name)? else { return Ok(None) };
        if weight.shape != shape {
            let message = format!("has shape {:?}, expected {shape:?}", weight.shape);
            return Err(self.malformed(weight_name, message));
        }
        let data = match weight.dtype {
            Dtype::F32 => FloatData::F32(self.cast(&weight_name, weight.bytes)?),
            Dtype::F16 => FloatData::F16(self.cast(&weight_name, weight.bytes)?),
            Dtype::BF16 => FloatData::Bf16(self.cast(&weight_name, weight.bytes)?),
            Dtype::I8 => FloatData::I8 {
                values: self.cast(&weight_name, weight.bytes)?,
                scales: self.required_vector(&format!("{name}.row_scales"), rows)?,
            },
            other => {
                let message = format!("has dtype {other:?}, expected F32, F16, BF16 or I8");
                return Err(self.malformed(weight_name, message));
            }
        };
        let matrix = FloatMatrix::new(rows, cols, data).map_err(|e| self.malformed(weight_name, e.to_string()))?;
        Ok(Some(matrix.into()))
    }

    /// The scale that goes with `NAME.trits` or `NAME.fives`.
    fn rescale(&self, name: &str) -> Result<Rescale<'a>> {
        if let Some(scale) = self.vector(&format!("{name}.scale"), 1)? {
            return Ok(Rescale::Multiply(scale[0]));
        }
        if let Some(scale) = self.vector(&format!("{name}.scale_divisor"), 1)? {
            return Ok(Rescale::Divide(scale[0]));
        }
        // Group sizes are few: a tensor's name carries its own.
        for size in [16, 32, 64, 128, 256, 512] {
            let name = format!("{name}.group_scales.{size}");
            if let Some(scales) = self.tensor(&name)? {
                if scales.dtype != Dtype::F16 {
                    return Err(self.malformed(name, format!("has dtype {:?}, expected F16", scales.dtype)));
                }
                return Ok(Rescale::Groups { size, scales: self.cast(&name, scales.bytes)? });
            }
        }
        Err(self.malformed(name, "has trits but no tensor .scale, .scale_divisor or .group_scales.SIZE"))
    }

    /// A vector of singles, or `None`.
    fn vector(&self, name: &str, length: usize) -> Result<Option<&'a [f32]>> {
        let Some(tensor) = self.tensor(name)? else { return Ok(None) };
        if tensor.dtype != Dtype::F32 || tensor.shape != [length] {
            let message = format!("is {:?} {:?}, expected F32 [{length}]", tensor.dtype, tensor.shape);
            return Err(self.malformed(name, message));
        }
        self.cast(name, tensor.bytes).map(Some)
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor<'a>>> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let (from, to) = info.data_offsets;
        let range = self.data.saturating_add(from)..self.data.saturating_add(to);
        let bytes = self.bytes.get(range).ok_or_else(|| self.malformed(name, "has offsets outside the file"))?;
        Ok(Some(Tensor { dtype: info.dtype, shape: info.shape.clone(), bytes }))
    }

    fn cast<T: Pod>(&self, name: &str, bytes: &'a [u8]) -> Result<&'a [T]> {
        bytemuck::try_cast_slice(bytes)
            .map_err(|e| self.malformed(name, format!("does not lie at a multiple of its element size: {e}")))
    }
}
