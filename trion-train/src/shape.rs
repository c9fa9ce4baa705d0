//! The shape of a model, as `config.json` of Hugging Face's `BitNet` writes it.

use serde_json::{Value, json};
use trion_engine::{Activation, Config};

/// Shapes that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
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
    /// 14.17 million with 4096: that of classics-14m.
    #[value(name = "14m")]
    #[serde(rename = "14m")]
    FourteenM,
    /// 40 million with 4096.
    #[value(name = "40m")]
    #[serde(rename = "40m")]
    FortyM,
}

impl Shape {
    /// The configuration with a vocabulary of so many tokens, for sequences of `positions`.
    pub fn config(self, vocab_size: usize, positions: usize) -> Config {
        let (hidden, layers, heads, kv_heads, wide) = match self {
            Shape::Micro => (128, 4, 4, 2, 320),
            Shape::OneM => (128, 6, 4, 2, 352),
            Shape::FourM => (256, 4, 4, 2, 704),
            Shape::FourteenM => (384, 8, 6, 2, 1024),
            Shape::FortyM => (640, 9, 10, 2, 1728),
        };
        Config {
            vocab_size,
            hidden_size: hidden,
            intermediate_size: wide,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            max_position_embeddings: positions,
            rms_norm_eps: 1e-5,
            projection_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            hidden_act: Activation::Relu2,
            activation_group: 0,
        }
    }
}

/// `config.json` of a checkpoint with float masters, or of one with packed trits.
pub(crate) fn config_json(config: &Config, end: u32, packed: bool) -> Value {
    json!({
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
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": if packed { "offline" } else { "online" },
        },
    })
}

/// The double with the digits that a single needs: 1e-5 stays 1e-5.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
