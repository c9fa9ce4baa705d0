//! A model: borrowed weights by layer, checked once. It owns no bytes.

use crate::Error;
use crate::config::Config;
use crate::int6::GROUP_COLS;
use crate::matrix::{FloatData, Linear, Matrix};
use crate::packing::BLOCK_BYTES;
use crate::ternary::Rescale;

/// One of the seven matrices of a block, in the names of Hugging Face's checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
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
    pub const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// Its name within a layer.
    pub const fn name(self) -> &'static str {
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
    pub const fn shape(self, config: &Config) -> [usize; 2] {
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
pub enum LayerNorm {
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
    pub const ALL: [LayerNorm; 6] = [
        LayerNorm::Attention,
        LayerNorm::Query,
        LayerNorm::Key,
        LayerNorm::AttentionSub,
        LayerNorm::Mlp,
        LayerNorm::MlpSub,
    ];

    /// Its name within a layer.
    pub const fn name(self) -> &'static str {
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
    pub const fn length(self, config: &Config) -> usize {
        match self {
            LayerNorm::Attention | LayerNorm::Mlp => config.hidden_size,
            LayerNorm::AttentionSub => config.query_size(),
            LayerNorm::Query | LayerNorm::Key => config.head_dim,
            LayerNorm::MlpSub => config.intermediate_size,
        }
    }

    /// Whether every model has it.
    pub const fn required(self) -> bool {
        matches!(self, LayerNorm::Attention | LayerNorm::Mlp)
    }
}

/// The weights of one block.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'w> {
    /// Indexed by [`Projection`].
    pub projections: [Linear<'w>; Projection::ALL.len()],
    /// Indexed by [`LayerNorm`].
    pub norms: [Option<&'w [f32]>; LayerNorm::ALL.len()],
}

impl<'w> Layer<'w> {
    /// A projection.
    pub const fn projection(&self, projection: Projection) -> &Linear<'w> {
        &self.projections[projection as usize]
    }

    /// A norm.
    pub const fn norm(&self, norm: LayerNorm) -> Option<&'w [f32]> {
        self.norms[norm as usize]
    }
}

/// A decoder-only transformer. Immutable: any number of sessions on any threads share one.
#[derive(Debug, Clone, Copy)]
pub struct Model<'w> {
    config: Config,
    embedding: Matrix<'w>,
    layers: &'w [Layer<'w>],
    norm: &'w [f32],
    head: Matrix<'w>,
    is_tied: bool,
    fingerprint: u64,
}

