//! Root mean square normalisation (Zhang and Sennrich 2019).

use crate::kernel::{Op, Simd, Vector, padded};
use crate::numeric::LANES;

/// `x = (x * r) * weight`, r = 1 / sqrt(mean(x^2) + eps), in place; all of one length.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

impl Op for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.x.len() as f32;
        let (chunks, tail) = self.x.as_chunks_mut::<LANES>();
        let (weights, weights_tail) = self.weight.as_chunks::<LANES>();
        let lanes = padded(tail);

        let mut squares = S::V::splat(0.0);
        for chunk in &*chunks {
            let x = simd.load(chunk);
            squares = squares.add(x.mul(x));
        }
        if !tail.is_empty() {
            let x = simd.load(&lanes);
            squares = squares.add(x.mul(x));
        }
        let r = S::V::splat(1.0 / libm::sqrtf(simd.sum(squares) / count + self.eps));

        for (chunk, weight) in chunks.iter_mut().zip(weights) {
            simd.store(simd.load(chunk).mul(r).mul(simd.load(weight)), chunk);
        }
        simd.store_part(simd.load(&lanes).mul(r).mul(simd.load(&padded(weights_tail))), tail);
    }
}
