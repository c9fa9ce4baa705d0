//! The float functions of the numerics contract (docs/numerics.md): every bit they give is defined here.
//!
//! Nothing here depends on the instruction set: products are rounded before they are added, sums have one order, and
//! transcendental functions are polynomials of these same operations.

use crate::kernel::Vector;
pub use crate::layer::rotary_tables;

/// Lanes of every float sum: lane i adds elements i, i + 32, i + 64 ..., then the lanes fold in halves.
pub const LANES: usize = 32;

/// Positions that attention sums before it adds them to the total.
pub const ATTENTION_BLOCK: usize = 64;

/// 1.5 * 2^23: adding it rounds a float of magnitude below 2^22 to an integer, half to even, and leaves that integer
/// in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Chebyshev fit of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, highest power first; relative error of exp 8e-9
/// before rounding.
const EXP: [f32; 5] = [1.392_625e-3, 8.363_233e-3, 4.166_655e-2, 1.666_657_6e-1, 0.5];

/// exp(x) for x clamped to [-87, 88]; a NaN counts as -87. Within 2 units in the last place.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
    let shifted = x.mul(V::splat(LOG2_E)).add(V::splat(ROUND));
    let n = shifted.sub(V::splat(ROUND));
    let r = x.sub(n.mul(V::splat(LN2_HIGH))).sub(n.mul(V::splat(LN2_LOW)));
    let mut q = V::splat(EXP[0]);
    for c in &EXP[1..] {
        q = q.mul(r).add(V::splat(*c));
    }
    let e = q.mul(r.mul(r)).add(r).add(V::splat(1.0));
    e.mul(shifted.power_of_two())
}

/// x / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn silu<V: Vector>(x: V) -> V {
    let e = exp(V::splat(0.0).sub(x));
    x.div(V::splat(1.0).add(e))
}

/// max(0, x)^2; a NaN counts as 0.
#[inline(always)]
pub(crate) fn relu2<V: Vector>(x: V) -> V {
    let positive = x.max(V::splat(0.0));
    positive.mul(positive)
}

/// exp of one number, with the bits that every lane of the vector form gives.
pub fn exp_f32(x: f32) -> f32 {
    exp(x)
}

/// The single-precision value of IEEE half-precision bits.
pub const fn f16_to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = (bits & 0x7fff) as u32;
    if magnitude >= 0x7c00 {
        // Infinity or NaN; a signalling NaN becomes quiet, as the hardware does.
        let quiet = if magnitude > 0x7c00 { 0x0040_0000 } else { 0 };
        return f32::from_bits(sign | 0x7f80_0000 | ((magnitude & 0x3ff) << 13) | quiet);
    }
    // Reading the shifted bits as a float scales the value by 2^-112; the product undoes that and is exact, subnormals
    // included.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(sign | scaled.to_bits())
}

/// IEEE half-precision bits of a single, rounded half to even; too large becomes infinity.
pub const fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | ((magnitude >> 13) & 0x3ff) as u16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and above
    }
    if magnitude < 0x3880_0000 {
        // Below 2^-14: adding 0.5 aligns the value to the subnormal grid of 2^-24 and rounds it.
        let aligned = f32::from_bits(magnitude) + 0.5;
        return sign | (aligned.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

/// The single-precision value of bfloat16 bits.
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// bfloat16 bits of a single, rounded half to even.
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_that_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let ours = f16_to_f32(bits);
            let theirs = half::f16::from_bits(bits).to_f32_const();
            assert_eq!(ours.to_bits(), theirs.to_bits(), "f16 {bits:#06x}");
            if !ours.is_nan() {
                assert_eq!(f32_to_f16(ours), bits);
            }
        }
        for step in 0..=u32::MAX / 9973 {
            let value = f32::from_bits(step * 9973);
            if !value.is_nan() {
                assert_eq!(f32_to_f16(value), half::f16::from_f32_const(value).to_bits(), "{value:e}");
                assert_eq!(f32_to_bf16(value), half::bf16::from_f32_const(value).to_bits(), "{value:e}");
            }
        }
        assert!(f16_to_f32(f32_to_f16(f32::NAN)).is_nan());
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in 0..1_750_000 {
            let x = -87.0 + step as f32 * 1e-4;
            let exact = libm::exp(f64::from(x));
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp_f32(x)) - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(-1e9), exp_f32(-87.0));
        assert_eq!(exp_f32(f32::NAN), exp_f32(-87.0));
    }
}
