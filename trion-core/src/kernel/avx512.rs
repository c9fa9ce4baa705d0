//! x86-64 with AVX-512 F, BW and VNNI, and with VBMI where the CPU has it; and the same with the tile registers of AMX for
//! products with many tokens.

#![allow(clippy::wildcard_imports, clippy::cast_ptr_alignment)] // every load and store is of the unaligned form

use core::arch::x86_64::*;
use core::hint::black_box;

use super::prefetch::prefetch;
use super::vector::{Simd, Vector, fives_by_twos, prefetch_lines};
use super::{Op, amx};
use crate::int6::{BLOCK_CODES, OFFSET, PAIR_BYTES};
use crate::numeric::LANES;
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, FIVES_BYTES, FIVES_COLS, Packing, TILE_ROWS};

/// Proof that the CPU has AVX-512 F, BW and VNNI, and AVX2 with F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512 {
    /// Whether it has VBMI, too: bytes that are looked up in a table of 64.
    vbmi: bool,
    /// Whether it has both VBMI and AMX for small integers, and this process may use the latter.
    amx: bool,
}

impl Avx512 {
    /// The proof without AMX, if this CPU can give it.
    pub(super) fn new() -> Option<Self> {
        let features = super::detect::features();
        (features.avx2 && features.avx512_vnni).then_some(Self { vbmi: features.avx512_vbmi, amx: false })
    }

    /// The proof with AMX, if this CPU can give it and the operating system permits it when asked.
    pub(super) fn with_amx() -> Option<Self> {
        let proof = Self::new()?;
        let amx = proof.vbmi && super::detect::features().amx_int8 && amx::permitted();
        amx.then_some(Self { amx, ..proof })
    }

    /// Whether the CPU has VBMI, too.
    pub(super) const fn has_vbmi(self) -> bool {
        self.vbmi
    }