impl<'w> Model<'w> {
    /// Puts a model together.
    ///
    /// `embedding` and `head` are `[vocab_size, hidden_size]`; without a head the embedding serves (tied). `norm`
    /// `[hidden_size]` stands before the head.
    ///
    /// # Errors
    /// When the configuration or a shape is wrong, a norm is missing, or a weight of a norm is not finite.
    pub fn new(
        config: Config,
        embedding: Matrix<'w>,
        layers: &'w [Layer<'w>],
        norm: &'w [f32],
        head: Option<Matrix<'w>>,
    ) -> Result<Self, Error> {
        config.validate()?;
        let found = layers.len();
        if found != config.num_hidden_layers {
            return Err(Error::Length { tensor: "layers", found, expected: config.num_hidden_layers });
        }
        let table = [config.vocab_size, config.hidden_size];
        check_matrix(&config, "embed_tokens", None, &embedding, table)?;
        let (is_tied, head) = (head.is_none(), head.unwrap_or(embedding));
        check_matrix(&config, "lm_head", None, &head, table)?;
        check_vector("norm", None, norm, config.hidden_size)?;
        for (n, layer) in layers.iter().enumerate() {
            for projection in Projection::ALL {
                let linear = layer.projection(projection);
                let shape = projection.shape(&config);
                check_matrix(&config, projection.name(), Some(n), &linear.matrix, shape)?;
                if let Some(norm) = linear.norm {
                    check_vector(projection.name(), Some(n), norm, shape[1])?;
                }
            }
            for norm in LayerNorm::ALL {
                match layer.norm(norm) {
                    Some(weights) => check_vector(norm.name(), Some(n), weights, norm.length(&config))?,
                    None if norm.required() => check_vector(norm.name(), Some(n), &[], norm.length(&config))?,
                    None => {}
                }
            }
        }
        let mut model = Model { config, embedding, layers, norm, head, is_tied, fingerprint: 0 };
        model.fingerprint = model.compute_fingerprint();
        Ok(model)
    }

    /// Shapes and constants.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The token embedding `[vocab_size, hidden_size]`.
    pub const fn embedding(&self) -> &Matrix<'w> {
        &self.embedding
    }

    /// The output head `[vocab_size, hidden_size]`; the embedding where it is tied.
    pub const fn head(&self) -> &Matrix<'w> {
        &self.head
    }

    /// Whether the head is the embedding.
    pub const fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// The norm before the head `[hidden_size]`.
    pub const fn norm(&self) -> &'w [f32] {
        self.norm
    }

    /// The blocks.
    pub const fn layers(&self) -> &'w [Layer<'w>] {
        self.layers
    }

    /// A number that tells models apart: FNV-1a of the configuration, the scales and a sample of every tensor. It
    /// guards saved states against mistakes, not against an adversary.
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn compute_fingerprint(&self) -> u64 {
        let c = &self.config;
        let mut hash = Fnv::new();
        for size in [
            c.vocab_size,
            c.hidden_size,
            c.intermediate_size,
            c.num_hidden_layers,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.activation_group,
            c.hidden_act as usize,
        ] {
            hash.bytes(&(size as u64).to_le_bytes());
        }
        hash.floats(&[c.rms_norm_eps, c.projection_norm_eps, c.rope_theta]);
        hash.matrix(&self.embedding);
        hash.matrix(&self.head);
        hash.floats(self.norm);
        for layer in self.layers {
            for linear in &layer.projections {
                hash.matrix(&linear.matrix);
                hash.floats(linear.norm.unwrap_or(&[]));
            }
            for norm in layer.norms {
                hash.floats(norm.unwrap_or(&[]));
            }
        }
        hash.0
    }
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Fnv {
    /// Bytes of each tensor that count.
    const SAMPLE: usize = 256;

    fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn floats(&mut self, values: &[f32]) {
        for value in values.iter().take(Self::SAMPLE / 4) {
            self.bytes(&value.to_bits().to_le_bytes());
        }
    }

    fn halves(&mut self, values: &[u16]) {
        for value in values.iter().take(Self::SAMPLE / 2) {
            self.bytes(&value.to_le_bytes());
        }
    }

    fn matrix(&mut self, matrix: &Matrix<'_>) {
        match matrix {
            Matrix::Ternary(m) => {
                // However the trits are packed, a state of the same model is the same.
                for (n, block) in m.blocks_of_twos().enumerate().take(Self::SAMPLE.div_ceil(BLOCK_BYTES)) {
                    self.bytes(&block[..BLOCK_BYTES.min(Self::SAMPLE - n * BLOCK_BYTES)]);
                }
                match m.rescale() {
                    Rescale::Multiply(scale) => self.floats(&[0.0, scale]),
                    Rescale::Divide(scale) => self.floats(&[1.0, scale]),
                    Rescale::Groups { scales, .. } => self.halves(scales),
                }
            }
            Matrix::Int6(m) => self.floats(m.row_scales()),
            Matrix::Float(m) => match m.data() {
                FloatData::F32(values) => self.floats(values),
                FloatData::F16(values) | FloatData::Bf16(values) => self.halves(values),
                FloatData::I8 { scales, .. } => self.floats(scales),
            },
        }
    }
}

fn check_matrix(
    config: &Config,
    tensor: &'static str,
    layer: Option<usize>,
    matrix: &Matrix<'_>,
    expected: [usize; 2],
) -> Result<(), Error> {
    let found = matrix.shape();
    if found != expected {
        return Err(Error::Shape { tensor, layer, found, expected });
    }
    // Sessions keep an activation scale for each `activation_group` columns, so no matrix may have finer groups.
    let smallest = match matrix {
        Matrix::Ternary(m) => match m.rescale() {
            Rescale::Groups { size, .. } => size,
            _ => return Ok(()),
        },
        Matrix::Int6(_) => GROUP_COLS,
        Matrix::Float(_) => return Ok(()),
    };
    if config.activation_group == 0 || smallest < config.activation_group {
        let found = config.activation_group as f64;
        return Err(Error::Config {
            field: "activation_group",
            found,
            expected: "16 up to the smallest group of a matrix",
        });
    }
    Ok(())
}

fn check_vector(tensor: &'static str, layer: Option<usize>, values: &[f32], length: usize) -> Result<(), Error> {
    if values.len() != length {
        return Err(Error::Shape { tensor, layer, found: [1, values.len()], expected: [1, length] });
    }
    if values.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(Error::NotFinite { tensor, layer }) }
}
