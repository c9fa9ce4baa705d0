//! What a model and a session take of a GPU's memory, before anything is allocated.

use trion_core::{Config, Matrix, Model, SessionOptions};

use crate::kernels::KernelSet;
use crate::layout::{FIVES_COLS, PIECE_COLS, Packing, aligned, matrix_bytes};
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
    /// The plan of a model with one session, on a GPU of so many multiprocessors (5 on a GTX 1050), with these kernels:
    /// those of [`KernelSet::Sm61`] take the most for weights.
    pub fn new(model: &Model<'_>, options: &SessionOptions, multiprocessors: usize, set: KernelSet) -> Self {
        let sizes = Sizes::session(model.config(), options, multiprocessors);
        let embedding = embedding_bytes(model);
        let cache = sizes.cache_bytes();
        MemoryPlan {
            weights: weights_bytes(model, set) - embedding,
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

fn matrix_total(matrix: &Matrix<'_>, packing: Packing) -> usize {
    matrix_bytes(matrix, packing).into_iter().map(aligned).fold(0, usize::saturating_add)
}

fn embedding_bytes(model: &Model<'_>) -> usize {
    let head = if model.is_tied() { 0 } else { matrix_total(model.head(), Packing::Twos) };
    matrix_total(model.embedding(), Packing::Twos).saturating_add(head)
}

/// Bytes of a whole model, each piece rounded up.
pub(crate) fn weights_bytes(model: &Model<'_>, set: KernelSet) -> usize {
    let vector = |values: &[f32]| aligned(4 * values.len());
    let mut total = embedding_bytes(model).saturating_add(vector(model.norm()));
    for layer in model.layers() {
        for (linear, packing) in layer.projections.iter().zip(Packing::of_layer(set, layer)) {
            let norm = linear.norm.map_or(0, vector);
            total = total.saturating_add(matrix_total(&linear.matrix, packing)).saturating_add(norm);
        }
        total = layer.norms.iter().flatten().fold(total, |total, norm| total.saturating_add(vector(norm)));
    }
    total
}

/// Elements from row to row of the quantised activations: whole pieces of columns, however the weights are stored.
pub(crate) fn quantized_stride(config: &Config) -> usize {
    let widest = config.widest_input();
    widest.next_multiple_of(PIECE_COLS).max(widest.next_multiple_of(FIVES_COLS))
}
