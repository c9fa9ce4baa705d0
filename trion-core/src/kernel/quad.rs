//! Instruction sets whose registers hold 128 bits: what NEON and WebAssembly have in common.
//!
//! 32 lanes are eight registers, and a register of packed weights holds four bytes for each of four rows. An
//! instruction set gives the operations of one register ([`Quad`]); all that is made of them is written here, once.

use super::Op;
use super::vector::{Simd, Vector};
use crate::int6::{BLOCK_CODES, OFFSET, PAIR_BYTES};
use crate::numeric::{LANES, ROUND};
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, TILE_ROWS};

/// Registers that the 32 rows of a tile, or 32 lanes, take.
const QUADS: usize = LANES / 4;

/// The operations of one register. A value of such a type exists only where the instruction set does.
pub(super) trait Quad: Copy {
    /// [`Simd::run`].
    fn run<O: Op>(self, op: O) -> O::Output;

    /// Four floats.
    type F: Copy;
    /// Four integers of 32 bits.
    type I: Copy;
    /// Sixteen bytes.
    type B: Copy;
    /// Sums of products for four rows; [`Quad::rows`] makes one integer a row of them.
    type Sums: Copy;

    /// Registers that [`Quad::Sums`] take: 1 or 2.
    const SUMS_REGISTERS: usize;
    /// Blocks of 16 columns whose products [`Quad::Sums`] hold, where codes are at most 2.
    const BLOCKS: usize;

    /// The same float four times.
    fn splat(value: f32) -> Self::F;
    /// Each sum.
    fn add(a: Self::F, b: Self::F) -> Self::F;
    /// Each difference.
    fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// Each product.
    fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// Each quotient.
    fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a` where it is greater than `b`, otherwise `b`.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a` where it is less than `b`, otherwise `b`.
    fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Each magnitude.
    fn abs(a: Self::F) -> Self::F;
    /// Reads four floats.
    fn load(from: &[f32; 4]) -> Self::F;
    /// Writes four floats.
    fn store(v: Self::F, to: &mut [f32; 4]);
    /// Of four registers the lanes 0 and 2, and 1 and 3, folded by sums, then both sums: what is left of each register.
    fn fold(v: [Self::F; 4]) -> [f32; 4];
    /// Four half-precision numbers.
    fn load_f16(from: &[u16; 4]) -> Self::F;
    /// Four bfloat16 numbers.
    fn load_bf16(from: &[u16; 4]) -> Self::F;
    /// Writes four half-precision numbers, rounded half to even.
    fn store_f16(v: Self::F, to: &mut [u16; 4]);
    /// The bits of floats.
    fn bits(v: Self::F) -> Self::I;
    /// The floats of bits.
    fn float_of_bits(v: Self::I) -> Self::F;
    /// Integers rounded to floats.
    fn float(v: Self::I) -> Self::F;

    /// The same integer four times.
    fn splat_int(value: i32) -> Self::I;
    /// Each sum, which wraps.
    fn add_int(a: Self::I, b: Self::I) -> Self::I;
    /// Each difference, which wraps.
    fn sub_int(a: Self::I, b: Self::I) -> Self::I;
    /// Each product, which wraps.
    fn mul_int(a: Self::I, b: Self::I) -> Self::I;
    /// Each integer times 2^23.
    fn shift_to_exponent(a: Self::I) -> Self::I;
    /// Reads four integers.
    fn load_int(from: &[i32; 4]) -> Self::I;
    /// Writes four integers.
    fn store_int(v: Self::I, to: &mut [i32; 4]);
    /// Four signed bytes.
    fn load_i8(from: &[i8; 4]) -> Self::I;
    /// Four unsigned bytes.
    fn load_u8(from: &[u8; 4]) -> Self::I;
    /// Writes the low bytes of sixteen integers.
    fn store_i8(v: [Self::I; 4], to: &mut [i8; 16]);

    /// Reads sixteen bytes.
    fn load_bytes(from: &[u8; 16]) -> Self::B;
    /// The same four bytes four times.
    fn splat_bytes(bytes: [i8; 4]) -> Self::B;
    /// The same byte sixteen times.
    fn splat_byte(byte: u8) -> Self::B;
    /// Bits that both have.
    fn and(a: Self::B, b: Self::B) -> Self::B;
    /// Bits that either has.
    fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Each byte shifted right by N bits, zeros coming in.
    fn shift_right<const N: i32>(a: Self::B) -> Self::B;
    /// Each difference, which wraps.
    fn sub_bytes(a: Self::B, b: Self::B) -> Self::B;

