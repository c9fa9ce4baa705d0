//! Causal attention of one query head at one position (Vaswani et al. 2017), in the contract's order.

use crate::kernel::{Format, Op, Simd, Vector, padded};
use crate::numeric::{ATTENTION_BLOCK, LANES, exp};

/// Chunks of 32 dimensions that are summed together, so that additions do not wait for each other.
const CHUNKS: usize = 4;

/// Scores that a head needs for a context: whole blocks.
pub(crate) const fn scores_len(context: usize) -> usize {
    context.div_ceil(ATTENTION_BLOCK).saturating_mul(ATTENTION_BLOCK)
}

/// softmax(q k^T / `sqrt(head_dim)`) v over the positions of `keys` and `values`.
pub(crate) struct Attention<'a, F: Format> {
    /// The query `[head_dim]`; the result replaces it.
    pub(crate) query: &'a mut [f32],
    /// Keys `[positions, head_dim]`.
    pub(crate) keys: &'a [F::Bits],
    /// Values `[positions, head_dim]`.
    pub(crate) values: &'a [F::Bits],
    /// Scratch of [`scores_len`] floats.
    pub(crate) scores: &'a mut [f32],
}

impl<F: Format> Op for Attention<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let head_dim = self.query.len();
        let positions = self.keys.len().checked_div(head_dim).unwrap_or(0);
        let scale = 1.0 / libm::sqrtf(head_dim as f32);

        let largest = self.score(simd, scale);
        let (blocks, _) = self.scores.as_chunks_mut::<ATTENTION_BLOCK>();
        let blocks = &mut blocks[..positions.div_ceil(ATTENTION_BLOCK)];
        let mut total = 0.0;
        for (b, block) in blocks.iter_mut().enumerate() {
            let mut sum = S::V::splat(0.0);
            for (c, chunk) in block.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                simd.store(exp(simd.load(chunk).sub(S::V::splat(largest))), chunk);
                // Positions that do not exist weigh nothing.
                let exist = positions.saturating_sub(b * ATTENTION_BLOCK + c * LANES);
                chunk.iter_mut().skip(exist).for_each(|weight| *weight = 0.0);
                sum = sum.add(simd.load(chunk));
            }
            total += simd.sum(sum);
        }

        self.query.fill(0.0);
        let block_len = ATTENTION_BLOCK * head_dim;
        for (weights, values) in blocks.iter().zip(self.values.chunks(block_len.max(1))) {
            let mut column = 0;
            while column < head_dim {
                let out = &mut self.query[column..];
                column += if out.len() >= CHUNKS * LANES {
                    weighted_sum::<S, F, CHUNKS>(simd, head_dim, weights, values, column, out)
                } else if out.len() >= 2 * LANES {
                    weighted_sum::<S, F, 2>(simd, head_dim, weights, values, column, out)
                } else if out.len() >= LANES {
                    weighted_sum::<S, F, 1>(simd, head_dim, weights, values, column, out)
                } else {
                    weighted_sum_tail::<S, F>(simd, head_dim, weights, values, column, out)
                };
            }
        }
        for out in &mut *self.query {
            *out /= total;
        }
    }
}

impl<F: Format> Attention<'_, F> {
    /// Writes the scores (q . k) * scale and gives the largest.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, scale: f32) -> f32 {
        let head_dim = self.query.len().max(1);
        let positions = self.keys.len() / head_dim;
        // Four positions share the query's loads and the folds of their sums.
        let mut fours = self.keys.chunks_exact(4 * head_dim);
        let (score_fours, _) = self.scores.as_chunks_mut::<4>();
        for (keys, scores) in fours.by_ref().zip(score_fours) {
            let (low, high) = keys.split_at(2 * head_dim);
            let ((a, b), (c, d)) = (low.split_at(head_dim), high.split_at(head_dim));
            *scores = simd.sums(dots::<S, F, 4>(simd, self.query, [a, b, c, d]));
        }
        let rest = self.scores.iter_mut().skip(positions / 4 * 4);
        for (key, score) in fours.remainder().chunks_exact(head_dim).zip(rest) {
            let [sum] = dots::<S, F, 1>(simd, self.query, [key]);
            *score = simd.sum(sum);
        }

        let mut largest = S::V::splat(f32::NEG_INFINITY);
        let (chunks, _) = self.scores.as_chunks_mut::<LANES>();
        for (c, chunk) in chunks[..positions.div_ceil(LANES)].iter_mut().enumerate() {
            chunk.iter_mut().skip(positions - c * LANES).for_each(|score| *score = f32::NEG_INFINITY);
            let scores = simd.load(chunk).mul(S::V::splat(scale));
            simd.store(scores, chunk);
            // The running value comes second, so that a NaN is passed over.
            largest = scores.max(largest);
        }
        simd.largest(largest)
    }
}

/// The products of the query with N keys, added up lane by lane.
#[inline(always)]
fn dots<S: Simd, F: Format, const N: usize>(simd: S, query: &[f32], keys: [&[F::Bits]; N]) -> [S::V; N] {
    let (chunks, tail) = query.as_chunks::<LANES>();
    let mut sums = [S::V::splat(0.0); N];
    for (c, q) in chunks.iter().enumerate() {
        let q = simd.load(q);
        for (sum, key) in sums.iter_mut().zip(keys) {
            if let Some(k) = key.as_chunks::<LANES>().0.get(c) {
                *sum = sum.add(q.mul(F::load(simd, k)));
            }
        }
    }
    if !tail.is_empty() {
        let q = simd.load(&padded(tail));
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum = sum.add(q.mul(F::load(simd, &padded(key.as_chunks::<LANES>().1))));
        }
    }
    sums
}

/// `out += sum over the block of weight * value`, for C chunks of columns that begin at `column`; gives their number.
/// The block's own sum begins at zero and goes by position.
#[inline(always)]
fn weighted_sum<S: Simd, F: Format, const C: usize>(
    simd: S,
    head_dim: usize,
    weights: &[f32; ATTENTION_BLOCK],
    values: &[F::Bits],
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut sums = [S::V::splat(0.0); C];
    for (value, weight) in values.chunks_exact(head_dim).zip(weights) {
        let weight = S::V::splat(*weight);
        let (chunks, _) = value[column..].as_chunks::<LANES>();
        for (sum, chunk) in sums.iter_mut().zip(chunks) {
            *sum = sum.add(weight.mul(F::load(simd, chunk)));
        }
    }
    for (out, sum) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
        simd.store(simd.load(out).add(sum), out);
    }
    C * LANES
}

/// [`weighted_sum`] for the last columns, fewer than 32.
#[inline(always)]
fn weighted_sum_tail<S: Simd, F: Format>(
    simd: S,
    head_dim: usize,
    weights: &[f32; ATTENTION_BLOCK],
    values: &[F::Bits],
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut sum = S::V::splat(0.0);
    for (value, weight) in values.chunks_exact(head_dim).zip(weights) {
        sum = sum.add(S::V::splat(*weight).mul(F::load(simd, &padded(&value[column..]))));
    }
    simd.store_part(simd.load(&padded(out)).add(sum), out);
    LANES
}
