//! Plain Rust: every machine has it, and it is the reference that the other kernels are compared with. Where ARM's DSP
//! instructions are, sums of trits are by these.

use super::Op;
#[cfg(arm_dsp)]
use super::arm_dsp::tile_sums;
use super::vector::{Simd, Vector};
use crate::int6::{BLOCK_CODES, PAIR_BYTES, code};
use crate::numeric::{self, LANES};
#[cfg(not(arm_dsp))]
use crate::packing::BLOCK_BYTES;
use crate::packing::{BLOCK_COLS, TILE_ROWS};

/// The instruction set that every CPU has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar;

/// 32 lanes in an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes([f32; LANES]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        for (a, b) in lanes.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Lanes(lanes)
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            let (low, high) = lanes.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                *a = f(*a, *b);
            }
            half /= 2;
        }
        lanes[0]
    }
}

impl Vector for Lanes {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Lanes([value; LANES])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, Vector::max)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, Vector::min)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Lanes(self.0.map(Vector::abs))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Lanes(self.0.map(Vector::power_of_two))
    }
}

impl Simd for Scalar {
    type V = Lanes;
    // Of 128 bits, which compilers use where there are any.
    const LANE_REGISTERS: usize = LANES / 4;

    #[inline(never)]
    fn run<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        Lanes(*from)
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes {
        Lanes(from.map(numeric::f16_to_f32))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        Lanes(from.map(numeric::bf16_to_f32))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes {
        Lanes(from.map(f32::from))
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES], less: i32) -> Lanes {
        Lanes(from.map(|i| i.wrapping_sub(less) as f32))
    }
    #[inline(always)]
    fn store(self, v: Lanes, to: &mut [f32; LANES]) {
        *to = v.0;
    }
    #[inline(always)]
    fn store_f16(self, v: Lanes, to: &mut [u16; LANES]) {
        *to = v.0.map(numeric::f32_to_f16);
    }
    #[inline(always)]
    fn store_rounded(self, v: Lanes, to: &mut [i8; LANES]) {
        *to = v.0.map(|lane| lane.to_bits() as i8);
    }
    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        v.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        v.fold(Vector::max)
    }

    #[inline(always)]
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        for (x, sums) in x.iter().zip(sums) {
            *sums = tile_sums(tile, x);
        }
    }

    #[inline(always)]
    fn int6_tile<const T: usize>(self, pairs: &[[u8; PAIR_BYTES]], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        for (x, sums) in x.iter().zip(sums) {
            *sums = int6_sums(pairs, x);
        }
    }
}

/// [`Simd::twos_tile`] for one token, row after row for each column: compilers turn that into instructions for
/// several rows at once, whatever the machine has. Not inlined, so that what surrounds it has no say in that.
#[cfg(not(arm_dsp))]
#[inline(never)]
fn tile_sums(tile: &[u8], x: &[i8]) -> [i32; TILE_ROWS] {
    let mut sums = [0_i32; TILE_ROWS];
    for (block, x) in tile.as_chunks::<BLOCK_BYTES>().0.iter().zip(x.as_chunks::<BLOCK_COLS>().0) {
        let mut words = [0; TILE_ROWS];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // Byte e holds columns e, 4 + e, 8 + e and 12 + e, low bits first.
        for (column, x) in x.iter().enumerate() {
            let shift = column % 4 * 8 + column / 4 * 2;
            for (sum, word) in sums.iter_mut().zip(&words) {
                *sum = sum.wrapping_add(((word >> shift) & 3) as i32 * i32::from(*x));
            }
        }
    }
    sums
}

/// [`Simd::int6_tile`] for one token, not inlined as [`tile_sums`] is not.
#[inline(never)]
fn int6_sums(pairs: &[[u8; PAIR_BYTES]], x: &[i8]) -> [i32; TILE_ROWS] {
    let mut sums = [0; TILE_ROWS];
    for (n, x) in x.as_chunks::<BLOCK_COLS>().0.iter().enumerate().take(2 * pairs.len()) {
        let (pair, block) = (&pairs[n / 2], n % 2);
        let mut accs = [0; TILE_ROWS];
        for (column, x) in x.iter().enumerate() {
            for (row, acc) in accs.iter_mut().enumerate() {
                *acc += i32::from(code(pair, block, row, column)) * i32::from(*x);
            }
        }
        let scales = &pair[2 * BLOCK_CODES + block * TILE_ROWS..][..TILE_ROWS];
        for ((sum, acc), scale) in sums.iter_mut().zip(accs).zip(scales) {
            *sum += acc * i32::from(*scale);
        }
    }
    sums
}
