//! One piece of GPU memory for everything that a session keeps there, as the core has it in one buffer.

use trion_core::numeric::ATTENTION_BLOCK;
use trion_core::{Config, Logits, SessionOptions};

use crate::kernels::Slot;
use crate::layout::aligned;
use crate::plan::quantized_stride;
use crate::top_k;

/// Blocks of threads of the prompt's attention for each multiprocessor: what fits there at once.
const PROMPT_BLOCKS: usize = 4;
/// Queries that such a block takes together; `QUERIES` in `kernels/attention.cu`.
const QUERIES: usize = 8;
/// Blocks of threads that look for the largest logit.
pub(crate) const ARGMAX_BLOCKS: usize = 128;
/// Bytes of an activation scale: a float and an integer.
const SCALE_BYTES: usize = 8;
/// Positions that a block of threads scores at once; `CHUNK` in `kernels/attention_token.cu`.
const CHUNK: usize = 32;
/// Query heads that such a block takes together; `HEADS` there.
pub(crate) const ATTENTION_HEADS: usize = 4;

/// Bytes of every piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pieces: [usize; PIECES],
    /// Elements of a row of attention scores: the context in whole blocks.
    pub(crate) score_stride: usize,
    /// Blocks of threads that the prompt's attention may use.
    pub(crate) prompt_blocks: usize,
    /// Parts of the heads, and pieces of the positions, that a token's attention is divided into.
    pub(crate) score_grid: [usize; 2],
    /// Activation scales of a token.
    pub(crate) spans: usize,
}

const PIECES: usize = 17;

/// The pieces, in order; the index into [`Sizes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Piece {
    /// The session, or every session of a batch: [`Slot`]s.
    Slots,
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
    /// Scores of one token of each session `[sessions, heads, score_stride]`, or of each block of the prompt's attention
    /// `[blocks, 8, score_stride]`.
    Scores,
    /// The largest score of each piece of positions `[sessions, heads, score_grid[1]]`.
    Largest,
    /// `[rows, vocab_size]`.
    Logits,
    /// The best token of each of [`ARGMAX_BLOCKS`] `[sessions, ARGMAX_BLOCKS]`.
    Best,
    /// The largest logits, on their way to being found.
    TopK,
    /// Keys and values `[layers, heads, 2, context, head_dim]`, as the core's.
    Cache,
}

impl Sizes {
    /// Of one session.
    pub(crate) fn session(config: &Config, options: &SessionOptions, multiprocessors: usize) -> Self {
        let (batch, context) = (options.max_batch, options.context);
        let group = config.num_attention_heads / config.num_key_value_heads;
        let work = batch.saturating_mul(group).div_ceil(QUERIES).saturating_mul(config.num_key_value_heads);
        let prompt_blocks = if batch > 1 { work.min(multiprocessors * PROMPT_BLOCKS) } else { 0 };
        let rows = match options.logits {
            Logits::Last => 1,
            Logits::All => batch,
        };
        let mut sizes = Sizes::scratch(config, [batch, rows, 1], context, multiprocessors);
        sizes.prompt_blocks = prompt_blocks;
        let scores = floats(&[config.num_attention_heads.max(prompt_blocks * QUERIES), sizes.score_stride]);
        let cache = floats(&[config.num_hidden_layers, config.key_value_size(), 2, context]) / 4;
        for (piece, bytes) in [
            (Piece::Tokens, floats(&[context])),
            (Piece::Rotation, floats(&[context, config.head_dim])),
            (Piece::Scores, scores),
            (Piece::TopK, top_k::scratch_bytes(config.vocab_size)),
            (Piece::Cache, cache.saturating_mul(options.cache.bytes())),
        ] {
            sizes.pieces[piece as usize] = bytes;
        }
        sizes
    }

    /// Of so many sessions together, one token of each, whose contexts are at most so long.
    pub(crate) fn together(config: &Config, sessions: usize, context: usize, multiprocessors: usize) -> Self {
        Sizes::scratch(config, [sessions; 3], context, multiprocessors)
    }

    /// What a batch of tokens goes through, whosever they are; how many have logits, and how many sessions take one step
    /// at once.
    fn scratch(config: &Config, [batch, rows, sessions]: [usize; 3], context: usize, multiprocessors: usize) -> Self {
        let spans = match config.activation_group {
            0 => 1,
            group => config.widest_input().div_ceil(group),
        };
        let group = config.num_attention_heads / config.num_key_value_heads;
        let parts = group.div_ceil(ATTENTION_HEADS) * config.num_key_value_heads;
        // Twice as many blocks of threads as there are multiprocessors.
        let most = (2 * multiprocessors).div_ceil(parts * sessions);
        let mut sizes = Sizes {
            pieces: [0; PIECES],
            score_stride: context.div_ceil(ATTENTION_BLOCK).saturating_mul(ATTENTION_BLOCK),
            prompt_blocks: 0,
            score_grid: [parts, context.div_ceil(CHUNK).min(most)],
            spans,
        };
        for (piece, bytes) in [
            (Piece::Hidden, floats(&[batch, config.hidden_size])),
            (Piece::Input, floats(&[batch, config.widest_input()])),
            (Piece::Quantized, batch.saturating_mul(quantized_stride(config))),
            (Piece::Scales, batch.saturating_mul(spans).saturating_mul(SCALE_BYTES)),
            (Piece::Query, floats(&[batch, config.query_size()])),
            (Piece::Key, floats(&[batch, config.key_value_size()])),
            (Piece::Value, floats(&[batch, config.key_value_size()])),
            (Piece::Intermediate, floats(&[batch, config.intermediate_size])),
            (Piece::Logits, floats(&[rows, config.vocab_size])),
            (Piece::Slots, sessions * size_of::<Slot>()),
            (Piece::Scores, floats(&[sessions, config.num_attention_heads, sizes.score_stride])),
            (Piece::Largest, floats(&[sessions, config.num_attention_heads, sizes.score_grid[1]])),
            (Piece::Best, sessions * ARGMAX_BLOCKS * 8),
        ] {
            sizes.pieces[piece as usize] = bytes;
        }
        sizes
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

/// Bytes of so many floats.
fn floats(counts: &[usize]) -> usize {
    counts.iter().fold(4, |bytes, count| bytes.saturating_mul(*count))
}
