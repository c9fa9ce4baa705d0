//! x86-64 with AVX-512 F, BW and VNNI.

#![allow(clippy::wildcard_imports, clippy::cast_ptr_alignment)] // every load and store is of the unaligned form

use core::arch::x86_64::*;

use super::Op;
use super::vector::{PREFETCH_BYTES, Simd, Vector};
use crate::numeric::LANES;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS, TILE_ROWS};

/// Proof that the CPU has AVX-512 F, BW and VNNI, and AVX2 with F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, if this CPU can give it.
    pub(super) fn new() -> Option<Self> {
        let features = super::detect::features();
        (features.avx2 && features.avx512_vnni).then_some(Self(()))
    }

    /// Runs an operation compiled for this instruction set.
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vnni")]
        fn inner<O: Op>(op: O) -> O::Output {
            op.run(Avx512(()))
        }
        // SAFETY: `self` proves these features.
        unsafe { inner(op) }
    }
}

/// 32 lanes in two registers, made by [`Avx512`] alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes([__m512; 2]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m512, __m512) -> __m512) -> Self {
        Lanes([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }
}

impl Vector for Lanes {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: only code that holds the proof of this instruction set names this type.
        Lanes([unsafe { _mm512_set1_ps(value) }; 2])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_div_ps(a, b) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_max_ps(a, b) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(other, |a, b| unsafe { _mm512_min_ps(a, b) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(self, |a, _| unsafe { _mm512_abs_ps(a) })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: `self` was made with the proof of this instruction set.
        self.zip(self, |a, _| unsafe {
            let biased = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
}

impl Simd for Avx512 {
    type V = Lanes;
    const LANE_REGISTERS: usize = 2;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: two registers of 16 floats are the 32 floats of `from`; `self` proves AVX-512 F.
        Lanes(unsafe { [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))] })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 16 of the 32 numbers of `from`; `self` proves AVX-512 F.
        unsafe {
            let [a, b] = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())];
            Lanes([_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)])
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 16 of the 32 numbers of `from`; `self` proves AVX-512 F.
        unsafe {
            let a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            let b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(16).cast()));
            let [a, b] = [_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b)];
            Lanes([_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)])
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 16 of the 32 bytes of `from`; `self` proves AVX-512 F.
        unsafe {
            let a = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
            let b = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(16).cast()));
            Lanes([_mm512_cvtepi32_ps(a), _mm512_cvtepi32_ps(b)])
        }
    }
    #[inline(always)]
    fn store(self, v: Lanes, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        for (i, part) in v.0.into_iter().enumerate() {
            // SAFETY: two registers of 16 floats are the 32 floats of `to`; `self` proves AVX-512 F.
            unsafe { _mm512_storeu_ps(p.add(16 * i), part) };
        }
    }
    #[inline(always)]
    fn store_f16(self, v: Lanes, to: &mut [u16; LANES]) {
        let p = to.as_mut_ptr();
        for (i, part) in v.0.into_iter().enumerate() {
            // SAFETY: each store writes 16 of the 32 numbers of `to`; `self` proves AVX-512 F.
            unsafe { _mm256_storeu_si256(p.add(16 * i).cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(part)) };
        }
    }
    #[inline(always)]
    fn store_rounded(self, v: Lanes, to: &mut [i8; LANES]) {
        let p = to.as_mut_ptr();
        for (i, part) in v.0.into_iter().enumerate() {
            // The integer lies in the low byte of each lane: truncation keeps just that.
            // SAFETY: each store writes 16 of the 32 bytes of `to`; `self` proves AVX-512 F.
            unsafe { _mm_storeu_si128(p.add(16 * i).cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(part))) };
        }
    }
    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        let [a, b] = v.0;
        // SAFETY: `self` proves AVX-512 F and AVX.
        unsafe {
            let sixteen = _mm512_add_ps(a, b);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), upper_half(sixteen));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn sums(self, v: [Lanes; 4]) -> [f32; 4] {
        // SAFETY: `self` proves AVX-512 F and AVX; the store writes the four floats of `sums`.
        unsafe {
            let (a, b) = (_mm512_add_ps(v[0].0[0], v[0].0[1]), _mm512_add_ps(v[1].0[0], v[1].0[1]));
            let (c, d) = (_mm512_add_ps(v[2].0[0], v[2].0[1]), _mm512_add_ps(v[3].0[0], v[3].0[1]));
            // Halves of a and b beside each other, then quarters of all four.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            let four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let two = _mm512_add_ps(four, _mm512_shuffle_ps::<0x4e>(four, four));
            let one = _mm512_add_ps(two, _mm512_shuffle_ps::<0xb1>(two, two));
            // The sums are elements 0, 4, 8 and 12.
            let places = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(places, one)));
            sums
        }
    }
    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        let [a, b] = v.0;
        // SAFETY: `self` proves AVX-512 F and AVX.
        unsafe {
            let sixteen = _mm512_max_ps(a, b);
            let eight = _mm256_max_ps(_mm512_castps512_ps256(sixteen), upper_half(sixteen));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        let ahead = core::ptr::from_ref(at).cast::<i8>().wrapping_add(PREFETCH_BYTES);
        // SAFETY: a hint, which reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
    }

    #[inline(always)]
    fn ternary_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        let blocks = x.iter().fold(tile.len() / BLOCK_BYTES, |n, x| n.min(x.len() / BLOCK_COLS));
        // SAFETY: block b < blocks lies within `tile` (128 bytes each) and within every x (16 bytes each); each store
        // writes 16 of the 32 sums of a token; `self` proves AVX-512 F, BW and VNNI.
        unsafe {
            let low_bits = _mm512_set1_epi8(3);
            // Two sums for each register of rows where tokens are few, so that products do not wait for each other.
            let sets = if T <= 2 { 2 } else { 1 };
            let mut low = [[_mm512_setzero_si512(); T]; 2];
            let mut high = [[_mm512_setzero_si512(); T]; 2];
            for b in 0..blocks {
                let weights = tile.as_ptr().add(b * BLOCK_BYTES);
                let mut packed_low = _mm512_loadu_si512(weights.cast());
                let mut packed_high = _mm512_loadu_si512(weights.add(64).cast());
                self.prefetch(&*weights);
                self.prefetch(&*weights.add(64));
                for j in 0..4 {
                    let codes_low = _mm512_and_si512(packed_low, low_bits);
                    let codes_high = _mm512_and_si512(packed_high, low_bits);
                    for t in 0..T {
                        let word = x[t].as_ptr().add(b * BLOCK_COLS + 4 * j).cast::<i32>().read_unaligned();
                        let activations = _mm512_set1_epi32(word);
                        let (low, high) = (&mut low[j % sets][t], &mut high[j % sets][t]);
                        *low = _mm512_dpbusd_epi32(*low, codes_low, activations);
                        *high = _mm512_dpbusd_epi32(*high, codes_high, activations);
                    }
                    packed_low = _mm512_srli_epi16::<2>(packed_low);
                    packed_high = _mm512_srli_epi16::<2>(packed_high);
                }
            }
            for t in 0..T {
                let to = sums[t].as_mut_ptr();
                _mm512_storeu_si512(to.cast(), _mm512_add_epi32(low[0][t], low[1][t]));
                _mm512_storeu_si512(to.add(16).cast(), _mm512_add_epi32(high[0][t], high[1][t]));
            }
        }
    }
}

/// Lanes 8 to 15.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn upper_half(v: __m512) -> __m256 {
    // SAFETY: the caller promises AVX-512 F.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))) }
}
