//! From floats to trits and to bytes: absmean for weights, absmax for activations.

use crate::kernel::{Op, Simd, Vector, padded};
use crate::numeric::{LANES, ROUND};

/// The smallest scale that weights and activations are divided by, as the reference clamps it.
pub(crate) const SMALLEST_SCALE: f32 = 1e-5;

/// gamma = max(mean |W|, 1e-5): the scale of a ternary matrix (`BitNet` b1.58, absmean).
///
/// The mean is taken in double precision, element by element in order, and rounded to single precision once.
pub fn absmean_scale(weights: impl Iterator<Item = f32>) -> f32 {
    let (mut sum, mut count) = (0.0_f64, 0_u64);
    for weight in weights {
        sum += f64::from(f32::abs(weight));
        count += 1;
    }
    let mean = if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
    // A NaN stays one, for the caller to see.
    if mean < SMALLEST_SCALE { SMALLEST_SCALE } else { mean }
}

/// clip(round(w / gamma), -1, 1), computed as the reference does: times the rounded reciprocal, half to even.
pub fn absmean_trit(weight: f32, reciprocal_scale: f32) -> i8 {
    // round(v) reaches 1 only above one half, since exactly one half rounds to the even 0.
    let v = weight * reciprocal_scale;
    i8::from(v > 0.5) - i8::from(v < -0.5)
}

/// What turns quantised activations back into floats.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct ActivationScale {
    /// s = 127 / max(max |x|, 1e-5): the factor that was applied.
    pub(crate) scale: f32,
    /// The sum of the quantised values, by which sums of (trit + 1) * q exceed sums of trit * q.
    pub(crate) sum: i32,
}

/// Quantises one row of activations: q = clip(round(x s), -128, 127), s = 127 / max(max |x|, 1e-5), half to even.
///
/// `out` is at least as long as `x`; what lies beyond is set to zero.
pub(crate) struct Quantize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [i8],
}

impl Op for Quantize<'_> {
    type Output = ActivationScale;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> ActivationScale {
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        let rest = padded(rest);
        let mut largest = simd.load(&rest).abs();
        for chunk in chunks {
            // The running value comes second, so that a NaN in x is passed over.
            largest = simd.load(chunk).abs().max(largest);
        }
        let scale = 127.0 / simd.largest(largest).max(SMALLEST_SCALE);

        let (whole, tail) = self.out.split_at_mut(self.out.len().min(chunks.len() * LANES));
        let (whole, _) = whole.as_chunks_mut::<LANES>();
        let mut sum = 0_i32;
        for (chunk, q) in chunks.iter().zip(whole) {
            quantize(simd, scale, chunk, q);
            sum = sum.wrapping_add(q.iter().map(|q| i32::from(*q)).sum());
        }
        let mut q = [0; LANES];
        quantize(simd, scale, &rest, &mut q);
        sum = sum.wrapping_add(q.iter().map(|q| i32::from(*q)).sum());
        tail.fill(0);
        for (to, q) in tail.iter_mut().zip(q) {
            *to = q;
        }
        ActivationScale { scale, sum }
    }
}

/// round(x s) of 32 values. No closure, since the compiler does not give one the features of its kernel.
#[inline(always)]
fn quantize<S: Simd>(simd: S, scale: f32, x: &[f32; LANES], q: &mut [i8; LANES]) {
    let v = simd.load(x).mul(S::V::splat(scale));
    let v = v.max(S::V::splat(-128.0)).min(S::V::splat(127.0)).add(S::V::splat(ROUND));
    simd.store_rounded(v, q);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    #[test]
    fn activations_round_half_to_even_and_reach_127() {
        // The largest magnitude is 127, so s = 1 and values are rounded as they are.
        let x = [127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.4, 0.0];
        for kernel in Kernel::available() {
            let mut q = [9_i8; 16];
            let scale = kernel.run(Quantize { x: &x, out: &mut q });
            assert_eq!(q, [127, -127, 0, 2, 2, 0, -2, 126, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(scale, ActivationScale { scale: 1.0, sum: 128 });
        }
    }

    #[test]
    fn tiny_and_non_finite_activations_give_the_same_bytes_on_every_kernel() {
        let rows: [&[f32]; 4] =
            [&[1e-9, -1e-9], &[f32::NAN, 1.0, -1.0], &[f32::INFINITY, 1.0], &[f32::NEG_INFINITY, f32::NAN]];
        for x in rows {
            let mut expected = [0; 32];
            let scalar = Kernel::available().next().map(|k| k.run(Quantize { x, out: &mut expected }));
            for kernel in Kernel::available() {
                let mut q = [1; 32];
                let scale = kernel.run(Quantize { x, out: &mut q });
                assert_eq!(q, expected, "{x:?} on {}", kernel.isa().name());
                assert_eq!(Some(scale.sum), scalar.map(|s| s.sum));
            }
        }
    }

    #[test]
    fn weights_follow_absmean() {
        let weights = [0.5_f32, -0.25, 0.0, 1.0];
        let scale = absmean_scale(weights.into_iter());
        assert_eq!(scale, 0.4375);
        assert_eq!(weights.map(|w| absmean_trit(w, 1.0 / scale)), [1, -1, 0, 1]);
        assert_eq!([0.5, 0.500_000_06, -0.5, -0.6].map(|w| absmean_trit(w, 1.0)), [0, 1, 0, -1]);
        assert_eq!(absmean_scale([0.0; 3].into_iter()), 1e-5);
        assert!(absmean_scale([1.0, f32::NAN].into_iter()).is_nan());
    }
}
