//! WebAssembly with `simd128`. A program cannot ask whether it has it: it is loaded where it is compiled in, or not.
//!
//! Products are summed in 16 bits. A code of at most 2 gives at most 2 * 128 in magnitude, and a block of 16 columns adds
//! four of these to each 16-bit lane, so 31 blocks stay within 31,744.

use core::arch::wasm32::*;

use super::Op;
use super::quad::{Quad, Quads};
use crate::numeric::f32_to_f16;

/// `simd128`, which this file is compiled with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Simd128(());

impl Quads<Simd128> {
    /// The instruction set.
    pub(super) fn new() -> Option<Self> {
        Some(Quads(Simd128(())))
    }
}

impl Quad for Simd128 {
    type F = v128;
    type I = v128;
    type B = v128;
    /// Eight sums of two rows, twice.
    type Sums = [v128; 2];

    const SUMS_REGISTERS: usize = 2;
    const BLOCKS: usize = 31;

    #[inline(never)]
    fn run<O: Op>(self, op: O) -> O::Output {
        op.run(Quads(self))
    }

    #[inline(always)]
    fn splat(value: f32) -> v128 {
        f32x4_splat(value)
    }
    #[inline(always)]
    fn add(a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }
    #[inline(always)]
    fn sub(a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }
    #[inline(always)]
    fn mul(a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }
    #[inline(always)]
    fn div(a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }
    #[inline(always)]
    fn max(a: v128, b: v128) -> v128 {
        // b < a ? a : b, as the contract wants it.
        f32x4_pmax(b, a)
    }
    #[inline(always)]
    fn min(a: v128, b: v128) -> v128 {
        // a < b ? a : b.
        f32x4_pmin(b, a)
    }
    #[inline(always)]
    fn abs(a: v128) -> v128 {
        f32x4_abs(a)
    }
    #[inline(always)]
    fn load(from: &[f32; 4]) -> v128 {
        // SAFETY: reads the four floats of `from`.
        unsafe { v128_load(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store(v: v128, to: &mut [f32; 4]) {
        // SAFETY: writes the four floats of `to`.
        unsafe { v128_store(to.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn fold(v: [v128; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        let halves = |a, b| f32x4_add(i32x4_shuffle::<0, 1, 4, 5>(a, b), i32x4_shuffle::<2, 3, 6, 7>(a, b));
        let (ab, cd) = (halves(a, b), halves(c, d));
        let mut sums = [0.0; 4];
        Self::store(f32x4_add(i32x4_shuffle::<0, 2, 4, 6>(ab, cd), i32x4_shuffle::<1, 3, 5, 7>(ab, cd)), &mut sums);
        sums
    }
    #[inline(always)]
    fn load_f16(from: &[u16; 4]) -> v128 {
        // SAFETY: reads the four numbers of `from`.
        let half = unsafe { u32x4_load_extend_u16x4(from.as_ptr()) };
        let magnitude = v128_and(half, u32x4_splat(0x7fff));
        let sign = u32x4_shl(v128_xor(half, magnitude), 16);
        // As `numeric::f16_to_f32` does it; the exponents of infinity and NaN are filled up with ones.
        let scaled = f32x4_mul(u32x4_shl(magnitude, 13), f32x4_splat(f32::from_bits((127 + 112) << 23)));
        let special = v128_and(u32x4_gt(magnitude, u32x4_splat(0x7bff)), u32x4_splat(0x7f80_0000));
        let quiet = v128_and(u32x4_gt(magnitude, u32x4_splat(0x7c00)), u32x4_splat(0x0040_0000));
        v128_or(v128_or(scaled, sign), v128_or(special, quiet))
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; 4]) -> v128 {
        // SAFETY: reads the four numbers of `from`.
        u32x4_shl(unsafe { u32x4_load_extend_u16x4(from.as_ptr()) }, 16)
    }
    #[inline(always)]
    fn store_f16(v: v128, to: &mut [u16; 4]) {
        let mut singles = [0.0; 4];
        Self::store(v, &mut singles);
        *to = singles.map(f32_to_f16);
    }
    #[inline(always)]
    fn bits(v: v128) -> v128 {
        v
    }
    #[inline(always)]
    fn float_of_bits(v: v128) -> v128 {
        v
    }
    #[inline(always)]
    fn float(v: v128) -> v128 {
        f32x4_convert_i32x4(v)
    }

    #[inline(always)]
    fn splat_int(value: i32) -> v128 {
        i32x4_splat(value)
    }
    #[inline(always)]
    fn add_int(a: v128, b: v128) -> v128 {
        i32x4_add(a, b)
    }
    #[inline(always)]
    fn sub_int(a: v128, b: v128) -> v128 {
        i32x4_sub(a, b)
    }
    #[inline(always)]
    fn mul_int(a: v128, b: v128) -> v128 {
        i32x4_mul(a, b)
    }
    #[inline(always)]
    fn shift_to_exponent(a: v128) -> v128 {
        i32x4_shl(a, 23)
    }
    #[inline(always)]
    fn load_int(from: &[i32; 4]) -> v128 {
        // SAFETY: reads the four integers of `from`.
        unsafe { v128_load(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_int(v: v128, to: &mut [i32; 4]) {
        // SAFETY: writes the four integers of `to`.
        unsafe { v128_store(to.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn load_i8(from: &[i8; 4]) -> v128 {
        // SAFETY: reads the four bytes of `from`.
        let bytes = unsafe { v128_load32_zero(from.as_ptr().cast()) };
        i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes))
    }
    #[inline(always)]
    fn load_u8(from: &[u8; 4]) -> v128 {
        // SAFETY: reads the four bytes of `from`.
        let bytes = unsafe { v128_load32_zero(from.as_ptr().cast()) };
        i32x4_extend_low_u16x8(i16x8_extend_low_u8x16(bytes))
    }
    #[inline(always)]
    fn store_i8(v: [v128; 4], to: &mut [i8; 16]) {
        let [a, b, c, d] = v;
        let bytes = |a, b| i8x16_shuffle::<0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0>(a, b);
        let all = i64x2_shuffle::<0, 2>(bytes(a, b), bytes(c, d));
        // SAFETY: writes the sixteen bytes of `to`.
        unsafe { v128_store(to.as_mut_ptr().cast(), all) }
    }

    #[inline(always)]
    fn load_bytes(from: &[u8; 16]) -> v128 {
        // SAFETY: reads the sixteen bytes of `from`.
        unsafe { v128_load(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_bytes(bytes: [i8; 4]) -> v128 {
        i32x4_splat(i32::from_le_bytes(bytes.map(|byte| byte as u8)))
    }
    #[inline(always)]
    fn splat_byte(byte: u8) -> v128 {
        u8x16_splat(byte)
    }
    #[inline(always)]
    fn and(a: v128, b: v128) -> v128 {
        v128_and(a, b)
    }
    #[inline(always)]
    fn or(a: v128, b: v128) -> v128 {
        v128_or(a, b)
    }
    #[inline(always)]
    fn shift_right<const N: i32>(a: v128) -> v128 {
        u8x16_shr(a, N as u32)
    }
    #[inline(always)]
    fn sub_bytes(a: v128, b: v128) -> v128 {
        i8x16_sub(a, b)
    }

    #[inline(always)]
    fn no_products() -> [v128; 2] {
        [i32x4_splat(0); 2]
    }
    #[inline(always)]
    fn multiply(self, sums: [v128; 2], codes: v128, x: v128) -> [v128; 2] {
        let low = i16x8_add(sums[0], i16x8_extmul_low_i8x16(codes, x));
        [low, i16x8_add(sums[1], i16x8_extmul_high_i8x16(codes, x))]
    }
    #[inline(always)]
    fn rows(sums: [v128; 2]) -> v128 {
        let [low, high] = [i32x4_extadd_pairwise_i16x8(sums[0]), i32x4_extadd_pairwise_i16x8(sums[1])];
        i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(low, high), i32x4_shuffle::<1, 3, 5, 7>(low, high))
    }
}
