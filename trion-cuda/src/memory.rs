//! One piece of GPU memory for everything that a session keeps there, as the core has it in one buffer.

use trion_core::numeric::ATTENTION_BLOCK;
use trion_core::{Config, Logits, SessionOptions};

use crate::layout::aligned;
use crate::plan::quantized_stride;

/// Blocks of threads of the prompt's attention for each multiprocessor: what fits there at once.
const PROMPT_BLOCKS: usize = 4;
/// Queries that such a block takes together; `QUERIES` in `kernels/attention.cu`.
const QUERIES: usize = 8;
/// Blocks of threads that look for the largest logit.
pub(crate) const ARGMAX_BLOCKS: usize = 128;
/// Bytes of an activation scale: a float and an integer.
const SCALE_BYTES: usize = 8;

/// Bytes of every piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pieces: [usize; PIECES],
    /// Elements of a row of attention scores: the context in whole blocks.
    pub(crate) score_stride: usize,
    /// Blocks of threads that the prompt's attention may use.
    pub(crate) prompt_blocks: usize,
    /// Activation scales of a token.
    pub(crate) spans: usize,
}

const PIECES: usize = 17;

/// The pieces, in order; the index into [`Sizes`] and [`Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Piece {
    /// The position of the batch's first token: `i32`.
    Position,
    /// Every token so far `[context]`, `u32`.
    Tokens,
    /// The residual stream `[batch, hidden_size]`.
    Hidden,
    /// Inputs of a projection after its norms `[batch, widest_input]`.
    Input,
    /// The same, quantised `[batch, quantized_stride]`, `i8`.
    Quantized,
    /// Their scales `[batch, spans]`.
    Scales,
    /// Queries, then what attention makes of them `[batch, query_size]`.
    Query,
    /// Keys `[batch, key_value_size]`.
    Key,
    /// Values `[batch, key_value_size]`.
    Value,
    /// The gate, then its product with the up projection `[batch, intermediate_size]`.
    Intermediate,
    /// Cosines and sines of every position `[context, 2, head_dim / 2]`.
    Rotation,
    /// Scores of one token `[heads, score_stride]`, or of each block of the prompt's attention `[blocks, 8,
    /// score_stride]`.
    Scores,
    /// The largest score of each block of positions of one token `[heads, score_stride / 64]`.
    Largest,
    /// Sums of weights `[heads, score_stride / 64]`, then weighted sums of values `[heads, score_stride / 64,
    /// head_dim]`.
    Parts,
    /// `[rows, vocab_size]`.
    Logits,
    /// The best token of each of [`ARGMAX_BLOCKS`].
    Best,
    /// Keys and values `[layers, heads, 2, context, head_dim]`, as the core's.
    Cache,
}

impl Sizes {
    pub(crate) fn new(config: &Config, options: &SessionOptions, multiprocessors: usize) -> Self {
        let (batch, context, heads) = (options.max_batch, options.context, config.num_attention_heads);
        let spans = match config.activation_group {
            0 => 1,
            group => config.widest_input().div_ceil(group),
        };
        let score_stride = context.div_ceil(ATTENTION_BLOCK).saturating_mul(ATTENTION_BLOCK);
        let blocks = score_stride / ATTENTION_BLOCK;
        let group = heads / config.num_key_value_heads;
        let pieces = batch.saturating_mul(group).div_ceil(QUERIES).saturating_mul(config.num_key_value_heads);
        let prompt_blocks = if batch > 1 { pieces.min(multiprocessors * PROMPT_BLOCKS) } else { 0 };
        let rows = match options.logits {
            Logits::Last => 1,
            Logits::All => batch,
        };
        let floats = |counts: &[usize]| counts.iter().fold(4_usize, |bytes, count| bytes.saturating_mul(*count));
        let cache_numbers = floats(&[config.num_hidden_layers, config.key_value_size(), 2, context]) / 4;
        let pieces = [
            4,
            floats(&[context]),
            floats(&[batch, config.hidden_size]),
            floats(&[batch, config.widest_input()]),
            batch.saturating_mul(quantized_stride(config)),
            batch.saturating_mul(spans).saturating_mul(SCALE_BYTES),
            floats(&[batch, config.query_size()]),
            floats(&[batch, config.key_value_size()]),
            floats(&[batch, config.key_value_size()]),
            floats(&[batch, config.intermediate_size]),
            floats(&[context, config.head_dim]),
            floats(&[heads.max(prompt_blocks * QUERIES), score_stride]),
            floats(&[heads, blocks]),
            floats(&[heads, blocks, config.head_dim + 1]),
            floats(&[rows, config.vocab_size]),
            ARGMAX_BLOCKS * 8,
            cache_numbers.saturating_mul(options.cache.bytes()),
        ];
        Sizes { pieces, score_stride, prompt_blocks, spans }
    }

    /// Bytes of the cache with the padding behind it.
    pub(crate) fn cache_bytes(&self) -> usize {
        aligned(self.pieces[Piece::Cache as usize])
    }

    /// Bytes of all pieces.
    pub(crate) fn total(&self) -> usize {
        self.pieces.iter().fold(0, |total, bytes| total.saturating_add(aligned(*bytes)))
    }

    /// Where a piece begins.
    pub(crate) fn offset(&self, piece: Piece) -> usize {
        self.pieces[..piece as usize].iter().map(|bytes| aligned(*bytes)).sum()
    }
}
