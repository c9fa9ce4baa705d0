//! x86-64 with AVX-512 F, BW and VNNI, and with VBMI where the CPU has it; and the same with the tile registers of AMX for
//! products with many tokens.

#![allow(clippy::wildcard_imports, clippy::cast_ptr_alignment)] // every load and store is of the unaligned form

use core::arch::x86_64::*;
use core::hint::black_box;

use super::prefetch::prefetch;
use super::vector::{Simd, Vector, add_sums, prefetch_lines, triples_by_twos};
use super::{Op, amx};
use crate::int6::{BLOCK_CODES, OFFSET, PAIR_BYTES};
use crate::numeric::LANES;
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, Packing, TILE_ROWS, TRIPLES_BYTES, TRIPLES_COLS};

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

    /// Runs an operation compiled for this instruction set.
    pub(super) fn run<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vnni")]
        fn inner<O: Op>(proof: Avx512, op: O) -> O::Output {
            op.run(proof)
        }
        // SAFETY: `self` proves these features.
        unsafe { inner(self, op) }
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
        prefetch(core::ptr::from_ref(at).cast());
    }

    #[inline(always)]
    fn most_tokens(self) -> usize {
        if self.amx { amx::TOKENS } else { 8 }
    }

    #[inline(always)]
    fn twos_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        if self.amx && T == amx::TOKENS {
            // SAFETY: `amx` says that AMX may be used, and that VBMI is there; `self` proves the others.
            return unsafe { amx::tile(Packing::Twos, tile, x, sums) };
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
    fn triples_tile<const T: usize>(self, tile: &[u8], x: [&[i8]; T], sums: &mut [[i32; TILE_ROWS]; T]) {
        if self.amx && T == amx::TOKENS {
            // SAFETY: `amx` says that AMX may be used, and that VBMI is there; `self` proves the others.
            return unsafe { amx::tile(Packing::Triples, tile, x, sums) };
        }
        if !self.vbmi {
            return triples_by_twos(self, tile, x, sums);
        }
        let blocks = tile.len() / TRIPLES_BYTES;
        let whole = x.iter().fold(blocks, |n, x| n.min(x.len() / TRIPLES_COLS));
        // SAFETY: `vbmi` says that the CPU has VBMI, `self` proves the others; `whole` blocks lie within `tile` and each x.
        unsafe { triples(tile.as_ptr(), whole, x.map(<[i8]>::as_ptr), sums) };
        if let Some(last) = tile.as_chunks::<TRIPLES_BYTES>().0.get(whole) {
            // What x lacks of a last block counts nothing: zeros do the same.
            let mut filled = [[0; TRIPLES_COLS]; T];
            for (filled, x) in filled.iter_mut().zip(x) {
                let rest = &x[whole * TRIPLES_COLS..];
                let length = rest.len().min(TRIPLES_COLS);
                filled[..length].copy_from_slice(&rest[..length]);
            }
            let mut part = [[0; TILE_ROWS]; T];
            // SAFETY: as above, for one block and 96 activations.
            unsafe { triples(last.as_ptr(), 1, filled.each_ref().map(|x| x.as_ptr()), &mut part) };
            add_sums(sums, &part);
        }
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

/// [`Simd::triples_tile`] for `blocks` blocks of a tile at `tile`.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VNNI and VBMI; `tile` points to `blocks` blocks of 640 bytes, each of `x` to 96 activations
/// for each of them.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vnni,avx512vbmi")]
unsafe fn triples<const T: usize>(tile: *const u8, blocks: usize, x: [*const i8; T], sums: &mut [[i32; TILE_ROWS]; T]) {
    // SAFETY: the caller promises AVX-512 F.
    let tables = unsafe { digit_tables() };
    let mut acc = [[[_mm512_setzero_si512(); 2]; T]; 2];
    for b in 0..blocks {
        // SAFETY: block b is one of `blocks`, and has two halves of five registers; triple k belongs to 12 columns of the
        // block's 96.
        unsafe {
            let block = tile.add(b * TRIPLES_BYTES);
            let columns = x.map(|x| x.add(b * TRIPLES_COLS));
            for k in 0..5 {
                prefetch(block.add(64 * k));
                prefetch(block.add(TRIPLES_BYTES / 2 + 64 * k));
                add_triples(tables, [register(block, 0, k), register(block, 1, k)], columns, k, &mut acc);
            }
            let upper = [upper_triples(block, 0), upper_triples(block, 1)];
            for k in 0..3 {
                add_triples(tables, [upper[0][k], upper[1][k]], columns, 5 + k, &mut acc);
            }
        }
    }
    for (t, sums) in sums.iter_mut().enumerate() {
        for (half, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let [a, b] = acc[half][t];
            // SAFETY: the store writes the 16 sums.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(a, b)) };
        }
    }
}

/// The tables of the three digits of a triple.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
pub(super) unsafe fn digit_tables() -> [__m512i; 3] {
    let [low, middle, high] = &DIGITS;
    // SAFETY: each table has 64 bytes; the caller promises AVX-512 F.
    unsafe {
        [
            _mm512_loadu_si512(low.as_ptr().cast()),
            _mm512_loadu_si512(middle.as_ptr().cast()),
            _mm512_loadu_si512(high.as_ptr().cast()),
        ]
    }
}

/// Triples 5 to 7 of the bytes of half a block, which are put together from upper bits (see `packing`): low bits of one
/// operand, the rest of the other.
///
/// # Safety
/// As [`register`].
#[inline(always)]
pub(super) unsafe fn upper_triples(block: *const u8, half: usize) -> [__m512i; 3] {
    // SAFETY: the caller promises AVX-512 F and such a block.
    unsafe {
        let (three, four) = (_mm512_set1_epi8(0b111), _mm512_set1_epi8(0b1111));
        let (b0, b1) = (register(block, half, 0), register(block, half, 1));
        let (b2, b3) = (register(block, half, 2), register(block, half, 3));
        let low = select(three, _mm512_srli_epi16::<5>(register(block, half, 4)), _mm512_srli_epi16::<4>(b1));
        [
            select(three, _mm512_srli_epi16::<5>(b0), _mm512_srli_epi16::<2>(b1)),
            select(three, _mm512_srli_epi16::<5>(b2), _mm512_srli_epi16::<2>(b3)),
            select(four, low, _mm512_srli_epi16::<3>(b3)),
        ]
    }
}

/// Register `n` of half a block of triples.
///
/// # Safety
/// The CPU has AVX-512 F; `block` points to a block, `half` is 0 or 1, and `n` at most 4.
#[inline(always)]
pub(super) unsafe fn register(block: *const u8, half: usize, n: usize) -> __m512i {
    // SAFETY: the caller promises 640 bytes, of which these are 64.
    unsafe { _mm512_loadu_si512(block.add(half * TRIPLES_BYTES / 2 + 64 * n).cast()) }
}

/// Adds the products of triple `k`, whose numbers are in the low five bits of the bytes of `v`, of both halves of a block.
///
/// # Safety
/// As [`triples`]; each of `columns` points to the 96 activations of the block.
#[inline(always)]
unsafe fn add_triples<const T: usize>(
    tables: [__m512i; 3],
    v: [__m512i; 2],
    columns: [*const i8; T],
    k: usize,
    acc: &mut [[[__m512i; 2]; T]; 2],
) {
    for (d, table) in tables.into_iter().enumerate() {
        // SAFETY: the caller promises VBMI, and activations of which these are four.
        unsafe {
            let digits = [_mm512_permutexvar_epi8(v[0], table), _mm512_permutexvar_epi8(v[1], table)];
            for t in 0..T {
                let word = _mm512_set1_epi32(columns[t].add(12 * k + 4 * d).cast::<i32>().read_unaligned());
                // Two sums where tokens are few, so that products do not wait for each other.
                let set = if T <= 2 { d % 2 } else { 0 };
                for half in 0..2 {
                    acc[half][t][set] = _mm512_dpbusd_epi32(acc[half][t][set], digits[half], word);
                }
            }
        }
    }
}

/// The bits of `a` where `mask` has ones, of `b` where it has zeros.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller promises AVX-512 F.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
}

/// The three digits of a triple, by the low six bits of a byte, which is what a lookup takes: each of 0 to 31 twice, as the
/// sixth bit belongs to another triple.
static DIGITS: [[u8; 64]; 3] = {
    let mut digits = [[0; 64]; 3];
    let mut n = 0;
    while n < 64 {
        let triple = n as u8 % 32;
        (digits[0][n], digits[1][n], digits[2][n]) = (triple % 3, triple / 3 % 3, triple / 9);
        n += 1;
    }
    digits
};

/// Lanes 8 to 15.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn upper_half(v: __m512) -> __m256 {
    // SAFETY: the caller promises AVX-512 F.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))) }
}