    /// No products.
    fn no_products() -> Self::Sums;
    /// Adds the products of signed bytes: each row has four.
    fn multiply(self, sums: Self::Sums, codes: Self::B, x: Self::B) -> Self::Sums;
    /// What each row's products come to.
    fn rows(sums: Self::Sums) -> Self::I;
}

/// 32 lanes in eight registers.
pub(super) struct Lanes<Q: Quad>([Q::F; QUADS]);

impl<Q: Quad> Clone for Lanes<Q> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q: Quad> Copy for Lanes<Q> {}

impl<Q: Quad> Lanes<Q> {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(Q::F, Q::F) -> Q::F) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        self
    }

    /// The first three folds of 32 lanes.
    #[inline(always)]
    fn fold(self, f: impl Fn(Q::F, Q::F) -> Q::F) -> Q::F {
        let [a, b, c, d, e, g, h, i] = self.0;
        f(f(f(a, e), f(c, h)), f(f(b, g), f(d, i)))
    }
}

impl<Q: Quad> Vector for Lanes<Q> {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Lanes([Q::splat(value); QUADS])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, Q::add)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, Q::sub)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, Q::mul)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, Q::div)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, Q::max)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, Q::min)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.zip(self, |a, _| Q::abs(a))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.zip(self, |a, _| Q::float_of_bits(Q::shift_to_exponent(Q::add_int(Q::bits(a), Q::splat_int(127)))))
    }
}

/// The instruction set of a [`Quad`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Quads<Q>(pub(super) Q);

impl<Q: Quad> Simd for Quads<Q> {
    type V = Lanes<Q>;
    const LANE_REGISTERS: usize = QUADS;

    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        self.0.run(op)
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes<Q> {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks().0) {
            *lane = Q::load(from);
        }
        lanes
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes<Q> {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks().0) {
            *lane = Q::load_f16(from);
        }
        lanes
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes<Q> {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks().0) {
            *lane = Q::load_bf16(from);
        }
        lanes
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes<Q> {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks().0) {
            *lane = Q::float(Q::load_i8(from));
        }
        lanes
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES], less: i32) -> Lanes<Q> {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks().0) {
            *lane = Q::float(Q::sub_int(Q::load_int(from), Q::splat_int(less)));
        }
        lanes
    }
    #[inline(always)]
    fn store(self, v: Lanes<Q>, to: &mut [f32; LANES]) {
        for (lane, to) in v.0.into_iter().zip(to.as_chunks_mut().0) {
            Q::store(lane, to);
        }
    }
    #[inline(always)]
    fn store_f16(self, v: Lanes<Q>, to: &mut [u16; LANES]) {
        for (lane, to) in v.0.into_iter().zip(to.as_chunks_mut().0) {
            Q::store_f16(lane, to);
        }
    }
    #[inline(always)]
    fn store_rounded(self, v: Lanes<Q>, to: &mut [i8; LANES]) {
        // The low bytes of ROUND's bits are zeros, so those of a lane are the integer's.
        const { assert!(ROUND.to_bits() & 0xff == 0) };
        for (lanes, to) in v.0.as_chunks::<4>().0.iter().zip(to.as_chunks_mut().0) {
            let [a, b, c, d] = *lanes;
            Q::store_i8([Q::bits(a), Q::bits(b), Q::bits(c), Q::bits(d)], to);
        }
    }
    #[inline(always)]
    fn sum(self, v: Lanes<Q>) -> f32 {
        Q::fold([v.fold(Q::add); 4])[0]
    }
    #[inline(always)]
    fn sums(self, v: [Lanes<Q>; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        Q::fold([a.fold(Q::add), b.fold(Q::add), c.fold(Q::add), d.fold(Q::add)])
    }
    #[inline(always)]
    fn largest(self, v: Lanes<Q>) -> f32 {
        let mut lanes = [0.0; 4];
        Q::store(v.fold(Q::max), &mut lanes);
        let [a, b, c, d] = lanes;
        Vector::max(Vector::max(a, c), Vector::max(b, d))
    }

    #[inline(always)]
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        // Eight tokens fill sixteen registers with sums; few tokens share a pass over all rows.
        if const { T >= 4 && Q::SUMS_REGISTERS == 1 } {
            for first in (0..QUADS).step_by(2) {
                self.twos_rows::<2, T>(tile, first, x, sums);
            }
        } else if const { T >= 4 } {
            for first in 0..QUADS {
                self.twos_rows::<1, T>(tile, first, x, sums);
            }
        } else {
            for (x, sums) in x.iter().zip(sums) {
                self.twos_rows::<QUADS, 1>(tile, 0, [x], core::array::from_mut(sums));
            }
        }
    }

    #[inline(always)]
    fn int6_tile<const T: usize>(self, pairs: &[[u8; PAIR_BYTES]], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        let (six, offset) = (Q::splat_byte(0b11_1111), Q::splat_byte(OFFSET as u8));
        let (third, second) = (Q::splat_byte(0b11_0000), Q::splat_byte(0b1100));
        for quad in 0..QUADS {
            let mut acc = [Q::splat_int(0); T];
            for (n, half) in pairs.iter().flat_map(|pair| [(pair, 0), (pair, 1)]).enumerate() {
                let (pair, block) = half;
                // Three registers of 64 bytes for 16 rows, then three for the other 16.
                let codes = &pair[block * BLOCK_CODES + quad / 4 * (BLOCK_CODES / 2)..][..BLOCK_CODES / 2];
                let mut v = [six; 4];
                for (v, register) in v[..3].iter_mut().zip(codes.as_chunks::<64>().0) {
                    *v = Q::load_bytes(&register.as_chunks().0[quad % 4]);
                }
                let low = Q::or(Q::shift_right::<6>(v[0]), Q::and(Q::shift_right::<4>(v[1]), second));
                v[3] = Q::or(low, Q::and(Q::shift_right::<2>(v[2]), third));
                for v in &mut v {
                    *v = Q::sub_bytes(Q::and(*v, six), offset);
                }
                let scales = &pair[2 * BLOCK_CODES + block * TILE_ROWS..][..TILE_ROWS];
                let scales = Q::load_u8(&scales.as_chunks().0[quad]);
                for (acc, x) in acc.iter_mut().zip(x) {
                    let Some(x) = x.as_chunks::<BLOCK_COLS>().0.get(n) else { continue };
                    // At most 4 * 32 * 128 in magnitude, which 16 bits hold.
                    let mut products = Q::no_products();
                    for (v, x) in v.into_iter().zip(x.as_chunks().0) {
                        products = self.0.multiply(products, v, Q::splat_bytes(*x));
                    }
                    *acc = Q::add_int(*acc, Q::mul_int(Q::rows(products), scales));
                }
            }
            for (acc, sums) in acc.into_iter().zip(&mut *sums) {
                Q::store_int(acc, &mut sums.as_chunks_mut().0[quad]);
            }
        }
    }
}

