//! The shape of a model, as `config.json` of Hugging Face's `BitNet` writes it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trion_engine::{Activation, Config};

use crate::error::Result;
use crate::files::read_json;

/// A shape by its name, or by its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Architecture {
    /// One that has a name.
    Named(Shape),
    /// Any other.
    Custom(Custom),
}

impl Architecture {
    /// That of a `config.json`.
    ///
    /// # Errors
    /// [`crate::Error`] if the file cannot be read, or lacks a number.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Architecture::Custom(read_json(path)?))
    }

    /// The configuration with a vocabulary of so many tokens, for sequences of `positions`.
    pub fn config(&self, vocab_size: usize, positions: usize) -> Config {
        match self {
            Architecture::Named(shape) => shape.custom(),
            Architecture::Custom(custom) => custom.clone(),
        }
        .config(vocab_size, positions)
    }
}

/// A shape by its numbers: those of a `config.json` that a text does not decide. Others in the file are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Custom {
    /// Numbers that a token is between layers.
    pub hidden_size: usize,
    /// Numbers within an MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// What the gate goes through.
    #[serde(default)]
    pub hidden_act: Gate,
    /// What norms add to the mean square.
    #[serde(default = "norm_eps")]
    pub rms_norm_eps: f32,
    /// The base of rotary embedding.
    #[serde(default = "theta")]
    pub rope_theta: f32,
}

/// An activation function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// The square of what is positive.
    #[default]
    Relu2,
    /// x times its logistic function.
    Silu,
}

fn norm_eps() -> f32 {
    1e-5
}

fn theta() -> f32 {
    10_000.0
}

impl Custom {
    fn config(self, vocab_size: usize, positions: usize) -> Config {
        Config {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            // What is no whole number is refused where the configuration is validated.
            head_dim: self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0),
            max_position_embeddings: positions,
            rms_norm_eps: self.rms_norm_eps,
            projection_norm_eps: 1e-6,
            rope_theta: self.rope_theta,
            hidden_act: match self.hidden_act {
                Gate::Relu2 => Activation::Relu2,
                Gate::Silu => Activation::Silu,
            },
            activation_group: 0,
        }
    }
}

/// Shapes that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// For firmware: 0.8 million parameters with a vocabulary of 1024.
    Micro,
    /// 1.2 million parameters with a vocabulary of 1024.
    #[value(name = "1m")]
    #[serde(rename = "1m")]
    OneM,
    /// 4 million with 4096.
    #[value(name = "4m")]
    #[serde(rename = "4m")]
    FourM,
    /// 14.17 million with 4096: that of the default model.
    #[value(name = "14m")]
    #[serde(rename = "14m")]
    FourteenM,
    /// 40 million with 4096.
    #[value(name = "40m")]
    #[serde(rename = "40m")]
    FortyM,
}

impl Shape {
    fn custom(self) -> Custom {
        let [hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size] = match self {
            Shape::Micro => [128, 4, 4, 2, 320],
            Shape::OneM => [128, 6, 4, 2, 352],
            Shape::FourM => [256, 4, 4, 2, 704],
            Shape::FourteenM => [384, 8, 6, 2, 1024],
            Shape::FortyM => [640, 9, 10, 2, 1728],
        };
        Custom {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            hidden_act: Gate::Relu2,
            rms_norm_eps: norm_eps(),
            rope_theta: theta(),
        }
    }
}

/// `config.json` of a checkpoint; `quantization_mode` is how its weights become ternary, if they are not so as they stand.
pub(crate) fn config_json(config: &Config, end: u32, quantization_mode: Option<&str>) -> Value {
    let mut json = json!({
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": config.rope_theta,
        "hidden_act": match config.hidden_act { Activation::Relu2 => "relu2", Activation::Silu => "silu" },
        "tie_word_embeddings": true,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    });
    if let Some(mode) = quantization_mode {
        json["quantization_config"] =
            json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode });
    }
    json
}

/// The double with the digits that a single needs: 1e-5 stays 1e-5.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
