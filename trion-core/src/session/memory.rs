//! One buffer of the caller's, cut into everything that a session keeps.

use bytemuck::Pod;

use super::{Logits, SessionOptions};
use crate::Error;
use crate::config::Config;
use crate::kernel::{F16, F32};
use crate::kv_cache::{Cache, CacheType, KvCache, cache_len};
use crate::layer::scores_len;
use crate::quant::ActivationScale;

/// Every piece begins at a multiple of this: a cache line, and the widest register.
const ALIGNMENT: usize = 64;

/// The pieces, and their sizes in elements.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    hidden: usize,
    input: usize,
    quantized: usize,
    scales: usize,
    query: usize,
    key_value: usize,
    intermediate: usize,
    scores: usize,
    rotation: usize,
    logits: usize,
    cache: usize,
}

/// Elements from row to row of the quantised activations.
pub(super) const fn quantized_stride(config: &Config) -> usize {
    config.widest_input().div_ceil(ALIGNMENT) * ALIGNMENT
}

/// Activation scales of a row: one, or one for each of the smallest groups of columns.
pub(super) const fn spans(config: &Config) -> usize {
    if config.activation_group == 0 { 1 } else { config.widest_input().div_ceil(config.activation_group) }
}

impl Sizes {
    const fn new(config: &Config, options: &SessionOptions) -> Self {
        let batch = options.max_batch;
        let logits_rows = match options.logits {
            Logits::Last => 1,
            Logits::All => batch,
        };
        Sizes {
            tokens: options.context,
            hidden: batch.saturating_mul(config.hidden_size),
            input: batch.saturating_mul(config.widest_input()),
            quantized: batch.saturating_mul(quantized_stride(config)),
            scales: batch.saturating_mul(spans(config)),
            query: batch.saturating_mul(config.query_size()),
            key_value: batch.saturating_mul(config.key_value_size()),
            intermediate: batch.saturating_mul(config.intermediate_size),
            scores: config.num_attention_heads.saturating_mul(scores_len(options.context)),
            rotation: batch.saturating_mul(config.head_dim),
            logits: logits_rows.saturating_mul(config.vocab_size),
            cache: cache_len(config, options.context),
        }
    }

    /// Bytes of all pieces, each rounded up to the alignment, and of the first piece's own alignment.
    const fn bytes(&self, options: &SessionOptions) -> usize {
        let pieces = [
            self.tokens.saturating_mul(4),
            self.hidden.saturating_mul(4),
            self.input.saturating_mul(4),
            self.quantized,
            self.scales.saturating_mul(size_of::<ActivationScale>()),
            self.query.saturating_mul(4),
            self.key_value.saturating_mul(8),
            self.intermediate.saturating_mul(4),
            self.scores.saturating_mul(4),
            self.rotation.saturating_mul(4),
            self.logits.saturating_mul(4),
            self.cache.saturating_mul(options.cache.bytes()),
        ];
        let mut total = ALIGNMENT;
        let mut i = 0;
        while i < pieces.len() {
            total = total.saturating_add(pieces[i].div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT));
            i += 1;
        }
        total
    }
}

/// Bytes of the buffer of a session; `usize::MAX` if they cannot be counted.
pub(super) const fn bytes(config: &Config, options: &SessionOptions) -> usize {
    Sizes::new(config, options).bytes(options)
}

