//! Names of the tensors in an exported graph: those of the model's modules, a slash, and what the tensor is.
//!
//! A projection `model.layers.3.mlp.gate_proj` has the initializers `….weight` and `….weight_scale`, and computes
//! `…/quantized`, `…/scale`, `…/accumulators` and `…/output`. [`quantized_by`] tells which projection quantises for
//! another.

use trion_core::{Layer, LayerNorm, Projection};

/// Logits `[batch_size, sequence_length, vocab_size]`.
pub const LOGITS: &str = "logits";
/// Rows of the embedding `[batch_size, sequence_length, hidden_size]`.
pub const EMBEDDING: &str = "model.embed_tokens";
/// The norm before the head.
pub const NORM: &str = "model.norm";
/// The output head.
pub const HEAD: &str = "lm_head";

/// A block: `model.layers.3`. Its output is the residual stream behind it.
pub fn layer(layer: usize) -> String {
    format!("model.layers.{layer}")
}

/// A projection of a block: `model.layers.3.mlp.gate_proj`.
pub fn projection(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}", projection.name())
}

/// A norm of a block: `model.layers.3.input_layernorm`.
pub fn norm(layer: usize, norm: LayerNorm) -> String {
    format!("model.layers.{layer}.{}", norm.name())
}

/// Keys or values of a block that come in: `past_key_values.3.key`.
pub fn past(layer: usize, what: &str) -> String {
    format!("past_key_values.{layer}.{what}")
}

/// Keys or values of a block that go out: `present.3.key`.
pub fn present(layer: usize, what: &str) -> String {
    format!("present.{layer}.{what}")
}

/// Activations as integers. `uint8` with zero point 128, or `float` without one where a graph has float products.
pub fn quantized(module: &str) -> String {
    format!("{module}/quantized")
}

/// s, by which activations were multiplied before rounding.
pub fn scale(module: &str) -> String {
    format!("{module}/scale")
}

/// Sums of trits times quantised activations. `int32`, or `float` where a graph has float products.
pub fn accumulators(module: &str) -> String {
    format!("{module}/accumulators")
}

/// What a module gives on; the head gives [`LOGITS`].
pub fn output(module: &str) -> String {
    if module == HEAD { LOGITS.to_owned() } else { format!("{module}/output") }
}

/// The projection whose quantised activations `projection` reads: an earlier one that has the same input and quantises
/// it over the same columns, or itself.
pub fn quantized_by(layer: &Layer<'_>, projection: Projection) -> Projection {
    let first = match projection {
        Projection::Key | Projection::Value => Projection::Query,
        Projection::Up => Projection::Gate,
        _ => return projection,
    };
    let (own, other) = (layer.projection(projection), layer.projection(first));
    let same =
        own.norm.is_none() && other.norm.is_none() && own.matrix.activation_span() == other.matrix.activation_span();
    if same { first } else { projection }
}