    /// Whether AMX is used.
    pub(super) const fn has_amx(self) -> bool {
        self.amx
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
    const HAS_THIRTY_TWO: bool = true;

    fn run<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vnni")]
        fn inner<O: Op>(proof: Avx512, op: O) -> O::Output {
            op.run(proof)
        }
        // SAFETY: `self` proves these features.
        unsafe { inner(self, op) }
    }

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
    fn load_i32(self, from: &[i32; LANES], less: i32) -> Lanes {
        let p = from.as_ptr();
        // SAFETY: each load reads 16 of the 32 integers of `from`; `self` proves AVX-512 F.
        unsafe {
            let less = _mm512_set1_epi32(less);
            let a = _mm512_sub_epi32(_mm512_loadu_si512(p.cast()), less);
            let b = _mm512_sub_epi32(_mm512_loadu_si512(p.add(16).cast()), less);
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
        prefetch(core::ptr::from_ref(at).cast());
    }

    #[inline(always)]
    fn takes_thirty_two(self) -> bool {
        self.amx
    }

    #[inline(always)]
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        if const { T == amx::TOKENS } {
            if self.amx {
                // SAFETY: `amx` says that AMX may be used, and that VBMI is there; `self` proves the others.
                return unsafe { amx::tile(Packing::Twos, tile, x, sums) };
            }
            for (x, sums) in x.as_chunks::<8>().0.iter().zip(sums.as_chunks_mut::<8>().0) {
                self.twos_tile(tile, *x, sums);
            }
            return;
        }
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

    #[inline(always)]
    fn multiply_registers(self, rounds: usize) -> u64 {
        const SUMS: usize = 16;
        if self.amx {
            // SAFETY: `amx` says that AMX may be used.
            return unsafe { amx::multiply_registers(rounds) };
        }
        // SAFETY: `self` proves AVX-512 F and VNNI.
        unsafe {
            let (codes, x) = black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(3)));
            let mut sums = [_mm512_setzero_si512(); SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, codes, x);
                }
            }
            black_box(sums);
        }
        (rounds * SUMS * 128) as u64
    }

    #[inline(always)]
    fn fives_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        if const { T == amx::TOKENS } {
            if self.amx {
                // SAFETY: `amx` says that AMX may be used, and that VBMI is there; `self` proves the others.
                return unsafe { amx::tile(Packing::Fives, tile, x, sums) };
            }
            for (x, sums) in x.as_chunks::<8>().0.iter().zip(sums.as_chunks_mut::<8>().0) {
                self.fives_tile(tile, *x, sums);
            }
            return;
        }
        if !self.vbmi {
            return fives_by_twos(self, tile, x, sums);
        }
        let words = x.iter().fold(tile.len() / FIVES_BYTES * DIGITS, |n, x| n.min(x.len() / 4));
        // SAFETY: `vbmi` says that the CPU has VBMI, `self` proves the others; `words` lie within each x, and what they are
        // multiplied with within `tile`.
        unsafe { fives(tile.as_ptr(), words, x.map(<[i8]>::as_ptr), sums) };
    }

    #[inline(always)]
    fn int6_tile<const T: usize>(self, pairs: &[[u8; PAIR_BYTES]], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        let blocks = x.iter().fold(2 * pairs.len(), |n, x| n.min(x.len() / BLOCK_COLS));
        // SAFETY: block b < blocks is half of pair b / 2, of which 192 bytes for each half of the rows and 32 scales are
        // read, and lies within every x (16 bytes each); each store writes 16 of the 32 sums of a token; `self` proves
        // AVX-512 F, BW and VNNI.
        unsafe {
            let (two, four) = (_mm512_set1_epi8(0b11), _mm512_set1_epi8(0b1111));
            let (six, offset) = (_mm512_set1_epi8(0b11_1111), _mm512_set1_epi8(OFFSET));
            let mut acc = [[_mm512_setzero_si512(); T]; 2];
            for b in 0..blocks {
                let pair = pairs.as_ptr().add(b / 2).cast::<u8>();
                if b % 2 == 0 {
                    // All of a pair at once: one by one, as its lines are read, is slower.
                    prefetch_lines(self, &*pair.cast::<[u8; PAIR_BYTES]>());
                }
                let mut words = [[_mm512_setzero_si512(); 4]; T];
                let mut excess = [_mm512_setzero_si512(); T];
                for t in 0..T {
                    for (n, word) in words[t].iter_mut().enumerate() {
                        *word =
                            _mm512_set1_epi32(x[t].as_ptr().add(b * BLOCK_COLS + 4 * n).cast::<i32>().read_unaligned());
                        excess[t] = _mm512_dpbusd_epi32(excess[t], offset, *word);
                    }
                }
                for (half, acc) in acc.iter_mut().enumerate() {
                    let codes = pair.add(b % 2 * BLOCK_CODES + half * (BLOCK_CODES / 2));
                    let mut v = [_mm512_setzero_si512(); 4];
                    for (register, v) in v[..3].iter_mut().enumerate() {
                        *v = _mm512_loadu_si512(codes.add(64 * register).cast());
                    }
                    let low = select(two, _mm512_srli_epi16::<6>(v[0]), _mm512_srli_epi16::<4>(v[1]));
                    v[3] = select(four, low, _mm512_srli_epi16::<2>(v[2]));
                    let scales = pair.add(2 * BLOCK_CODES + b % 2 * TILE_ROWS + 16 * half);
                    let scales = _mm512_cvtepu8_epi32(_mm_loadu_si128(scales.cast()));
                    for t in 0..T {
                        let mut sum = _mm512_setzero_si512();
                        for (v, word) in v.iter().zip(words[t]) {
                            sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(*v, six), word);
                        }
                        let scaled = _mm512_mullo_epi32(_mm512_sub_epi32(sum, excess[t]), scales);
                        acc[t] = _mm512_add_epi32(acc[t], scaled);
                    }
                }
            }
            for t in 0..T {
                let to = sums[t].as_mut_ptr();
                _mm512_storeu_si512(to.cast(), acc[0][t]);
                _mm512_storeu_si512(to.add(16).cast(), acc[1][t]);
            }
        }
    }
}

/// [`Simd::fives_tile`] for `words` times four columns of a tile at `tile`.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VNNI and VBMI; `tile` points to whole blocks that have these columns, each of `x` to as many
/// activations.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vnni,avx512vbmi")]
unsafe fn fives<const T: usize>(tile: *const u8, words: usize, x: [*const i8; T], sums: &mut [[i32; TILE_ROWS]; T]) {
    // SAFETY: the caller promises AVX-512 F.
    let tables = unsafe { Tables::load() };
    let mut acc = [[[_mm512_setzero_si512(); DIGITS]; T]; 2];
    let blocks = words / DIGITS;
    for b in 0..blocks {
        // SAFETY: block b is one of the tile's, and x goes on for its columns.
        unsafe { add_fives(tables, tile.add(b * FIVES_BYTES), x.map(|x| x.add(b * FIVES_COLS)), DIGITS, &mut acc) };
    }
    let left = words - blocks * DIGITS;
    if left > 0 {
        // SAFETY: these columns are the last ones of x, in a block that the tile has.
        unsafe {
            let (block, columns) = (tile.add(blocks * FIVES_BYTES), x.map(|x| x.add(blocks * FIVES_COLS)));
            add_fives(tables, block, columns, left, &mut acc);
        }
    }
    for (t, sums) in sums.iter_mut().enumerate() {
        for (half, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let [a, b, c, d, e] = acc[half][t];
            // SAFETY: the store writes the 16 sums.
            unsafe {
                let four = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(four, e));
            }
        }
    }
}

