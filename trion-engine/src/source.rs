//! What every checkpoint reader offers to the packer: a configuration, matrices row by row, and vectors.

use std::borrow::Cow;

use trion_core::Config;

use crate::error::Result;

/// One of the seven matrices of a block, in the names of Hugging Face's checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    /// `self_attn.q_proj` `[query_size, hidden_size]`.
    Query,
    /// `self_attn.k_proj` `[key_value_size, hidden_size]`.
    Key,
    /// `self_attn.v_proj` `[key_value_size, hidden_size]`.
    Value,
    /// `self_attn.o_proj` `[hidden_size, query_size]`.
    Output,
    /// `mlp.gate_proj` `[intermediate_size, hidden_size]`.
    Gate,
    /// `mlp.up_proj` `[intermediate_size, hidden_size]`.
    Up,
    /// `mlp.down_proj` `[hidden_size, intermediate_size]`.
    Down,
}

impl Projection {
    /// All of them, in the order that data flows through a block.
    pub(crate) const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// Its name within a layer.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Projection::Query => "self_attn.q_proj",
            Projection::Key => "self_attn.k_proj",
            Projection::Value => "self_attn.v_proj",
            Projection::Output => "self_attn.o_proj",
            Projection::Gate => "mlp.gate_proj",
            Projection::Up => "mlp.up_proj",
            Projection::Down => "mlp.down_proj",
        }
    }

    /// `[rows, cols]` in a model of this configuration.
    pub(crate) const fn shape(self, config: &Config) -> [usize; 2] {
        match self {
            Projection::Query => [config.query_size(), config.hidden_size],
            Projection::Key | Projection::Value => [config.key_value_size(), config.hidden_size],
            Projection::Output => [config.hidden_size, config.query_size()],
            Projection::Gate | Projection::Up => [config.intermediate_size, config.hidden_size],
            Projection::Down => [config.hidden_size, config.intermediate_size],
        }
    }
}

/// One of the norms of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerNorm {
    /// `input_layernorm` `[hidden_size]`.
    Attention,
    /// `self_attn.attn_sub_norm` `[query_size]`, optional.
    AttentionSub,
    /// `self_attn.q_norm` `[head_dim]`, optional.
    Query,
    /// `self_attn.k_norm` `[head_dim]`, optional.
    Key,
    /// `post_attention_layernorm` `[hidden_size]`.
    Mlp,
    /// `mlp.ffn_sub_norm` `[intermediate_size]`, optional.
    MlpSub,
}

impl LayerNorm {
    /// All of them, in the order that data flows through a block.
    pub(crate) const ALL: [LayerNorm; 6] = [
        LayerNorm::Attention,
        LayerNorm::Query,
        LayerNorm::Key,
        LayerNorm::AttentionSub,
        LayerNorm::Mlp,
        LayerNorm::MlpSub,
    ];

    /// Its name within a layer.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            LayerNorm::Attention => "input_layernorm",
            LayerNorm::AttentionSub => "self_attn.attn_sub_norm",
            LayerNorm::Query => "self_attn.q_norm",
            LayerNorm::Key => "self_attn.k_norm",
            LayerNorm::Mlp => "post_attention_layernorm",
            LayerNorm::MlpSub => "mlp.ffn_sub_norm",
        }
    }

    /// Its length in a model of this configuration.
    pub(crate) const fn length(self, config: &Config) -> usize {
        match self {
            LayerNorm::Attention | LayerNorm::Mlp => config.hidden_size,
            LayerNorm::AttentionSub => config.query_size(),
            LayerNorm::Query | LayerNorm::Key => config.head_dim,
            LayerNorm::MlpSub => config.intermediate_size,
        }
    }

    /// Whether every model has it.
    pub(crate) const fn required(self) -> bool {
        matches!(self, LayerNorm::Attention | LayerNorm::Mlp)
    }
}

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
    /// `y = (acc / s) * scale`, with s the activation's scale: AutoBitLinear, GGUF.
    Multiply(f32),
    /// `y = acc / (scale * s)`: BitLinear.
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
}

/// A readable checkpoint. Shapes are checked by the reader against the configuration before data is handed out.
pub(crate) trait Checkpoint {
    /// Everything that is not a weight.
    fn settings(&self) -> &Settings;

    /// A matrix; `None` if the checkpoint does not have it.
    fn matrix(&self, id: MatrixId) -> Result<Option<SourceMatrix<'_>>>;

    /// A vector in single precision; `None` if the checkpoint does not have it.
    fn vector(&self, id: VectorId) -> Result<Option<Vec<f32>>>;
}
