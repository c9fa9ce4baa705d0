//! What a model and a session take of a GPU's memory, before anything is allocated.

use trion_core::{Config, Matrix, Model, SessionOptions};

use crate::layout::{aligned, matrix_bytes};
use crate::memory::Sizes;

/// Bytes of GPU memory, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The blocks' matrices and all norms.
    pub weights: usize,
    /// The embedding, and the head where it is another matrix.
    pub embedding: usize,
    /// Keys and values of a session.
    pub cache: usize,
    /// Everything else of a session: activations, scores, logits.
    pub scratch: usize,
}

impl MemoryPlan {
    /// The plan of a model with one session, on a GPU of so many multiprocessors (5 on a GTX 1050).
    pub fn new(model: &Model<'_>, options: &SessionOptions, multiprocessors: usize) -> Self {
        let sizes = Sizes::session(model.config(), options, multiprocessors);
        let embedding = embedding_bytes(model);
        let cache = sizes.cache_bytes();
        MemoryPlan {
            weights: weights_bytes(model) - embedding,
            embedding,
            cache,
            scratch: sizes.total().saturating_sub(cache),
        }
    }

    /// All of it. The driver takes some hundred MB besides.
    pub const fn total(&self) -> usize {
        self.weights.saturating_add(self.embedding).saturating_add(self.cache).saturating_add(self.scratch)
    }
}

fn matrix_total(matrix: &Matrix<'_>) -> usize {
    matrix_bytes(matrix).into_iter().map(aligned).fold(0, usize::saturating_add)
}

fn embedding_bytes(model: &Model<'_>) -> usize {
    let head = if model.is_tied() { 0 } else { matrix_total(model.head()) };
    matrix_total(model.embedding()).saturating_add(head)
}

/// Bytes of a whole model, each piece rounded up.
pub(crate) fn weights_bytes(model: &Model<'_>) -> usize {
    let vector = |values: &[f32]| aligned(4 * values.len());
    let mut total = embedding_bytes(model).saturating_add(vector(model.norm()));
    for layer in model.layers() {
        for linear in &layer.projections {
            let norm = linear.norm.map_or(0, vector);
            total = total.saturating_add(matrix_total(&linear.matrix)).saturating_add(norm);
        }
        total = layer.norms.iter().flatten().fold(total, |total, norm| total.saturating_add(vector(norm)));
    }
    total
}

/// Elements from row to row of the quantised activations: whole pieces of 256 columns.
pub(crate) const fn quantized_stride(config: &Config) -> usize {
    config.widest_input().div_ceil(256) * 256
}