/// Adds the products of the first `words` times four columns of a block.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VNNI and VBMI; `block` points to a block, each of `columns` to these activations.
#[inline(always)]
unsafe fn add_fives<const T: usize>(
    tables: Tables,
    block: *const u8,
    columns: [*const i8; T],
    words: usize,
    acc: &mut [[[__m512i; DIGITS]; T]; 2],
) {
    // SAFETY: the caller promises the instruction sets, two registers of a block, and four activations for each of `words`.
    unsafe {
        prefetch(block);
        prefetch(block.add(64));
        let digits = [tables.digits(block), tables.digits(block.add(64))];
        for d in 0..words {
            // More sums where tokens are few, so that products do not wait for each other.
            let set = match T {
                1 => d,
                2 => d % 2,
                _ => 0,
            };
            for t in 0..T {
                let word = _mm512_set1_epi32(columns[t].add(4 * d).cast::<i32>().read_unaligned());
                for half in 0..2 {
                    acc[half][t][set] = _mm512_dpbusd_epi32(acc[half][t][set], digits[half][d], word);
                }
            }
        }
    }
}

/// Digits of a byte of [`Packing::Fives`].
pub(super) const DIGITS: usize = FIVES_COLS / 4;

/// What bytes of [`Packing::Fives`] are looked up in, by the low six bits.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    /// Digits 0 and 1, by the byte.
    low: [__m512i; 2],
    /// All but the last two bits of the number of the other digits, by the byte.
    number: __m512i,
    /// Digits 2 to 4, by that number.
    high: [__m512i; 3],
}

impl Tables {
    /// The tables, in registers.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    pub(super) unsafe fn load() -> Self {
        // SAFETY: each table has 64 bytes; the caller promises AVX-512 F.
        unsafe {
            let [d0, d1, number, d2, d3, d4] = &TABLES;
            Tables {
                low: [_mm512_loadu_si512(d0.as_ptr().cast()), _mm512_loadu_si512(d1.as_ptr().cast())],
                number: _mm512_loadu_si512(number.as_ptr().cast()),
                high: [
                    _mm512_loadu_si512(d2.as_ptr().cast()),
                    _mm512_loadu_si512(d3.as_ptr().cast()),
                    _mm512_loadu_si512(d4.as_ptr().cast()),
                ],
            }
        }
    }

    /// The digits of 64 bytes.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and VBMI; `bytes` points to 64.
    #[inline(always)]
    pub(super) unsafe fn digits(&self, bytes: *const u8) -> [__m512i; DIGITS] {
        // SAFETY: the caller promises the instruction sets and 64 bytes.
        unsafe {
            let v = _mm512_loadu_si512(bytes.cast());
            let rest = _mm512_srli_epi16::<6>(v);
            let number = select(_mm512_set1_epi8(0b11), rest, _mm512_permutexvar_epi8(v, self.number));
            [
                _mm512_permutexvar_epi8(v, self.low[0]),
                _mm512_permutexvar_epi8(v, self.low[1]),
                _mm512_permutexvar_epi8(number, self.high[0]),
                _mm512_permutexvar_epi8(number, self.high[1]),
                _mm512_permutexvar_epi8(number, self.high[2]),
            ]
        }
    }
}

/// [`Tables`] in memory: of digits 0 and 1, of the number, of digits 2 to 4.
static TABLES: [[u8; 64]; 6] = {
    let mut tables = [[0; 64]; 6];
    let mut n = 0;
    while n < 64 {
        let byte = n as u8;
        (tables[0][n], tables[1][n], tables[2][n]) = (byte % 9 % 3, byte % 9 / 3, byte / 9 * 4);
        (tables[3][n], tables[4][n], tables[5][n]) = (byte % 3, byte / 3 % 3, byte / 9);
        n += 1;
    }
    tables
};

/// The bits of `a` where `mask` has ones, of `b` where it has zeros.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller promises AVX-512 F.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
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
