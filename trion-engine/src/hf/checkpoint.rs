//! Tensors of a Hugging Face checkpoint, by the role they play.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::Dtype;
use trion_core::quant::{absmean_scale, absmean_trit};

use super::config::{HfConfig, LinearKind};
use super::files::{Tensor, TensorFiles};
use crate::error::{Error, Result};
use crate::source::{
    Checkpoint, FloatType, LayerNorm, MatrixId, Projection, Settings, SourceMatrix, TritScale, VectorId, float_at,
    grouped_trits,
};

/// A checkpoint directory.
pub(crate) struct HfCheckpoint {
    config: HfConfig,
    files: TensorFiles,
}

impl HfCheckpoint {
    /// Opens a directory with `config.json` and safetensors files.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let config = HfConfig::open(directory)?;
        let files = TensorFiles::open(directory)?;
        if let Some(bias) = files.names().find(|name| name.ends_with(".bias")) {
            return Err(Error::unsupported(files.directory(), bias, "is a bias; models with biases are not supported"));
        }
        Ok(HfCheckpoint { config, files })
    }

    /// The first of several names that a tensor goes by.
    fn first_of(&self, names: &[String]) -> Result<Option<Tensor<'_>>> {
        names.iter().find(|name| self.files.contains(name)).map_or(Ok(None), |name| self.files.tensor(name))
    }

    /// A float tensor with `count` elements, as singles.
    fn floats(&self, tensor: &Tensor<'_>, count: usize) -> Result<Vec<f32>> {
        if tensor.shape.iter().product::<usize>() != count {
            let message = format!("has shape {:?}, expected [{count}]", tensor.shape);
            return Err(Error::malformed(tensor.file, tensor.name.as_str(), message));
        }
        let dtype = float_type(tensor)?;
        Ok((0..count).map(|i| float_at(dtype, tensor.bytes, i)).collect())
    }

    /// The `weight_scale` that stands beside packed trits.
    fn weight_scale(&self, prefix: &str) -> Result<f32> {
        let name = format!("{prefix}.weight_scale");
        let Some(tensor) = self.files.tensor(&name)? else {
            return Err(Error::malformed(self.files.directory(), name, "is missing, expected one float"));
        };
        let scale = self.floats(&tensor, 1)?[0];
        if !scale.is_finite() || scale == 0.0 {
            return Err(Error::malformed(tensor.file, name, format!("is {scale}, expected a finite number but zero")));
        }
        Ok(scale)
    }

    fn projection<'a>(&'a self, prefix: &str, tensor: Tensor<'a>, shape: [usize; 2]) -> Result<SourceMatrix<'a>> {
        let [_, cols] = shape;
        match self.config.linear {
            LinearKind::PackedMultiply | LinearKind::PackedDivide => {
                let scale = self.weight_scale(prefix)?;
                let scale = if self.config.linear == LinearKind::PackedMultiply {
                    TritScale::Multiply(scale)
                } else {
                    TritScale::Divide(scale)
                };
                packed_trits(tensor, shape, scale)
            }
            LinearKind::Masters => {
                let (dtype, bytes) = float_matrix(&tensor, shape)?;
                let count = shape[0] * cols;
                let scale = absmean_scale((0..count).map(|i| float_at(dtype, bytes, i)));
                if !scale.is_finite() {
                    let message = "holds a NaN or an infinity, expected finite numbers";
                    return Err(Error::malformed(tensor.file, tensor.name, message));
                }
                let reciprocal = 1.0 / scale;
                let rows = move |row: usize, out: &mut [i8]| {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = absmean_trit(float_at(dtype, bytes, row * cols + i), reciprocal);
                    }
                    Ok(())
                };
                // The reference divides by the reciprocal, which rounds twice.
                Ok(SourceMatrix::Trits { scale: TritScale::Multiply(1.0 / reciprocal), rows: Box::new(rows) })
            }
            LinearKind::Float => float_or_groups(&tensor, shape),
        }
    }
}

impl Checkpoint for HfCheckpoint {
    fn settings(&self) -> &Settings {
        &self.config.settings
    }

