//! Tensors and settings of a GGUF file, by the role they play.

use std::borrow::Cow;
use std::path::Path;

use trion_core::numeric::f16_to_f32;
use trion_core::{Activation, Config};

use super::blocks::Kind;
use super::reader::{Gguf, TensorInfo};
use crate::error::{Error, Result};
use crate::source::{
    Checkpoint, FloatType, LayerNorm, MatrixId, Projection, QUERY_KEY_NORMS, SUB_NORMS, Settings, SourceMatrix,
    TritScale, VectorId, float_at, grouped_trits,
};

/// Architectures that this reader knows.
const ARCHITECTURES: [&str; 5] = ["bitnet", "bitnet-b1.58", "bitnet-25", "llama", "qwen3"];

/// A GGUF file.
pub(crate) struct GgufCheckpoint<'a> {
    gguf: Gguf<'a>,
    settings: Settings,
    /// llama.cpp stores query and key rows of this architecture for interleaved rotation.
    permuted: bool,
    /// Projections of this architecture are ternary, whatever type they are stored as.
    bitnet: bool,
}

impl<'a> GgufCheckpoint<'a> {
    /// Reads the header of `bytes`.
    pub(crate) fn open(file: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let gguf = Gguf::parse(file, bytes)?;
        let architecture = gguf.text("general.architecture")?.unwrap_or("");
        if !ARCHITECTURES.contains(&architecture) {
            let message = format!("is {architecture:?}, supported are {}", ARCHITECTURES.join(", "));
            return Err(Error::unsupported(file, "general.architecture", message));
        }
        if gguf.size_or("split.count", Some(1))? > 1 {
            let message = "is above 1: join the parts first, with llama-gguf-split --merge";
            return Err(Error::unsupported(file, "split.count", message));
        }
        let config = config(&gguf, architecture)?;
        config.validate().map_err(|e| Error::malformed(file, architecture, e.to_string()))?;
        let eos = ["eos_token_id", "eot_token_id"].map(|key| gguf.token(&format!("tokenizer.ggml.{key}")));
        let mut eos_token_ids: Vec<u32> = eos.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        eos_token_ids.dedup();
        let settings = Settings {
            config,
            bos_token_id: match gguf.flag("tokenizer.ggml.add_bos_token")? {
                Some(true) => gguf.token("tokenizer.ggml.bos_token_id")?,
                // Where nothing is said, the tokenizer that is built from the file knows the custom of its kind.
                _ => None,
            },
            eos_token_ids,
            tokenizer_json: tokenizer_json(&gguf)?,
            chat_template: gguf.text("tokenizer.chat_template")?.map(str::to_owned),
            name: gguf.text("general.name")?.unwrap_or(architecture).to_owned(),
            norms: match architecture {
                "llama" => &[],
                "qwen3" => QUERY_KEY_NORMS,
                _ => SUB_NORMS,
            },
            projection_norms: false,
        };
        let checkpoint = GgufCheckpoint {
            gguf,
            settings,
            permuted: architecture == "llama",
            bitnet: architecture.starts_with("bitnet"),
        };
        checkpoint.refuse_unknown_tensors()?;
        Ok(checkpoint)
    }

    /// A weight that nobody reads would change what the model says.
    fn refuse_unknown_tensors(&self) -> Result<()> {
        let known = |name: &str| {
            let (name, scale) = match (name.strip_suffix(".weight"), name.strip_suffix(".scale")) {
                (Some(name), _) => (name, false),
                (None, Some(name)) if self.gguf.tensor(&format!("{name}.weight")).is_some() => (name, true),
                _ => return false,
            };
            if ["token_embd", "output"].contains(&name) || (name == "output_norm" && !scale) {
                return true;
            }
            let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            part.is_some_and(|(layer, part)| {
                let layers = self.settings.config.num_hidden_layers;
                // "blk.00" and "blk.+0" are not the names of block 0.
                layer.parse::<usize>().is_ok_and(|n| n < layers && n.to_string() == layer)
                    && (Projection::ALL.iter().any(|p| projection_name(*p) == part)
                        || (!scale && LayerNorm::ALL.iter().any(|n| norm_name(*n) == part)))
            })
        };
        match self.gguf.tensors.iter().find(|tensor| !known(tensor.name)) {
            Some(tensor) => Err(Error::unsupported(self.gguf.file, tensor.name, "is a tensor that Trion does not use")),
            None => Ok(()),
        }
    }

