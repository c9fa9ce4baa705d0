//! From floats to trits and to bytes: absmean for weights, absmax for activations.

use crate::kernel::{Op, Simd, Vector, padded};
use crate::numeric::{LANES, ROUND};
use crate::packing::BLOCK_COLS;

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

/// Magnitudes that the largest weight of a block may become.
const INT6_REACHES: [u8; 8] = [28, 29, 30, 31, 32, 33, 34, 35];

/// Rounds a row of weights to six bits each: gives the row scale, and writes a code from -32 to 31 for each weight and a
/// scale from 1 to 255 for each 16 of them, so that `code * scale * row scale` is near the weight.
///
/// `row scale = largest |w| of the row / (28 * 255)`, 1 for a row of zeros. For each block, and for n from 28 to 35, the
/// scale is `largest |w| of the block / (n * row scale)`, rounded half to even, at least 1; of these scales the first with the
/// smallest sum of squared errors is taken, errors and sum in single precision. `codes` is as long as `weights`, `scales`
/// has an element for each 16 of them.
pub fn int6_row(weights: &[f32], codes: &mut [i8], scales: &mut [u8]) -> f32 {
    let largest =
        |weights: &[f32]| weights.iter().fold(0.0, |largest: f32, w| if w.abs() > largest { w.abs() } else { largest });
    let row_scale = match largest(weights) {
        0.0 => 1.0,
        largest => largest / (f32::from(INT6_REACHES[0]) * 255.0),
    };
    // Half to even, as magnitudes are far below 2^22.
    let round = |v: f32| (v + ROUND) - ROUND;
    for ((weights, codes), scale) in weights.chunks(BLOCK_COLS).zip(codes.chunks_mut(BLOCK_COLS)).zip(scales) {
        let (largest, mut least) = (largest(weights), f32::INFINITY);
        for reach in INT6_REACHES {
            let candidate = round(largest / (f32::from(reach) * row_scale)).clamp(1.0, 255.0);
            let step = candidate * row_scale;
            let mut rounded = [0.0; BLOCK_COLS];
            let mut error = 0.0;
            for (rounded, w) in rounded.iter_mut().zip(weights) {
                *rounded = round((w / step).clamp(-32.0, 31.0));
                let difference = w - *rounded * step;
                error += difference * difference;
            }
            if error < least {
                least = error;
                *scale = candidate as u8;
                for (code, rounded) in codes.iter_mut().zip(rounded) {
                    *code = rounded as i8;
                }
            }
        }
    }
    row_scale
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
    fn six_bits_are_near_the_weights_and_zeros_stay_zeros() {
        // Weights of many magnitudes: within half a step of their block, or at the end of the codes.
        let weights: [f32; 50] =
            core::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) * [0.01, 1.0, 0.1, 30.0][i / 16]);
        let (mut codes, mut scales) = ([99; 50], [0; 4]);
        let row_scale = int6_row(&weights, &mut codes, &mut scales);
        for (i, (w, code)) in weights.iter().zip(codes).enumerate() {
            let step = f32::from(scales[i / 16]) * row_scale;
            let error = (w - f32::from(code) * step).abs();
            let end = if *w < 0.0 { -32 } else { 31 };
            assert!(error <= step * 0.5001 || code == end, "{w}: {code} times {step}");
            assert!(error <= step * 4.0, "{w}: {code} times {step}");
        }
        // With one weight in a block the best of eight scales leaves what rounding leaves.
        assert_eq!(int6_row(&[-0.75], &mut codes[..1], &mut scales[..1]), 0.75 / (28.0 * 255.0));
        assert_eq!((codes[0], scales[0]), (-28, 255));
        assert_eq!(int6_row(&[0.0; 20], &mut codes[..20], &mut scales[..2]), 1.0);
        assert_eq!((&codes[..20], &scales[..2]), (&[0; 20][..], &[1, 1][..]));
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
