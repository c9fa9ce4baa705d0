//! Which parameters a model has, in which order, under which names: those of Hugging Face's `BitNet`.

use trion_core::{Config, LayerNorm, Projection};

/// What a parameter is, which decides how it starts and which optimiser moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The embedding, which is the head too.
    Embedding,
    /// A projection of a block: ternary in the forward pass.
    Matrix(Projection),
    /// The weights of a norm.
    Norm,
}

/// A parameter: a matrix, or a vector that is kept as a matrix of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in a checkpoint.
    pub name: String,
    /// `[rows, cols]`; a vector has one row.
    pub shape: [usize; 2],
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// Its shape in a checkpoint: a vector has one dimension there.
    pub fn stored_shape(&self) -> Vec<usize> {
        if self.kind == Kind::Norm { vec![self.shape[1]] } else { self.shape.to_vec() }
    }

    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Parameters of a block.
pub const BLOCK: usize = 11;

/// All parameters of a model of this shape: the embedding, [`BLOCK`] of each layer as data flows through it, the final norm.
pub fn layout(config: &Config) -> Vec<Entry> {
    let norm = |norm: LayerNorm| (norm.name(), [1, norm.length(config)], Kind::Norm);
    let matrix = |projection: Projection| (projection.name(), projection.shape(config), Kind::Matrix(projection));
    let block: [_; BLOCK] = [
        norm(LayerNorm::Attention),
        matrix(Projection::Query),
        matrix(Projection::Key),
        matrix(Projection::Value),
        norm(LayerNorm::AttentionSub),
        matrix(Projection::Output),
        norm(LayerNorm::Mlp),
        matrix(Projection::Gate),
        matrix(Projection::Up),
        norm(LayerNorm::MlpSub),
        matrix(Projection::Down),
    ];
    let entry = |name: &str, shape, kind| Entry { name: format!("model.{name}.weight"), shape, kind };
    let mut entries = vec![entry("embed_tokens", [config.vocab_size, config.hidden_size], Kind::Embedding)];
    for layer in 0..config.num_hidden_layers {
        entries.extend(block.map(|(name, shape, kind)| entry(&format!("layers.{layer}.{name}"), shape, kind)));
    }
    entries.push(entry("norm", [1, config.hidden_size], Kind::Norm));
    entries
}
