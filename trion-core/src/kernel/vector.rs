//! What an instruction set has to offer: 32 float lanes, conversions into them, and the ternary tile.

use super::Op;
use crate::int6::PAIR_BYTES;
use crate::numeric::LANES;
use crate::packing::{BLOCK_COLS, Packing, TILE_ROWS, twos_of_fives};

/// Floats that are computed side by side; every operation acts on each lane and rounds once.
pub(crate) trait Vector: Copy {
    /// The same value in every lane.
    fn splat(value: f32) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self` where it is greater than `other`, otherwise `other`: a NaN in either gives `other`.
    fn max(self, other: Self) -> Self;
    /// `self` where it is less than `other`, otherwise `other`: a NaN in either gives `other`.
    fn min(self, other: Self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// 2^n for lanes of the form `ROUND + n`, -126 <= n <= 127.
    fn power_of_two(self) -> Self;
}

impl Vector for f32 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self - other
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self * other
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self / other
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::from_bits(self.to_bits() & 0x7fff_ffff)
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        f32::from_bits(self.to_bits().wrapping_add(127) << 23)
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// An instruction set. A value of such a type exists only on a CPU that has it.
pub(crate) trait Simd: Copy {
    /// 32 lanes.
    type V: Vector;
    /// Registers that 32 lanes take.
    const LANE_REGISTERS: usize;

    /// Runs an operation, compiled for this instruction set as a function of its own: one that has much in it takes
    /// compilers far longer than its parts do.
    fn run<O: Op>(self, op: O) -> O::Output;

    /// 32 floats.
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// 32 half-precision numbers.
    fn load_f16(self, from: &[u16; LANES]) -> Self::V;
    /// 32 bfloat16 numbers.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V;
    /// 32 small integers.
    fn load_i8(self, from: &[i8; LANES]) -> Self::V;
    /// 32 integers, `less` so much (which wraps), rounded to floats.
    fn load_i32(self, from: &[i32; LANES], less: i32) -> Self::V;
    /// Writes 32 floats.
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Rounds to half precision, half to even.
    fn store_f16(self, v: Self::V, to: &mut [u16; LANES]);
    /// Writes the integers n of lanes of the form `ROUND + n`, -128 <= n <= 127.
    fn store_rounded(self, v: Self::V, to: &mut [i8; LANES]);
    /// The sum of the lanes, folded in halves: 16, 8, 4, 2, 1.
    fn sum(self, v: Self::V) -> f32;
    /// [`Simd::sum`] of each of four.
    #[inline(always)]
    fn sums(self, v: [Self::V; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
    /// The largest lane, folded in the same way.
    fn largest(self, v: Self::V) -> f32;

    /// Asks for lines of the cache some way behind `at`, where there is such a hint: weights are read once, in the
    /// order that they lie in, and the hardware's own guess ends with a page of memory.
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        let _ = at;
    }

    /// Whether there may be a use for products of trits with 32 tokens: what is never used need not be compiled.
    const HAS_THIRTY_TWO: bool = false;

    /// Whether products of trits gain from taking 32 tokens together, and not 8 at most.
    #[inline(always)]
    fn takes_thirty_two(self) -> bool {
        false
    }

    /// For T tokens, the sums over columns of (trit + 1) * x for the 32 rows of a tile, however its trits lie. Sums wrap at
    /// 32 bits.
    #[inline(always)]
    fn ternary_tile<const T: usize>(
        self,
        packing: Packing,
        tile: &[u8],
        x: [&[i8]; T],
        sums: &mut [[i32; TILE_ROWS]; T],
    ) {
        match packing {
            Packing::Twos => self.run(TwosTile { tile, x, sums }),
            Packing::Fives => self.fives_tile(tile, x, sums),
        }
    }

    /// [`Simd::ternary_tile`] of blocks of [`Packing::Twos`]: as many as `tile` and each x has, of whole 16 columns.
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]);

    /// [`Simd::ternary_tile`] of blocks of [`Packing::Fives`], for x of whole 16 columns. Where x ends within a block, the
    /// trits that are left count nothing.
    #[inline(always)]
    fn fives_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        fives_by_twos(self, tile, x, sums);
    }

    /// For T tokens, the sums over columns of code * block scale * x for the 32 rows of a tile, over at most 128 columns:
    /// `pairs` of blocks as in [`crate::int6`]. Where x ends within a pair, at a multiple of 16 columns, the weights that are
    /// left count nothing.
    fn int6_tile<const T: usize>(self, pairs: &[[u8; PAIR_BYTES]], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]);

    /// Does what products do to integers, `rounds` times and on registers alone; gives the multiplications and additions
    /// that were done, or 0 where nobody has counted.
    #[inline(always)]
    fn multiply_registers(self, rounds: usize) -> u64 {
        let _ = rounds;
        0
    }

    /// Writes as many lanes as `to` has, at most 32.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        for (to, lane) in to.iter_mut().zip(lanes) {
            *to = lane;
        }
    }
}

/// [`Simd::twos_tile`].
struct TwosTile<'a, const T: usize> {
    tile: &'a [u8],
    x: [&'a [i8]; T],
    sums: &'a mut [[i32; TILE_ROWS]; T],
}

impl<const T: usize> Op for TwosTile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.twos_tile(self.tile, self.x, self.sums);
    }
}

/// [`Simd::fives_tile`] by [`Packing::Twos`].
#[inline(always)]
pub(super) fn fives_by_twos<S: Simd, const T: usize>(
    simd: S,
    tile: &[u8],
    x: [&[i8]; T],
    sums: &mut [[i32; TILE_ROWS]; T],
) {
    *sums = [[0; TILE_ROWS]; T];
    let mut from = 0;
    for twos in twos_of_fives(tile) {
        let mut part = [[0; TILE_ROWS]; T];
        let x = x.map(|x| x.get(from..).unwrap_or(&[]));
        simd.run(TwosTile { tile: twos.as_flattened(), x, sums: &mut part });
        add_sums(sums, &part);
        from += twos.len() * BLOCK_COLS;
    }
}

/// Adds sums to sums; they wrap at 32 bits.
#[inline(always)]
pub(crate) fn add_sums<const T: usize>(sums: &mut [[i32; TILE_ROWS]; T], part: &[[i32; TILE_ROWS]; T]) {
    for (sum, part) in sums.as_flattened_mut().iter_mut().zip(part.as_flattened()) {
        *sum = sum.wrapping_add(*part);
    }
}

/// [`Simd::prefetch`] for each whole line that a piece of a stream takes.
#[inline(always)]
pub(crate) fn prefetch_lines<S: Simd, T: bytemuck::Pod>(simd: S, piece: &[T]) {
    for line in bytemuck::cast_slice::<T, u8>(piece).as_chunks::<LINE>().0 {
        simd.prefetch(line);
    }
}

/// The first 32 elements, filled up with zeros.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default>(from: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    for (lane, value) in lanes.iter_mut().zip(from) {
        *lane = *value;
    }
    lanes
}

/// A number format of stored weights.
pub(crate) trait Format: Copy {
    /// How one number is stored.
    type Bits: bytemuck::Pod + Default + Send + Sync;

    /// 32 numbers.
    fn load<S: Simd>(simd: S, from: &[Self::Bits; LANES]) -> S::V;
}

/// A number format that the cache is written in.
pub(crate) trait CacheFormat: Format {
    /// Writes 32 numbers, rounded half to even.
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [Self::Bits; LANES]);
}

/// Single precision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32;
/// Half precision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F16;
/// bfloat16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16;
/// Small integers; their scale is applied elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct I8;

impl Format for F32 {
    type Bits = f32;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[f32; LANES]) -> S::V {
        simd.load(from)
    }
}

impl Format for F16 {
    type Bits = u16;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u16; LANES]) -> S::V {
        simd.load_f16(from)
    }
}

impl Format for Bf16 {
    type Bits = u16;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u16; LANES]) -> S::V {
        simd.load_bf16(from)
    }
}

impl Format for I8 {
    type Bits = i8;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[i8; LANES]) -> S::V {
        simd.load_i8(from)
    }
}

impl CacheFormat for F32 {
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [f32; LANES]) {
        simd.store(v, to);
    }
}

impl CacheFormat for F16 {
    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::V, to: &mut [u16; LANES]) {
        simd.store_f16(v, to);
    }
}
