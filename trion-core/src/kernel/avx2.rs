//! x86-64 with AVX2 and F16C, and the same with AVX-VNNI.
//!
//! Without VNNI products are summed in 16 bits. `maddubs` gives at most 2 * 2 * 128 = 512 in magnitude, and a block of
//! 16 columns adds four of these to each 16-bit lane, so fifteen blocks stay within 30,720: nothing saturates or wraps
//! before the sums move on to 32 bits.

#![allow(clippy::wildcard_imports, clippy::cast_ptr_alignment)] // every load and store is of the unaligned form

use core::arch::x86_64::*;
use core::hint::black_box;

use super::Op;
use super::prefetch::prefetch;
use super::vector::{Simd, Vector, prefetch_lines};
use crate::int6::{BLOCK_CODES, OFFSET, PAIR_BYTES};
use crate::numeric::{LANES, ROUND};
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, TILE_ROWS};

/// Blocks of 16 columns whose products a 16-bit lane can hold.
const BLOCKS_PER_FLUSH: usize = 15;

/// Proof that the CPU has AVX2 and F16C, and AVX-VNNI if `VNNI`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The proof, if this CPU can give it.
    pub(super) fn new() -> Option<Self> {
        let features = super::detect::features();
        (features.avx2 && (!VNNI || features.avx_vnni)).then_some(Self(()))
    }
}

/// 32 lanes in four registers, made by [`Avx2`] alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes([__m256; 4]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        let ([a, b, c, d], [e, g, h, i]) = (self.0, other.0);
        Lanes([f(a, e), f(b, g), f(c, h), f(d, i)])
    }
}