impl<Q: Quad> Quads<Q> {
    /// [`Simd::twos_tile`] for the G groups of 4 rows that begin at group `first`.
    #[inline(always)]
    fn twos_rows<const G: usize, const T: usize>(
        self,
        tile: &[u8],
        first: usize,
        x: [&[i8]; T],
        sums: &mut [[i32; TILE_ROWS]; T],
    ) {
        let blocks = tile.as_chunks::<BLOCK_BYTES>().0;
        let mut columns = [&[][..]; T];
        for (columns, x) in columns.iter_mut().zip(x) {
            *columns = x.as_chunks::<BLOCK_COLS>().0;
        }
        let count = columns.iter().fold(blocks.len(), |n, columns| n.min(columns.len()));
        let low_bits = Q::splat_byte(0b11);
        let mut wide = [[Q::splat_int(0); G]; T];
        let mut from = 0;
        while from < count {
            let to = count.min(from.saturating_add(Q::BLOCKS));
            let mut products = [[Q::no_products(); G]; T];
            for n in from..to {
                let mut packed = [low_bits; G];
                for (packed, bytes) in packed.iter_mut().zip(&blocks[n].as_chunks().0[first..]) {
                    *packed = Q::load_bytes(bytes);
                }
                for j in 0..4 {
                    for t in 0..T {
                        let x = Q::splat_bytes(columns[t][n].as_chunks().0[j]);
                        for g in 0..G {
                            products[t][g] = self.0.multiply(products[t][g], Q::and(packed[g], low_bits), x);
                        }
                    }
                    for packed in &mut packed {
                        *packed = Q::shift_right::<2>(*packed);
                    }
                }
            }
            for (wide, products) in wide.as_flattened_mut().iter_mut().zip(products.as_flattened()) {
                *wide = Q::add_int(*wide, Q::rows(*products));
            }
            from = to;
        }
        for (wide, sums) in wide.into_iter().zip(sums) {
            for (wide, sums) in wide.into_iter().zip(&mut sums.as_chunks_mut().0[first..]) {
                Q::store_int(wide, sums);
            }
        }
    }
}
