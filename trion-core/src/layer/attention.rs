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
        let (query, tail) = self.query.as_chunks::<LANES>();
        let tail = simd.load(&padded(tail));
        let mut largest = f32::NEG_INFINITY;
        for (key, score) in self.keys.chunks_exact(head_dim).zip(&mut *self.scores) {
            let (key, key_tail) = key.as_chunks::<LANES>();
            let mut sum = S::V::splat(0.0);
            for (q, k) in query.iter().zip(key) {
                sum = sum.add(simd.load(q).mul(F::load(simd, k)));
            }
            if !key_tail.is_empty() {
                sum = sum.add(tail.mul(F::load(simd, &padded(key_tail))));
            }
            *score = simd.sum(sum) * scale;
            largest = score.max(largest);
        }
        largest
    }
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