impl Vector for Lanes {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: only code that holds the proof of this instruction set names this type.
        Lanes([unsafe { _mm256_set1_ps(value) }; 4])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(self, |a, _| unsafe { _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff))) })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(self, |a, _| unsafe {
            let biased = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = Lanes;
    const LANE_REGISTERS: usize = 4;

    fn run<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,f16c")]
        fn plain<O: Op>(op: O) -> O::Output {
            op.run(Avx2::<false>(()))
        }
        #[inline(never)]
        #[target_feature(enable = "avx2,f16c,avxvnni")]
        fn vnni<O: Op>(op: O) -> O::Output {
            op.run(Avx2::<true>(()))
        }
        if VNNI {
            // SAFETY: `self` proves AVX2, F16C and AVX-VNNI.
            unsafe { vnni(op) }
        } else {
            // SAFETY: `self` proves AVX2 and F16C.
            unsafe { plain(op) }
        }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: four registers of 8 floats are the 32 floats of `from`; `self` proves AVX.
        unsafe {
            let [a, b] = [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))];
            Lanes([a, b, _mm256_loadu_ps(p.add(16)), _mm256_loadu_ps(p.add(24))])
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 8 of the 32 numbers of `from`; `self` proves F16C.
        unsafe {
            let [a, b] = [_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())];
            let [c, d] = [_mm_loadu_si128(p.add(16).cast()), _mm_loadu_si128(p.add(24).cast())];
            Lanes([_mm256_cvtph_ps(a), _mm256_cvtph_ps(b), _mm256_cvtph_ps(c), _mm256_cvtph_ps(d)])
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 8 of the 32 numbers of `from`; `self` proves AVX2.
        unsafe {
            let [a, b] = [_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())];
            let [c, d] = [_mm_loadu_si128(p.add(16).cast()), _mm_loadu_si128(p.add(24).cast())];
            Lanes([bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c), bf16_to_f32(d)])
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 8 of the 32 bytes of `from`; `self` proves AVX2.
        unsafe {
            let [a, b] = [_mm_loadl_epi64(p.cast()), _mm_loadl_epi64(p.add(8).cast())];
            let [c, d] = [_mm_loadl_epi64(p.add(16).cast()), _mm_loadl_epi64(p.add(24).cast())];
            Lanes([i8_to_f32(a), i8_to_f32(b), i8_to_f32(c), i8_to_f32(d)])
        }
    }
    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES], less: i32) -> Lanes {
        let mut lanes = Lanes::splat(0.0);
        for (lane, from) in lanes.0.iter_mut().zip(from.as_chunks::<8>().0) {
            // SAFETY: the load reads the 8 integers of `from`; `self` proves AVX2.
            *lane = unsafe {
                let from = _mm256_loadu_si256(from.as_ptr().cast());
                _mm256_cvtepi32_ps(_mm256_sub_epi32(from, _mm256_set1_epi32(less)))
            };
        }
        lanes
    }
    #[inline(always)]
    fn store(self, v: Lanes, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        for (i, part) in v.0.into_iter().enumerate() {
            // SAFETY: four registers of 8 floats are the 32 floats of `to`; `self` proves AVX.
            unsafe { _mm256_storeu_ps(p.add(8 * i), part) };
        }
    }
    #[inline(always)]
    fn store_f16(self, v: Lanes, to: &mut [u16; LANES]) {
        let p = to.as_mut_ptr();
        for (i, part) in v.0.into_iter().enumerate() {
            // SAFETY: each store writes 8 of the 32 numbers of `to`; `self` proves F16C.
            unsafe { _mm_storeu_si128(p.add(8 * i).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(part)) };
        }
    }
    #[inline(always)]
    fn store_rounded(self, v: Lanes, to: &mut [i8; LANES]) {
        // SAFETY: the store writes the 32 bytes of `to`; `self` proves AVX2.
        unsafe {
            let base = _mm256_set1_epi32(ROUND.to_bits() as i32);
            let [a, b] = [rounded(v.0[0], base), rounded(v.0[1], base)];
            let [c, d] = [rounded(v.0[2], base), rounded(v.0[3], base)];
            // Packing works within 128-bit halves; the permutation puts groups of four bytes back in order.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), ordered);
        }
    }
    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let eight = eight_sums(v.0);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn sums(self, v: [Lanes; 4]) -> [f32; 4] {
        let [a, b, c, d] = [v[0].0, v[1].0, v[2].0, v[3].0];
        // SAFETY: `self` proves AVX; the store writes the four floats of `sums`.
        unsafe {
            let [a, b, c, d] = [eight_sums(a), eight_sums(b), eight_sums(c), eight_sums(d)];
            // Halves of a and c beside each other, and those of b and d.
            let ac = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, c), _mm256_permute2f128_ps::<0x31>(a, c));
            let bd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(b, d), _mm256_permute2f128_ps::<0x31>(b, d));
            // Pairs of a and b in one half, of c and d in the other; then single elements.
            let two = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ac, bd), _mm256_shuffle_ps::<0xee>(ac, bd));
            let one = _mm256_add_ps(two, _mm256_shuffle_ps::<0xb1>(two, two));
            // Elements 0 and 2 of each half.
            let halves = _mm_shuffle_ps::<0x88>(_mm256_castps256_ps128(one), _mm256_extractf128_ps::<1>(one));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), halves);
            sums
        }
    }
    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        let [a, b, c, d] = v.0;
        // SAFETY: `self` proves AVX.
        unsafe {
            let eight = _mm256_max_ps(_mm256_max_ps(a, c), _mm256_max_ps(b, d));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        prefetch(core::ptr::from_ref(at).cast());
    }

    #[inline(always)]
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        // Sixteen registers hold the sums of 32 rows for one token, or of 8 rows for eight tokens.
        if const { T >= 4 } {
            for group in 0..TILE_ROWS / 8 {
                self.twos_groups::<1, T>(tile, group, x, sums);
            }
        } else {
            for (x, sums) in x.iter().zip(sums) {
                self.twos_groups::<4, 1>(tile, 0, [x], core::array::from_mut(sums));
            }
        }
    }

    #[inline(always)]
    fn multiply_registers(self, rounds: usize) -> u64 {
        const SUMS: usize = 12;
        // SAFETY: `self` proves AVX2, and AVX-VNNI where VNNI is set.
        unsafe {
            let (codes, x) = black_box((_mm256_set1_epi8(1), _mm256_set1_epi8(3)));
            let mut sums = [_mm256_setzero_si256(); SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = if VNNI {
                        _mm256_dpbusd_avx_epi32(*sum, codes, x)
                    } else {
                        // Of the last sum, or the product would be taken out of the loop.
                        _mm256_add_epi16(x, _mm256_maddubs_epi16(codes, *sum))
                    };
                }
            }
            black_box(sums);
        }
        (rounds * SUMS * 64) as u64
    }

    #[inline(always)]
    fn int6_tile<const T: usize>(self, pairs: &[[u8; PAIR_BYTES]], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        let blocks = x.iter().fold(2 * pairs.len(), |n, x| n.min(x.len() / BLOCK_COLS));
        // SAFETY: block b < blocks is half of pair b / 2, of which 96 bytes for each eight rows and 32 scales are read,
        // and lies within every x (16 bytes each); each store writes 8 of the 32 sums of a token; `self` proves AVX2, and
        // AVX-VNNI where VNNI is set.
        unsafe {
            let (two, four) = (_mm256_set1_epi8(0b11), _mm256_set1_epi8(0b1111));
            let (six, offset) = (_mm256_set1_epi8(0b11_1111), _mm256_set1_epi8(OFFSET));
            let mut acc = [[_mm256_setzero_si256(); 4]; T];
            for b in 0..blocks {
                let pair = pairs.as_ptr().add(b / 2).cast::<u8>();
                if b % 2 == 0 {
                    prefetch_lines(self, &*pair.cast::<[u8; PAIR_BYTES]>());
                }
                for (group, eight) in [0, 32, BLOCK_CODES / 2, BLOCK_CODES / 2 + 32].into_iter().enumerate() {
                    let codes = pair.add(b % 2 * BLOCK_CODES + eight);
                    let mut v = [_mm256_setzero_si256(); 4];
                    for (register, v) in v[..3].iter_mut().enumerate() {
                        *v = _mm256_loadu_si256(codes.add(64 * register).cast());
                    }
                    let low = select(two, _mm256_srli_epi16::<6>(v[0]), _mm256_srli_epi16::<4>(v[1]));
                    v[3] = select(four, low, _mm256_srli_epi16::<2>(v[2]));
                    let scales = pair.add(2 * BLOCK_CODES + b % 2 * TILE_ROWS + 8 * group);
                    let scales = _mm256_cvtepu8_epi32(_mm_loadl_epi64(scales.cast()));
                    for t in 0..T {
                        let mut sum = _mm256_setzero_si256();
                        let mut excess = _mm256_setzero_si256();
                        for (n, v) in v.into_iter().enumerate() {
                            let word = x[t].as_ptr().add(b * BLOCK_COLS + 4 * n).cast::<i32>().read_unaligned();
                            let (word, codes) = (_mm256_set1_epi32(word), _mm256_and_si256(v, six));
                            if VNNI {
                                sum = _mm256_dpbusd_avx_epi32(sum, codes, word);
                                excess = _mm256_dpbusd_avx_epi32(excess, offset, word);
                            } else {
                                // For two columns at most 2 * 63 * 128 in magnitude before the subtraction and
                                // 2 * 32 * 128 after it: 16 bits hold both.
                                let pairs = _mm256_maddubs_epi16(codes, word);
                                let pairs = _mm256_sub_epi16(pairs, _mm256_maddubs_epi16(offset, word));
                                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                            }
                        }
                        let scaled = _mm256_mullo_epi32(_mm256_sub_epi32(sum, excess), scales);
                        acc[t][group] = _mm256_add_epi32(acc[t][group], scaled);
                    }
                }
            }
            for t in 0..T {
                for (group, acc) in acc[t].iter().enumerate() {
                    _mm256_storeu_si256(sums[t].as_mut_ptr().add(8 * group).cast(), *acc);
                }
            }
        }
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    /// [`Simd::twos_tile`] for the G groups of 8 rows that begin at group `first`.
    #[inline(always)]
    fn twos_groups<const G: usize, const T: usize>(
        self,
        tile: &[u8],
        first: usize,
        x: [&[i8]; T],
        sums: &mut [[i32; TILE_ROWS]; T],
    ) {
        debug_assert!(first + G <= TILE_ROWS / 8);
        let blocks = x.iter().fold(tile.len() / BLOCK_BYTES, |n, x| n.min(x.len() / BLOCK_COLS));
        // SAFETY: block b < blocks lies within `tile` (128 bytes each, of which group g < 4 is bytes 32 g to 32 g + 31)
        // and within every x (16 bytes each); each store writes 8 of the 32 sums of a token; `self` proves AVX2, and
        // AVX-VNNI where VNNI is set.
        unsafe {
            let low_bits = _mm256_set1_epi8(3);
            let ones = _mm256_set1_epi16(1);
            let mut wide = [[_mm256_setzero_si256(); G]; T];
            let mut from = 0;
            while from < blocks {
                let to = if VNNI { blocks } else { blocks.min(from + BLOCKS_PER_FLUSH) };
                let mut narrow = [[_mm256_setzero_si256(); G]; T];
                for b in from..to {
                    let weights = tile.as_ptr().add(b * BLOCK_BYTES + 32 * first);
                    if first == 0 {
                        self.prefetch(&*weights);
                        self.prefetch(&*weights.add(64));
                    }
                    let mut packed = [_mm256_setzero_si256(); G];
                    for (g, packed) in packed.iter_mut().enumerate() {
                        *packed = _mm256_loadu_si256(weights.add(32 * g).cast());
                    }
                    for j in 0..4 {
                        for t in 0..T {
                            let word = x[t].as_ptr().add(b * BLOCK_COLS + 4 * j).cast::<i32>().read_unaligned();
                            let activations = _mm256_set1_epi32(word);
                            for g in 0..G {
                                let codes = _mm256_and_si256(packed[g], low_bits);
                                if VNNI {
                                    wide[t][g] = _mm256_dpbusd_avx_epi32(wide[t][g], codes, activations);
                                } else {
                                    let pairs = _mm256_maddubs_epi16(codes, activations);
                                    narrow[t][g] = _mm256_add_epi16(narrow[t][g], pairs);
                                }
                            }
                        }
                        for packed in &mut packed {
                            *packed = _mm256_srli_epi16::<2>(*packed);
                        }
                    }
                }
                if !VNNI {
                    for t in 0..T {
                        for g in 0..G {
                            let quads = _mm256_madd_epi16(narrow[t][g], ones);
                            wide[t][g] = _mm256_add_epi32(wide[t][g], quads);
                        }
                    }
                }
                from = to;
            }
            for t in 0..T {
                for g in 0..G {
                    let to = sums[t].as_mut_ptr().add(8 * (first + g));
                    _mm256_storeu_si256(to.cast(), wide[t][g]);
                }
            }
        }
    }
}

/// The bits of `a` where `mask` has ones, of `b` where it has zeros.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn select(mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)) }
}

/// The first two folds of 32 lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn eight_sums(v: [__m256; 4]) -> __m256 {
    let [a, b, c, d] = v;
    // SAFETY: the caller promises AVX.
    unsafe { _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)) }
}

/// Eight bfloat16 numbers as floats.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn bf16_to_f32(bits: __m128i) -> __m256 {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
}

/// The low eight small integers as floats.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn i8_to_f32(bytes: __m128i) -> __m256 {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) }
}

/// The integers n of lanes of the form `ROUND + n`, where `base` is the bits of `ROUND`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn rounded(lanes: __m256, base: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_sub_epi32(_mm256_castps_si256(lanes), base) }
}