    /// The format and the bytes of a tensor of this shape.
    fn data(&self, tensor: &TensorInfo<'a>, shape: &[usize]) -> Result<(Kind, &'a [u8])> {
        let malformed = |message| Error::malformed(self.gguf.file, tensor.name, message);
        if tensor.shape != shape {
            return Err(malformed(format!("has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        let count = shape.iter().product::<usize>();
        let kind = Kind::new(tensor.kind, count, tensor.room.len())
            .map_err(|message| Error::unsupported(self.gguf.file, tensor.name, message))?;
        let (weights, bytes) = kind.block();
        let cols = shape.last().copied().unwrap_or(0);
        if !cols.is_multiple_of(weights) {
            return Err(malformed(format!("has {cols} columns, expected a multiple of {weights}")));
        }
        let expected = (count / weights).saturating_mul(bytes).saturating_add(kind.tail());
        let found = tensor.room.len();
        if tensor.kind == 42 && found >= expected.saturating_add(self.gguf.alignment) {
            let sizes = [64, 128].map(|block| count / block * (block / 4 + 2));
            return Err(malformed(format!(
                "takes {found} bytes up to the next tensor, expected {} (blocks of 64) or {} (blocks of 128), rounded up \
                 to a multiple of {}",
                sizes[0], sizes[1], self.gguf.alignment
            )));
        }
        let data = tensor.room.get(..expected);
        Ok((kind, data.ok_or_else(|| malformed(format!("has {found} bytes, expected {expected}")))?))
    }

    /// The factor in an optional tensor beside a matrix.
    fn extra_scale(&self, name: &str) -> Result<Option<f32>> {
        let Some(tensor) = self.gguf.tensor(&format!("{name}.scale")) else { return Ok(None) };
        let (kind, bytes) = self.data(tensor, &[1])?;
        match kind {
            Kind::Float(dtype) => Ok(Some(float_at(dtype, bytes, 0))),
            _ => Err(Error::malformed(self.gguf.file, tensor.name, "has a packed type, expected one float")),
        }
    }

    /// Trits of a packed matrix, in stored order.
    fn trits(&self, tensor: &TensorInfo<'a>, kind: Kind, bytes: &'a [u8]) -> Result<SourceMatrix<'_>> {
        let file = self.gguf.file;
        let name = tensor.name;
        let (weights, block_bytes) = kind.block();
        let cols = tensor.shape[1];
        let (blocks, tail) = bytes.split_at(bytes.len() - kind.tail());
        let scale = if kind == Kind::I2S {
            TritScale::Multiply(float_at(FloatType::F32, tail, 0))
        } else {
            block_scales(kind, blocks).map_err(|message| Error::malformed(file, name, message))?
        };
        let row_bytes = cols / weights * block_bytes;
        let read = move |row: usize, out: &mut [i8]| {
            let blocks = blocks[row * row_bytes..][..row_bytes].chunks_exact(block_bytes);
            for (b, (block, out)) in blocks.zip(out.chunks_mut(weights)).enumerate() {
                kind.trits(block, out).map_err(|bad| {
                    let col = b * weights + bad.col;
                    Error::malformed(file, name, format!("row {row}, column {col} holds code 3, expected 0, 1 or 2"))
                })?;
            }
            Ok(())
        };
        Ok(SourceMatrix::Trits { scale, rows: Box::new(read) })
    }

    /// Multiplies the optional tensor `.scale` in.
    fn scaled<'m>(&self, tensor: &TensorInfo<'a>, matrix: SourceMatrix<'m>) -> Result<SourceMatrix<'m>> {
        let (file, name) = (self.gguf.file, tensor.name);
        let matrix = match (matrix, self.extra_scale(name.trim_end_matches(".weight"))?) {
            (matrix, None) => matrix,
            (SourceMatrix::Trits { scale: TritScale::Multiply(scale), rows }, Some(extra)) => {
                SourceMatrix::Trits { scale: TritScale::Multiply(scale * extra), rows }
            }
            _ => {
                let message = "has a tensor .scale beside it, which is supported for trits with one scale only";
                return Err(Error::unsupported(file, name, message));
            }
        };
        match matrix {
            SourceMatrix::Trits { scale: TritScale::Multiply(scale), .. } if !scale.is_finite() => {
                Err(Error::malformed(file, name, format!("has the scale {scale}, expected a finite number")))
            }
            matrix => Ok(matrix),
        }
    }
}

/// A float matrix in stored order: trits where it holds only -d, 0 and +d, by projection if `bitnet`, or by group.
fn floats_or_trits(dtype: FloatType, bytes: Cow<'_, [u8]>, [rows, cols]: [usize; 2], bitnet: bool) -> SourceMatrix<'_> {
    // Converters write ternary models as floats too.
    if bitnet && let Some(magnitude) = one_magnitude(dtype, &bytes, rows * cols) {
        let read = move |row: usize, out: &mut [i8]| {
            for (col, out) in out.iter_mut().enumerate() {
                let weight = float_at(dtype, &bytes, row * cols + col);
                *out = i8::from(weight > 0.0) - i8::from(weight < 0.0);
            }
            Ok(())
        };
        return SourceMatrix::Trits { scale: TritScale::Multiply(magnitude), rows: Box::new(read) };
    }
    if let Cow::Borrowed(bytes) = bytes
        && let Some(grouped) = grouped_trits(dtype, bytes, rows, cols)
    {
        return grouped;
    }
    SourceMatrix::Float { dtype, bytes }
}

/// The only magnitude among the first `count` weights but zeros, if it is finite; 0 if all are zeros.
fn one_magnitude(dtype: FloatType, bytes: &[u8], count: usize) -> Option<f32> {
    let mut magnitudes = (0..count).map(|i| float_at(dtype, bytes, i).abs()).filter(|magnitude| *magnitude != 0.0);
    let first = magnitudes.next().unwrap_or(0.0);
    (first.is_finite() && magnitudes.all(|magnitude| magnitude == first)).then_some(first)
}

/// The rows of a query or key projection `[rows, cols]` in the order of Hugging Face, from the order of llama.cpp.
fn unpermuted(matrix: SourceMatrix<'_>, rows: usize, head_dim: usize) -> SourceMatrix<'_> {
    match matrix {
        SourceMatrix::Trits { scale, rows: read } => {
            let scale = match scale {
                TritScale::Groups { size, scales } => {
                    TritScale::Groups { size, scales: unpermuted_rows(&scales, rows, head_dim) }
                }
                scale => scale,
            };
            let read = move |row: usize, out: &mut [i8]| read(stored_row(row, head_dim), out);
            SourceMatrix::Trits { scale, rows: Box::new(read) }
        }
        SourceMatrix::Float { dtype, bytes } => {
            SourceMatrix::Float { dtype, bytes: Cow::Owned(unpermuted_rows(&bytes, rows, head_dim)) }
        }
    }
}

fn unpermuted_rows<T: Copy>(stored: &[T], rows: usize, head_dim: usize) -> Vec<T> {
    let width = stored.len() / rows;
    let mut out = Vec::with_capacity(stored.len());
    for row in 0..rows {
        out.extend_from_slice(&stored[stored_row(row, head_dim) * width..][..width]);
    }
    out
}

/// The row in which llama.cpp stores row `row` of a query or key projection: the halves of a head lie interleaved.
fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// One scale, if all blocks but those of zeros have the same; otherwise all of them.
fn block_scales(kind: Kind, blocks: &[u8]) -> std::result::Result<TritScale, String> {
    let (weights, block_bytes) = kind.block();
    let mut scales = Vec::with_capacity(blocks.len() / block_bytes);
    let mut only = None;
    let mut same = true;
    let mut trits = vec![0; weights];
    for (b, block) in blocks.chunks_exact(block_bytes).enumerate() {
        let bits = kind.scale(block);
        let scale = f16_to_f32(bits);
        if !scale.is_finite() || scale < 0.0 {
            return Err(format!("has the scale {scale} in block {b}, expected a finite number of at least 0"));
        }
        // A code that is no trit is reported with its place when the row is read.
        let zeros = kind.trits(block, &mut trits).is_ok() && trits.iter().all(|trit| *trit == 0);
        if !zeros {
            same &= *only.get_or_insert(bits) == bits;
        }
        scales.push(bits);
    }
    Ok(if same {
        TritScale::Multiply(f16_to_f32(only.unwrap_or(0)))
    } else {
        TritScale::Groups { size: weights, scales }
    })
}

impl Checkpoint for GgufCheckpoint<'_> {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn matrix(&self, id: MatrixId) -> Result<Option<SourceMatrix<'_>>> {
        let config = &self.settings.config;
        let table = [config.vocab_size, config.hidden_size];
        let (name, shape) = match id {
            MatrixId::Embedding => ("token_embd.weight".to_owned(), table),
            MatrixId::Head => ("output.weight".to_owned(), table),
            MatrixId::Layer(n, p) => (format!("blk.{n}.{}.weight", projection_name(p)), p.shape(config)),
        };
        let Some(tensor) = self.gguf.tensor(&name) else { return Ok(None) };
        let (kind, bytes) = self.data(tensor, &shape)?;
        if let Some(scale) = kind.bad_float_scale(bytes) {
            let message = format!("has the scale {scale} in a block, expected a finite number");
            return Err(Error::malformed(self.gguf.file, name, message));
        }
        let matrix = match kind.floats(bytes) {
            None => self.trits(tensor, kind, bytes)?,
            Some((dtype, floats)) => {
                let bitnet = self.bitnet && matches!(id, MatrixId::Layer(..));
                floats_or_trits(dtype, floats, shape, bitnet)
            }
        };
        let matrix = self.scaled(tensor, matrix)?;
        Ok(Some(match id {
            MatrixId::Layer(_, Projection::Query | Projection::Key) if self.permuted => {
                unpermuted(matrix, shape[0], config.head_dim)
            }
            _ => matrix,
        }))
    }

    fn vector(&self, id: VectorId) -> Result<Option<Vec<f32>>> {
        let config = &self.settings.config;
        let (name, length) = match id {
            VectorId::FinalNorm => ("output_norm.weight".to_owned(), config.hidden_size),
            VectorId::Layer(n, norm) => (format!("blk.{n}.{}.weight", norm_name(norm)), norm.length(config)),
            VectorId::Projection(..) => return Ok(None),
        };
        let Some(tensor) = self.gguf.tensor(&name) else { return Ok(None) };
        match self.data(tensor, &[length])? {
            (Kind::Float(dtype), bytes) => Ok(Some((0..length).map(|i| float_at(dtype, bytes, i)).collect())),
            _ => Err(Error::malformed(self.gguf.file, name, "has a packed type, expected floats")),
        }
    }
}

fn projection_name(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    }
}

fn norm_name(norm: LayerNorm) -> &'static str {
    match norm {
        LayerNorm::Attention => "attn_norm",
        LayerNorm::AttentionSub => "attn_sub_norm",
        LayerNorm::Query => "attn_q_norm",
        LayerNorm::Key => "attn_k_norm",
        LayerNorm::Mlp => "ffn_norm",
        LayerNorm::MlpSub => "ffn_sub_norm",
    }
}

fn config(gguf: &Gguf<'_>, architecture: &str) -> Result<Config> {
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str, default| gguf.size_or(&key(name), default);
    let hidden_size = size("embedding_length", None)?;
    let heads = size("attention.head_count", None)?;
    let per_head = hidden_size.checked_div(heads).unwrap_or(0);
    let head_dim = size("attention.key_length", Some(size("rope.dimension_count", Some(per_head))?))?;
    // A file that does not say how much of a head rotates means all of it, and values as wide as keys.
    for name in ["rope.dimension_count", "attention.value_length"] {
        let found = size(name, Some(head_dim))?;
        if found != head_dim {
            let message = format!("is {found}, but keys have {head_dim} dimensions; only equal numbers are supported");
            return Err(Error::unsupported(gguf.file, key(name), message));
        }
    }
    let scaling = gguf.text(&key("rope.scaling.type"))?.unwrap_or("linear");
    let factor = gguf.float_or(&key("rope.scaling.factor"), gguf.float_or(&key("rope.scale_linear"), 1.0)?)?;
    // llama.cpp's converter of BitNet writes a linear scaling by 1; a factor of 0 means that there is none.
    if scaling != "none" && !(scaling == "linear" && (factor == 1.0 || factor == 0.0)) {
        let message = format!("is {scaling:?} by {factor}; only unscaled positions are supported");
        return Err(Error::unsupported(gguf.file, key("rope.scaling.type"), message));
    }
    let rows = gguf.tensor("token_embd.weight").map(|tensor| tensor.shape[0]);
    // bitnet.cpp's own architectures imply relu2; upstream's says what it wants, and means SiLU by silence.
    let implied = if architecture.starts_with("bitnet-") { "relu2" } else { "silu" };
    let hidden_act = match gguf.text(&key("hidden_activation"))?.unwrap_or(implied) {
        "relu2" | "relu_sqr" => Activation::Relu2,
        "silu" => Activation::Silu,
        other => {
            let message = format!("is {other:?}, supported are relu2 and silu");
            return Err(Error::unsupported(gguf.file, key("hidden_activation"), message));
        }
    };
    Ok(Config {
        vocab_size: size("vocab_size", rows)?,
        hidden_size,
        intermediate_size: size("feed_forward_length", None)?,
        num_hidden_layers: size("block_count", None)?,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv", Some(heads))?,
        head_dim,
        max_position_embeddings: size("context_length", Some(2048))?,
        rms_norm_eps: gguf.float_or(&key("attention.layer_norm_rms_epsilon"), 1e-5)?,
        projection_norm_eps: 1e-6,
        rope_theta: gguf.float_or(&key("rope.freq_base"), 10_000.0)?,
        hidden_act,
        activation_group: 0,
    })
}

/// The vocabulary as a `tokenizer.json`.
#[cfg(feature = "text")]
fn tokenizer_json(gguf: &Gguf<'_>) -> Result<Option<String>> {
    use super::reader::Value;
    use crate::tokenizer::{GgufVocabulary, tokenizer_json_from_gguf};

    fn text(value: Value<'_>) -> Option<&str> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }

    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = gguf.list(&key("tokens"), "a list of texts", text)?;
    let model = gguf.text(&key("model"))?.unwrap_or("none");
    if tokens.is_empty() || model == "none" {
        return Ok(None);
    }
    let vocabulary = GgufVocabulary {
        model,
        pre: gguf.text(&key("pre"))?,
        tokens,
        scores: gguf.list(&key("scores"), "a list of floats", |value| match value {
            Value::Float(score) => Some(score as f32),
            _ => None,
        })?,
        token_types: gguf.list(&key("token_type"), "a list of integers", |value| match value {
            Value::Integer(kind) => i32::try_from(kind).ok(),
            _ => None,
        })?,
        merges: gguf.list(&key("merges"), "a list of texts", text)?,
        bos: gguf.token(&key("bos_token_id"))?,
        eos: gguf.token(&key("eos_token_id"))?,
        unk: gguf.token(&key("unknown_token_id"))?,
        add_bos: gguf.flag(&key("add_bos_token"))?,
        add_eos: gguf.flag(&key("add_eos_token"))?,
        add_space_prefix: gguf.flag(&key("add_space_prefix"))?,
    };
    let json = tokenizer_json_from_gguf(&vocabulary);
    json.map(Some).map_err(|e| Error::malformed(gguf.file, key("tokens"), e.to_string()))
}

#[cfg(not(feature = "text"))]
#[allow(clippy::unnecessary_wraps)] // as its twin with the feature
fn tokenizer_json(_: &Gguf<'_>) -> Result<Option<String>> {
    Ok(None)
}
