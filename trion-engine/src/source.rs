//! What every checkpoint reader offers to the packer: a configuration, matrices row by row, and vectors.

use std::borrow::Cow;

use trion_core::Config;
use trion_core::numeric::{bf16_to_f32, f16_to_f32, f32_to_f16};
pub(crate) use trion_core::{LayerNorm, Projection};

use crate::error::Result;

/// A matrix of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixId {
    /// The token embedding `[vocab_size, hidden_size]`.
    Embedding,
    /// The output head `[vocab_size, hidden_size]`; absent when it is tied to the embedding.
    Head,
    /// A projection of a block.
    Layer(usize, Projection),
}

/// A vector of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorId {
    /// The norm before the head `[hidden_size]`.
    FinalNorm,
    /// A norm of a block.
    Layer(usize, LayerNorm),
    /// The norm inside a projection (`use_rms_norm`), as long as the projection's input.
    Projection(usize, Projection),
}

/// How integer dot products become floats again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TritScale {
    /// `y = (acc / s) * scale`, with s the activation's scale: `AutoBitLinear`, GGUF.
    Multiply(f32),
    /// `y = acc / (scale * s)`: `BitLinear`.
    Divide(f32),
    /// One multiplier, in IEEE half-precision bits, for each `size` consecutive columns of a row: `[rows, cols / size]`.
    Groups {
        /// Columns that share a scale.
        size: usize,
        /// The scales.
        scales: Vec<u16>,
    },
}

/// Number formats of float matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

/// Reads one row of trits: `(row, out)` with `out` of `cols` elements, each set to -1, 0 or +1.
pub(crate) type TritRows<'a> = Box<dyn Fn(usize, &mut [i8]) -> Result<()> + 'a>;

/// A weight matrix `[rows, cols]` of a checkpoint.
pub(crate) enum SourceMatrix<'a> {
    /// Ternary, or made ternary by the checkpoint's own rule.
    Trits {
        /// What turns integers into floats.
        scale: TritScale,
        /// The rows.
        rows: TritRows<'a>,
    },
    /// Floats, little-endian, row by row without padding.
    Float {
        /// Their format.
        dtype: FloatType,
        /// The bytes.
        bytes: Cow<'a, [u8]>,
    },
}

/// What a checkpoint says beside its weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Shapes and constants; not validated yet.
    pub(crate) config: Config,
    /// Begins every prompt, if any.
    pub(crate) bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub(crate) eos_token_ids: Vec<u32>,
    /// The contents of `tokenizer.json`, if the checkpoint has one or carries a vocabulary.
    pub(crate) tokenizer_json: Option<String>,
    /// The Jinja chat template, if any.
    pub(crate) chat_template: Option<String>,
    /// A name for people.
    pub(crate) name: String,
    /// Norms that every block of this architecture has, beside those that every model has.
    pub(crate) norms: &'static [LayerNorm],
    /// Whether every projection has a norm of its own.
    pub(crate) projection_norms: bool,
}

/// Sub-norms, which `BitNet` blocks have.
pub(crate) const SUB_NORMS: &[LayerNorm] = &[LayerNorm::AttentionSub, LayerNorm::MlpSub];
/// Norms of Qwen3 blocks.
pub(crate) const QUERY_KEY_NORMS: &[LayerNorm] = &[LayerNorm::Query, LayerNorm::Key];

/// A readable checkpoint. Shapes are checked by the reader against the configuration before data is handed out.
pub(crate) trait Checkpoint {
    /// Everything that is not a weight.
    fn settings(&self) -> &Settings;

    /// A matrix; `None` if the checkpoint does not have it.
    fn matrix(&self, id: MatrixId) -> Result<Option<SourceMatrix<'_>>>;

    /// A vector in single precision; `None` if the checkpoint does not have it.
    fn vector(&self, id: VectorId) -> Result<Option<Vec<f32>>>;
}

/// Element `i` of little-endian floats, as a single.
pub(crate) fn float_at(dtype: FloatType, bytes: &[u8], i: usize) -> f32 {
    match dtype {
        FloatType::F32 => bytes.as_chunks::<4>().0.get(i).map_or(0.0, |le| f32::from_le_bytes(*le)),
        FloatType::F16 => bytes.as_chunks::<2>().0.get(i).map_or(0.0, |le| f16_to_f32(u16::from_le_bytes(*le))),
        FloatType::Bf16 => bytes.as_chunks::<2>().0.get(i).map_or(0.0, |le| bf16_to_f32(u16::from_le_bytes(*le))),
    }
}

/// Sizes of groups that published checkpoints use (Ternary-Bonsai), the larger first.
const GROUP_SIZES: [usize; 2] = [128, 64];

/// Trits of a float matrix `[rows, cols]` in which every group of 128 or 64 consecutive weights of a row holds only
/// -d, 0 and +d, d a half-precision number: a ternary model that was saved unpacked. `None` for any other matrix. Where all
/// groups have the same d it is one scale of the whole matrix, and activations are quantised over whole rows.
pub(crate) fn grouped_trits(dtype: FloatType, bytes: &[u8], rows: usize, cols: usize) -> Option<SourceMatrix<'_>> {
    let (size, scales) = GROUP_SIZES
        .into_iter()
        .filter(|size| cols.is_multiple_of(*size))
        .find_map(|size| Some((size, group_scales(dtype, bytes, rows * cols, size)?)))?;
    let trits = move |row: usize, out: &mut [i8]| {
        for (i, out) in out.iter_mut().enumerate() {
            let weight = float_at(dtype, bytes, row * cols + i);
            *out = i8::from(weight > 0.0) - i8::from(weight < 0.0);
        }
        Ok(())
    };
    let mut some = scales.iter().copied().filter(|scale| *scale != 0);
    let first = some.next().unwrap_or(0);
    let one = some.all(|scale| scale == first);
    let scale = if one { TritScale::Multiply(f16_to_f32(first)) } else { TritScale::Groups { size, scales } };
    Some(SourceMatrix::Trits { scale, rows: Box::new(trits) })
}

/// The one magnitude of each group of `size` weights, if each has just one.
fn group_scales(dtype: FloatType, bytes: &[u8], count: usize, size: usize) -> Option<Vec<u16>> {
    (0..count / size)
        .map(|group| {
            let mut scale = 0.0_f32;
            for i in group * size..(group + 1) * size {
                let magnitude = float_at(dtype, bytes, i).abs();
                if magnitude.is_nan() || (magnitude != 0.0 && scale != 0.0 && magnitude != scale) {
                    return None;
                }
                scale = scale.max(magnitude);
            }
            let half = f32_to_f16(scale);
            (scale.is_finite() && f16_to_f32(half) == scale).then_some(half)
        })
        .collect()
}
