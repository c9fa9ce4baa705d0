//! Causal attention of query heads that share keys and values, at one position (Vaswani et al. 2017; Ainslie et al.
//! 2023), in the contract's order.

use crate::kernel::{Format, Op, Simd, Vector, padded, prefetch_lines};
use crate::numeric::{ATTENTION_BLOCK, LANES, exp};

/// Registers that sums are kept in while others are loaded: enough that additions do not wait for each other.
const SUM_REGISTERS: usize = 16;

/// Scores that a head needs for a context: whole blocks.
pub(crate) const fn scores_len(context: usize) -> usize {
    context.div_ceil(ATTENTION_BLOCK).saturating_mul(ATTENTION_BLOCK)
}

/// softmax(q k^T / `sqrt(head_dim)`) v over the positions of `keys` and `values`, for each query.
pub(crate) struct Attention<'a, F: Format> {
    /// Queries `[heads, head_dim]`; the results replace them.
    pub(crate) queries: &'a mut [f32],
    /// Columns of a head.
    pub(crate) head_dim: usize,
    /// Keys `[positions, head_dim]`.
    pub(crate) keys: &'a [F::Bits],
    /// Values `[positions, head_dim]`.
    pub(crate) values: &'a [F::Bits],
    /// Scratch `[heads, scores_len(context)]`.
    pub(crate) scores: &'a mut [f32],
}

impl<F: Format> Op for Attention<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attention { mut queries, head_dim, keys, values, mut scores } = self;
        let Some(stride) = queries.len().checked_div(head_dim).and_then(|heads| scores.len().checked_div(heads)) else {
            return;
        };
        let cache = Shared { head_dim, keys, values };
        // What is read and converted serves several heads, as many as there are registers for.
        while queries.len() >= head_dim {
            let heads = queries.len() / head_dim;
            let together = match heads {
                4.. if S::LANE_REGISTERS <= 2 => 4,
                2.. if S::LANE_REGISTERS <= 4 => 2,
                _ => 1,
            };
            let (some, others) = queries.split_at_mut(together * head_dim);
            let (some_scores, other_scores) = scores.split_at_mut(together * stride);
            // Constants, so that what is never used is not compiled.
            match together {
                4 if const { S::LANE_REGISTERS <= 2 } => attend::<S, F, 4, 1>(simd, cache, some, some_scores),
                2 if const { S::LANE_REGISTERS <= 4 } => attend::<S, F, 2, 2>(simd, cache, some, some_scores),
                _ => attend::<S, F, 1, 4>(simd, cache, some, some_scores),
            }
            (queries, scores) = (others, other_scores);
        }
    }
}

/// What heads share.
#[derive(Clone, Copy)]
struct Shared<'a, F: Format> {
    head_dim: usize,
    keys: &'a [F::Bits],
    values: &'a [F::Bits],
}

/// Attention of H heads; scores are made for P positions at a time, H * P = 4.
#[inline(always)]
fn attend<S: Simd, F: Format, const H: usize, const P: usize>(
    simd: S,
    cache: Shared<'_, F>,
    queries: &mut [f32],
    scores: &mut [f32],
) {
    let positions = cache.keys.len() / cache.head_dim;
    let stride = scores.len() / H;
    let mut heads = scores.chunks_exact_mut(stride.max(1));
    let mut scores: [&mut [f32]; H] = core::array::from_fn(|_| heads.next().unwrap_or_default());
    make_scores::<S, F, H, P>(simd, cache, queries, &mut scores);
    let mut totals = [0.0; H];
    for (total, scores) in totals.iter_mut().zip(&mut scores) {
        *total = make_weights(simd, cache.head_dim, positions, scores);
    }

    queries.fill(0.0);
    let block_len = ATTENTION_BLOCK * cache.head_dim;
    for (b, values) in cache.values.chunks(block_len.max(1)).enumerate() {
        let weights = scores
            .each_ref()
            .map(|scores| scores.as_chunks::<ATTENTION_BLOCK>().0.get(b).unwrap_or(&[0.0; ATTENTION_BLOCK]));
        let mut column = 0;
        while column < cache.head_dim {
            let most = const { SUM_REGISTERS / (H * S::LANE_REGISTERS) };
            column += match ((cache.head_dim - column) / LANES).min(most) {
                4.. if const { SUM_REGISTERS / (H * S::LANE_REGISTERS) >= 4 } => {
                    weighted_sums::<S, F, H, 4>(simd, cache.head_dim, weights, values, column, queries)
                }
                2.. => weighted_sums::<S, F, H, 2>(simd, cache.head_dim, weights, values, column, queries),
                _ if cache.head_dim - column >= LANES => {
                    weighted_sums::<S, F, H, 1>(simd, cache.head_dim, weights, values, column, queries)
                }
                _ => weighted_sums_tail::<S, F, H>(simd, cache.head_dim, weights, values, column, queries),
            };
        }
    }
    for (query, total) in queries.chunks_exact_mut(cache.head_dim).zip(totals) {
        query.iter_mut().for_each(|out| *out /= total);
    }
}