    fn matrix(&self, id: MatrixId) -> Result<Option<SourceMatrix<'_>>> {
        let config = &self.config.settings.config;
        let table = [config.vocab_size, config.hidden_size];
        let (prefix, shape) = match id {
            MatrixId::Head if self.config.tied == Some(true) => return Ok(None),
            MatrixId::Head => ("lm_head".to_owned(), table),
            MatrixId::Embedding => ("model.embed_tokens".to_owned(), table),
            MatrixId::Layer(n, projection) => {
                (format!("model.layers.{n}.{}", projection.name()), projection.shape(config))
            }
        };
        let Some(tensor) = self.files.tensor(&format!("{prefix}.weight"))? else {
            if id == MatrixId::Head && self.config.tied == Some(false) {
                let message = "is missing, and tie_word_embeddings is false";
                return Err(Error::malformed(self.files.directory(), "lm_head.weight", message));
            }
            return Ok(None);
        };
        match id {
            MatrixId::Layer(..) => self.projection(&prefix, tensor, shape).map(Some),
            // Embedding and head are never quantised but by groups.
            _ if self.config.linear == LinearKind::Float => float_or_groups(&tensor, shape).map(Some),
            _ => {
                let (dtype, bytes) = float_matrix(&tensor, shape)?;
                Ok(Some(SourceMatrix::Float { dtype, bytes: Cow::Borrowed(bytes) }))
            }
        }
    }

    fn vector(&self, id: VectorId) -> Result<Option<Vec<f32>>> {
        let config = &self.config.settings.config;
        let (names, length) = match id {
            VectorId::FinalNorm => (vec!["model.norm.weight".to_owned()], config.hidden_size),
            VectorId::Layer(n, norm) => {
                let mut names = vec![format!("model.layers.{n}.{}.weight", norm.name())];
                // 1bitLLM's names of the sub-norms.
                match norm {
                    LayerNorm::AttentionSub => names.push(format!("model.layers.{n}.self_attn.inner_attn_ln.weight")),
                    LayerNorm::MlpSub => names.push(format!("model.layers.{n}.mlp.ffn_layernorm.weight")),
                    _ => {}
                }
                (names, norm.length(config))
            }
            VectorId::Projection(n, projection) => {
                let prefix = format!("model.layers.{n}.{}", Projection::name(projection));
                let names = vec![format!("{prefix}.rms_norm.weight"), format!("{prefix}.norm.weight")];
                (names, projection.shape(config)[1])
            }
        };
        self.first_of(&names)?.map(|tensor| self.floats(&tensor, length)).transpose()
    }
}

fn float_type(tensor: &Tensor<'_>) -> Result<FloatType> {
    match tensor.dtype {
        Dtype::F32 => Ok(FloatType::F32),
        Dtype::F16 => Ok(FloatType::F16),
        Dtype::BF16 => Ok(FloatType::Bf16),
        other => {
            let message = format!("has dtype {other:?}, expected F32, F16 or BF16");
            Err(Error::malformed(tensor.file, tensor.name.as_str(), message))
        }
    }
}

fn float_matrix<'a>(tensor: &Tensor<'a>, shape: [usize; 2]) -> Result<(FloatType, &'a [u8])> {
    check_shape(tensor, shape)?;
    Ok((float_type(tensor)?, tensor.bytes))
}

fn check_shape(tensor: &Tensor<'_>, expected: [usize; 2]) -> Result<()> {
    if tensor.shape == expected {
        return Ok(());
    }
    let message = format!("has shape {:?}, expected {expected:?}", tensor.shape);
    Err(Error::malformed(tensor.file, tensor.name.as_str(), message))
}

/// Weights that stay float; or trits, where every group of consecutive weights holds only -d, 0 and +d.
fn float_or_groups<'a>(tensor: &Tensor<'a>, shape: [usize; 2]) -> Result<SourceMatrix<'a>> {
    let (dtype, bytes) = float_matrix(tensor, shape)?;
    let [rows, cols] = shape;
    Ok(grouped_trits(dtype, bytes, rows, cols).unwrap_or(SourceMatrix::Float { dtype, bytes: Cow::Borrowed(bytes) }))
}

/// Bits 2k and 2k + 1 of byte `[r, i]` of a U8 tensor `[rows / 4, cols]` hold trit + 1 of row r + k rows / 4, column i.
fn packed_trits(tensor: Tensor<'_>, shape: [usize; 2], scale: TritScale) -> Result<SourceMatrix<'_>> {
    let [rows, cols] = shape;
    if tensor.dtype != Dtype::U8 {
        let message = format!("has dtype {:?}, expected U8 with packed trits", tensor.dtype);
        return Err(Error::malformed(tensor.file, tensor.name, message));
    }
    if !rows.is_multiple_of(4) {
        let message = format!("packs {rows} rows, expected a multiple of 4");
        return Err(Error::malformed(tensor.file, tensor.name, message));
    }
    let quarter = rows / 4;
    check_shape(&tensor, [quarter, cols])?;
    let read = move |row: usize, out: &mut [i8]| {
        let bytes = &tensor.bytes[row % quarter * cols..][..cols];
        for (col, (byte, out)) in bytes.iter().zip(out).enumerate() {
            let code = (byte >> (2 * (row / quarter))) & 3;
            if code == 3 {
                let message = format!("row {row}, column {col} holds code 3, expected 0, 1 or 2");
                return Err(Error::malformed(tensor.file, tensor.name.as_str(), message));
            }
            *out = code as i8 - 1;
        }
        Ok(())
    };
    Ok(SourceMatrix::Trits { scale, rows: Box::new(read) })
}
