//! Every shape and constant of a model, validated once; sizes of everything else derive from it.

use crate::Error;

/// Upper bound of every dimension: large enough for any model, small enough that products of two fit in 64 bits
/// and that a ternary dot product fits in 32 (2^24 inputs of magnitude 128).
const MAX_DIMENSION: usize = 1 << 24;

/// What stands between the gate and the up projection of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)^2`, of the `BitNet` b1.58 2B4T family.
    Relu2,
    /// `x / (1 + exp(-x))`, of the Llama family.
    Silu,
}

/// Shapes and constants of a decoder-only ternary transformer, in the names of Hugging Face's `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the gate/up and down projections.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of the block norms, sub-norms and the final norm.
    pub rms_norm_eps: f32,
    /// Epsilon of the norms inside projections (`use_rms_norm`), where a checkpoint has them.
    pub projection_norm_eps: f32,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f32,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// The smallest group of columns that has a scale of its own in any matrix; 0 where scales are per tensor.
    pub activation_group: usize,
}

impl Config {
    /// Width of all query heads: `num_attention_heads * head_dim`.
    pub const fn query_size(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.head_dim)
    }

    /// Width of all key (or value) heads: `num_key_value_heads * head_dim`.
    pub const fn key_value_size(&self) -> usize {
        self.num_key_value_heads.saturating_mul(self.head_dim)
    }

    /// Widest input of any projection, in elements.
    pub const fn widest_input(&self) -> usize {
        let mut widest = self.hidden_size;
        if self.query_size() > widest {
            widest = self.query_size();
        }
        if self.intermediate_size > widest {
            widest = self.intermediate_size;
        }
        widest
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that is outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, found) in sizes {
            check(field, found as f64, (1..=MAX_DIMENSION).contains(&found), "1 to 2^24")?;
        }
        let layers = self.num_hidden_layers;
        check("num_hidden_layers", layers as f64, (1..=4096).contains(&layers), "1 to 4096")?;
        let width = self.query_size();
        check("num_attention_heads * head_dim", width as f64, width <= MAX_DIMENSION, "at most 2^24")?;
        check("head_dim", self.head_dim as f64, self.head_dim.is_multiple_of(2), "an even number")?;
        check(
            "num_key_value_heads",
            self.num_key_value_heads as f64,
            self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
            "a divisor of num_attention_heads",
        )?;
        for (field, eps) in [("rms_norm_eps", self.rms_norm_eps), ("projection_norm_eps", self.projection_norm_eps)] {
            check(field, f64::from(eps), (0.0..1.0).contains(&eps), "0 to 1")?;
        }
        let group = self.activation_group;
        check("activation_group", group as f64, group.is_multiple_of(16), "0 or a multiple of 16")?;
        let theta = self.rope_theta;
        check("rope_theta", f64::from(theta), theta.is_finite() && theta >= 1.0, "a finite number of at least 1")
    }
}

fn check(field: &'static str, found: f64, holds: bool, expected: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Config { field, found, expected }) }
}