/// Writes the scores q . k of each head.
#[inline(always)]
fn make_scores<S: Simd, F: Format, const H: usize, const P: usize>(
    simd: S,
    cache: Shared<'_, F>,
    queries: &[f32],
    scores: &mut [&mut [f32]; H],
) {
    let head_dim = cache.head_dim;
    let queries: [&[f32]; H] = core::array::from_fn(|h| &queries[h * head_dim..][..head_dim]);
    let mut groups = cache.keys.chunks_exact(P * head_dim);
    let mut position = 0;
    // P positions of H heads make four sums, which are folded together.
    for keys in groups.by_ref() {
        let keys = core::array::from_fn(|p| &keys[p * head_dim..][..head_dim]);
        let sums = dots::<S, F, H, P>(simd, queries, keys);
        let mut four = [S::V::splat(0.0); 4];
        four.iter_mut().zip(sums.as_flattened()).for_each(|(to, sum)| *to = *sum);
        let four = simd.sums(four);
        for (scores, sums) in scores.iter_mut().zip(four.as_chunks::<P>().0) {
            scores[position..][..P].copy_from_slice(sums);
        }
        position += P;
    }
    for key in groups.remainder().chunks_exact(head_dim) {
        for (scores, [sum]) in scores.iter_mut().zip(dots::<S, F, H, 1>(simd, queries, [key])) {
            scores[position] = simd.sum(sum);
        }
        position += 1;
    }
}

/// The products of H queries with P keys, added up lane by lane.
#[inline(always)]
fn dots<S: Simd, F: Format, const H: usize, const P: usize>(
    simd: S,
    queries: [&[f32]; H],
    keys: [&[F::Bits]; P],
) -> [[S::V; P]; H] {
    let mut sums = [[S::V::splat(0.0); P]; H];
    let head_dim = queries[0].len();
    for column in (0..head_dim / LANES * LANES).step_by(LANES) {
        let mut chunks = [S::V::splat(0.0); P];
        for (chunk, key) in chunks.iter_mut().zip(keys) {
            let key = chunk_at(key, column);
            prefetch_lines(simd, key);
            *chunk = F::load(simd, key);
        }
        for (sums, query) in sums.iter_mut().zip(queries) {
            let query = simd.load(chunk_at(query, column));
            for (sum, key) in sums.iter_mut().zip(chunks) {
                *sum = sum.add(query.mul(key));
            }
        }
    }
    if !head_dim.is_multiple_of(LANES) {
        let tail = head_dim / LANES * LANES;
        for (sums, query) in sums.iter_mut().zip(queries) {
            let query = simd.load(&padded(&query[tail..]));
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = sum.add(query.mul(F::load(simd, &padded(&key[tail..]))));
            }
        }
    }
    sums
}

/// The 32 numbers from `column` on; there are as many.
#[inline(always)]
fn chunk_at<T>(row: &[T], column: usize) -> &[T; LANES] {
    let (chunks, _) = row[column..].as_chunks::<LANES>();
    &chunks[0]
}

/// Turns the scores of a head into weights, exp(scaled score - largest), zero where there is no position; gives their
/// sum.
#[inline(always)]
fn make_weights<S: Simd>(simd: S, head_dim: usize, positions: usize, scores: &mut [f32]) -> f32 {
    let scale = S::V::splat(1.0 / libm::sqrtf(head_dim as f32));
    let mut largest = S::V::splat(f32::NEG_INFINITY);
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    for (c, chunk) in chunks[..positions.div_ceil(LANES)].iter_mut().enumerate() {
        chunk.iter_mut().skip(positions - c * LANES).for_each(|score| *score = f32::NEG_INFINITY);
        let scores = simd.load(chunk).mul(scale);
        simd.store(scores, chunk);
        // The running value comes second, so that a NaN is passed over.
        largest = scores.max(largest);
    }
    let largest = S::V::splat(simd.largest(largest));

    let (blocks, _) = scores.as_chunks_mut::<ATTENTION_BLOCK>();
    let mut total = 0.0;
    for (b, block) in blocks[..positions.div_ceil(ATTENTION_BLOCK)].iter_mut().enumerate() {
        let mut sum = S::V::splat(0.0);
        for (c, chunk) in block.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            simd.store(exp(simd.load(chunk).sub(largest)), chunk);
            let exist = positions.saturating_sub(b * ATTENTION_BLOCK + c * LANES);
            chunk.iter_mut().skip(exist).for_each(|weight| *weight = 0.0);
            sum = sum.add(simd.load(chunk));
        }
        total += simd.sum(sum);
    }
    total
}

/// `out[head] += sum over the block of weight[head] * value`, for C chunks of columns that begin at `column`; gives
/// their columns. The block's own sum begins at zero and goes by position.
#[inline(always)]
fn weighted_sums<S: Simd, F: Format, const H: usize, const C: usize>(
    simd: S,
    head_dim: usize,
    weights: [&[f32; ATTENTION_BLOCK]; H],
    values: &[F::Bits],
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [[S::V::splat(0.0); C]; H];
    for (p, value) in values.chunks_exact(head_dim).enumerate() {
        for c in 0..C {
            let value = chunk_at(value, column + c * LANES);
            prefetch_lines(simd, value);
            let value = F::load(simd, value);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                sums[c] = sums[c].add(S::V::splat(weights[p]).mul(value));
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(head_dim).zip(sums) {
        for (out, sum) in out[column..].as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            simd.store(simd.load(out).add(sum), out);
        }
    }
    C * LANES
}

/// [`weighted_sums`] for the last columns, fewer than 32.
#[inline(always)]
fn weighted_sums_tail<S: Simd, F: Format, const H: usize>(
    simd: S,
    head_dim: usize,
    weights: [&[f32; ATTENTION_BLOCK]; H],
    values: &[F::Bits],
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [S::V::splat(0.0); H];
    for (p, value) in values.chunks_exact(head_dim).enumerate() {
        let value = F::load(simd, &padded(&value[column..]));
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = sum.add(S::V::splat(weights[p]).mul(value));
        }
    }
    for (out, sum) in out.chunks_exact_mut(head_dim).zip(sums) {
        let out = &mut out[column..];
        simd.store_part(simd.load(&padded(out)).add(sum), out);
    }
    LANES
}