/// The pieces of a session's buffer.
pub(super) struct Memory<'b> {
    /// Every token so far `[context]`.
    pub(super) tokens: &'b mut [u32],
    /// The residual stream `[batch, hidden_size]`.
    pub(super) hidden: &'b mut [f32],
    /// Inputs of a projection after its norms `[batch, widest_input]`.
    pub(super) input: &'b mut [f32],
    /// The same, quantised `[batch, quantized_stride]`.
    pub(super) quantized: &'b mut [i8],
    /// Their scales `[batch, spans]`.
    pub(super) scales: &'b mut [ActivationScale],
    /// Queries, then what attention makes of them `[batch, query_size]`.
    pub(super) query: &'b mut [f32],
    /// Keys `[batch, key_value_size]`.
    pub(super) key: &'b mut [f32],
    /// Values `[batch, key_value_size]`.
    pub(super) value: &'b mut [f32],
    /// The gate, then its product with the up projection `[batch, intermediate_size]`.
    pub(super) intermediate: &'b mut [f32],
    /// Attention scores of one position of each head `[num_attention_heads, whole blocks of context]`.
    pub(super) scores: &'b mut [f32],
    /// Cosines and sines of the batch's positions `[batch, 2, head_dim / 2]`.
    pub(super) rotation: &'b mut [f32],
    /// `[rows, vocab_size]`.
    pub(super) logits: &'b mut [f32],
    /// Keys and values of every position.
    pub(super) cache: KvCache<'b>,
}

impl<'b> Memory<'b> {
    /// Cuts `buffer` up. What it holds is never read before it is written.
    pub(super) fn new(config: &Config, options: &SessionOptions, buffer: &'b mut [u8]) -> Result<Self, Error> {
        let sizes = Sizes::new(config, options);
        let (found, expected) = (buffer.len(), sizes.bytes(options));
        if found < expected {
            return Err(Error::BufferTooSmall { found, expected });
        }
        let skip = buffer.as_ptr().align_offset(ALIGNMENT);
        let mut rest = buffer.get_mut(skip..).ok_or(Error::BufferTooSmall { found, expected })?;
        let rest = &mut rest;
        let tokens = cut(rest, sizes.tokens)?;
        let hidden = cut(rest, sizes.hidden)?;
        let input = cut(rest, sizes.input)?;
        let quantized = cut(rest, sizes.quantized)?;
        let scales = cut(rest, sizes.scales)?;
        let query = cut(rest, sizes.query)?;
        let (key, value) = cut::<f32>(rest, 2 * sizes.key_value)?.split_at_mut(sizes.key_value);
        let intermediate = cut(rest, sizes.intermediate)?;
        let scores = cut(rest, sizes.scores)?;
        let rotation = cut(rest, sizes.rotation)?;
        let logits = cut(rest, sizes.logits)?;
        let (context, heads, head_dim) = (options.context, config.num_key_value_heads, config.head_dim);
        let cache = match options.cache {
            CacheType::F32 => KvCache::F32(Cache::<F32> { memory: cut(rest, sizes.cache)?, context, heads, head_dim }),
            CacheType::F16 => KvCache::F16(Cache::<F16> { memory: cut(rest, sizes.cache)?, context, heads, head_dim }),
        };
        Ok(Memory {
            tokens,
            hidden,
            input,
            quantized,
            scales,
            query,
            key,
            value,
            intermediate,
            scores,
            rotation,
            logits,
            cache,
        })
    }

    /// The same pieces, borrowed.
    pub(super) fn reborrow(&mut self) -> Memory<'_> {
        Memory {
            tokens: self.tokens,
            hidden: self.hidden,
            input: self.input,
            quantized: self.quantized,
            scales: self.scales,
            query: self.query,
            key: self.key,
            value: self.value,
            intermediate: self.intermediate,
            scores: self.scores,
            rotation: self.rotation,
            logits: self.logits,
            cache: self.cache.reborrow(),
        }
    }
}

/// Takes `count` elements and the padding behind them off the front of `rest`.
fn cut<'b, T: Pod>(rest: &mut &'b mut [u8], count: usize) -> Result<&'b mut [T], Error> {
    let bytes = count.saturating_mul(size_of::<T>());
    let padded = bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
    let whole = core::mem::take(rest);
    let found = whole.len();
    let (piece, behind) =
        whole.split_at_mut_checked(padded.min(found)).ok_or(Error::BufferTooSmall { found, expected: padded })?;
    *rest = behind;
    let piece = piece.get_mut(..bytes).ok_or(Error::BufferTooSmall { found, expected: bytes })?;
    bytemuck::try_cast_slice_mut(piece).map_err(|_| Error::Misaligned { tensor: "buffer", expected: ALIGNMENT })
}
