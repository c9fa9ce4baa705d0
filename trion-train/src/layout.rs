//! Which parameters a model has, in which order, under which names: those of Hugging Face's `BitNet`.

use trion_engine::Config;

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

/// The projections of a block, in the order of a checkpoint's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// `q_proj`.
    Query,
    /// `k_proj`.
    Key,
    /// `v_proj`.
    Value,
    /// `o_proj`.
    Output,
    /// `gate_proj`.
    Gate,
    /// `up_proj`.
    Up,
    /// `down_proj`.
    Down,
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
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Whether it has none, which no valid model does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Parameters of a block.
pub const BLOCK: usize = 11;

/// All parameters of a model of this shape: the embedding, [`BLOCK`] of each layer, the final norm.
pub fn layout(config: &Config) -> Vec<Entry> {
    let Config { vocab_size, hidden_size: hidden, intermediate_size: wide, .. } = *config;
    let (query, key) = (config.query_size(), config.key_value_size());
    let mut entries = vec![Entry {
        name: "model.embed_tokens.weight".to_owned(),
        shape: [vocab_size, hidden],
        kind: Kind::Embedding,
    }];
    for layer in 0..config.num_hidden_layers {
        let block: [(&str, [usize; 2], Kind); BLOCK] = [
            ("input_layernorm", [1, hidden], Kind::Norm),
            ("self_attn.q_proj", [query, hidden], Kind::Matrix(Projection::Query)),
            ("self_attn.k_proj", [key, hidden], Kind::Matrix(Projection::Key)),
            ("self_attn.v_proj", [key, hidden], Kind::Matrix(Projection::Value)),
            ("self_attn.attn_sub_norm", [1, query], Kind::Norm),
            ("self_attn.o_proj", [hidden, query], Kind::Matrix(Projection::Output)),
            ("post_attention_layernorm", [1, hidden], Kind::Norm),
            ("mlp.gate_proj", [wide, hidden], Kind::Matrix(Projection::Gate)),
            ("mlp.up_proj", [wide, hidden], Kind::Matrix(Projection::Up)),
            ("mlp.ffn_sub_norm", [1, wide], Kind::Norm),
            ("mlp.down_proj", [hidden, wide], Kind::Matrix(Projection::Down)),
        ];
        entries.extend(block.into_iter().map(|(name, shape, kind)| Entry {
            name: format!("model.layers.{layer}.{name}.weight"),
            shape,
            kind,
        }));
    }
    entries.push(Entry { name: "model.norm.weight".to_owned(), shape: [1, hidden], kind: Kind::Norm });
    entries
}
