//! Products of trits with 32 tokens on the tile registers of AMX: sixteen rows of 64 bytes each, of which one instruction
//! multiplies two and adds the products to a third.
//!
//! Trits of a few hundred columns are unpacked to bytes, which lie as `kernel/avx512.rs` multiplies them: a register of 64
//! bytes is four columns of sixteen rows, and sixteen of these registers are a tile register. Activations are read where
//! they lie, a token to a row of the register. Sums are of 32 bits and wrap.
//!
//! Tile registers keep nothing from one piece of assembly to the next but their shape, which [`Shape`] sets and clears.

#![allow(clippy::wildcard_imports, clippy::cast_ptr_alignment)] // every load and store is of the unaligned form

use core::arch::asm;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::avx512::{DIGITS, Tables};
use super::prefetch::prefetch;
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, FIVES_BYTES, Packing, TILE_ROWS};

/// Tokens that go together.
pub(super) const TOKENS: usize = 2 * ROWS;
/// Rows of a tile register.
const ROWS: usize = 16;
/// Bytes of a row of a tile register, and columns of a step.
const STEP: usize = 64;
/// Columns that are unpacked at once: whole steps, and whole blocks of either packing.
const CHUNK: usize = 320;

/// Unpacked trits of a chunk: for each half of the rows, a register for each four columns.
type Chunk = Aligned<[[[u8; STEP]; CHUNK / 4]; 2]>;
/// Sums `[tokens / 16][rows / 16]`, each of sixteen tokens and sixteen rows.
type Sums = Aligned<[[[[i32; ROWS]; ROWS]; 2]; 2]>;

/// In lines of the cache, which rows of tile registers are then.
#[repr(align(64))]
struct Aligned<T>(T);

/// Asks the operating system whether this process may use the tile registers, which needs to be asked once, and answers for
/// all threads.
pub(super) fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const TILE_DATA: u64 = 18;
        let answer: i64;
        // SAFETY: the system call of x86-64 Linux, which touches no memory of this process; an older kernel refuses it.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        answer == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shape of all tile registers, as long as it lives: sixteen rows of 64 bytes.
struct Shape(());

impl Shape {
    /// Sets it.
    ///
    /// # Safety
    /// This process may use AMX, and no other shape is alive on this thread.
    unsafe fn new() -> Self {
        static CONFIG: [u8; 64] = {
            let mut config = [0; 64];
            config[0] = 1; // the palette of eight registers
            let mut register = 0;
            while register < 8 {
                config[16 + 2 * register] = STEP as u8;
                config[48 + register] = ROWS as u8;
                register += 1;
            }
            config
        };
        // SAFETY: reads the 64 bytes of a valid configuration; the caller promises that the instruction is there.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags)) };
        Shape(())
    }
}

impl Drop for Shape {
    /// Clears registers and shape, which a thread would otherwise carry through every change of context.
    fn drop(&mut self) {
        // SAFETY: a shape was set, so the instruction is there; tile registers hold nothing that is wanted.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// [`super::Simd::ternary_tile`] for 32 tokens.
///
/// # Safety
/// This process may use AMX; the CPU has AVX-512 F, BW and VBMI; T is [`TOKENS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn tile<const T: usize>(
    packing: Packing,
    tile: &[u8],
    x: [&[i8]; T],
    sums: &mut [[i32; TILE_ROWS]; T],
) {
    let cols = x.iter().fold(tile.len() / packing.block_bytes() * packing.block_cols(), |cols, x| cols.min(x.len()));
    let stride = stride(&x);
    let mut chunk = MaybeUninit::<Chunk>::uninit();
    let mut acc = Aligned([[[[0; ROWS]; ROWS]; 2]; 2]);
    // SAFETY: the caller promises AMX, and this is the only shape.
    let _shape = unsafe { Shape::new() };
    for (n, weights) in tile.chunks(packing.tile_bytes(CHUNK)).enumerate() {
        let columns = n * CHUNK..cols.min((n + 1) * CHUNK);
        if columns.is_empty() {
            break;
        }
        let trits = chunk.as_mut_ptr();
        // SAFETY: the caller promises the instruction sets; `weights` is whole blocks of at most a chunk, which is
        // written up to a whole number of steps.
        unsafe {
            match packing {
                Packing::Twos => unpack_twos(weights, trits),
                Packing::Fives => unpack_fives(weights, trits),
            }
        }
        let (stride, direct) = stride.map_or((0, 0), |stride| (stride, columns.len() / STEP));
        let rows = [&x[0][columns.start..], &x[ROWS][columns.start..]].map(<[i8]>::as_ptr);
        // SAFETY: `weights` gave at least as many steps as `columns` has; every token has these columns, and begins
        // `stride` bytes behind the one before it.
        unsafe { multiply(trits.cast(), rows, stride, direct, &mut acc) };
        for step in direct..columns.len().div_ceil(STEP) {
            // Rows that do not lie at one stride, and a last step whose missing columns count nothing, as zeros do.
            let from = columns.start + step * STEP;
            let mut rows = Aligned([[0; STEP]; T]);
            for (row, x) in rows.0.iter_mut().zip(x) {
                let there = &x[from..cols.min(from + STEP)];
                row[..there.len()].copy_from_slice(there);
            }
            // SAFETY: `weights` gave this step, and 32 rows of 64 bytes follow each other.
            unsafe {
                let trits = trits.cast::<u8>().add(step * STEP / 4 * 64);
                multiply(trits, [rows.0[0].as_ptr(), rows.0[ROWS].as_ptr()], STEP as isize, 1, &mut acc);
            }
        }
    }
    for (t, sums) in sums.iter_mut().enumerate() {
        let (low, high) = sums.split_at_mut(ROWS);
        low.copy_from_slice(&acc.0[t / ROWS][0][t % ROWS]);
        high.copy_from_slice(&acc.0[t / ROWS][1][t % ROWS]);
    }
}

/// The bytes from each token to the next, if they are the same for all.
fn stride(x: &[&[i8]]) -> Option<isize> {
    // Exposed, since the tile registers reach all tokens from the first one's address.
    let address = |x: &[i8]| x.as_ptr().expose_provenance() as isize;
    let (first, rest) = x.split_first()?;
    let mut last = address(first);
    let mut stride = None;
    for x in rest {
        let step = address(x).wrapping_sub(last);
        if *stride.get_or_insert(step) != step {
            return None;
        }
        last = address(x);
    }
    stride
}

/// Adds to `sums` the products of `steps` times 64 columns of a chunk with sixteen tokens at each of `x` that lie `stride`
/// bytes from each other.
///
/// # Safety
/// A [`Shape`] is alive; `trits` points into a [`Chunk`], which holds as many steps from there on, as each token does.
unsafe fn multiply(trits: *const u8, x: [*const i8; 2], stride: isize, steps: usize, sums: &mut Sums) {
    if steps == 0 {
        return;
    }
    // SAFETY: the caller promises the shape, by which loads read sixteen rows of 64 bytes: of trits and of tokens as
    // promised, of sums the 1024 bytes that each of the four has.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {row}*1]",
            "tileloadd tmm1, [{sums} + {row}*1 + 1024]",
            "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
            "tileloadd tmm3, [{sums} + {row}*1 + 3072]",
            "2:",
            "tileloadd tmm4, [{trits} + {row}*1]",
            "tileloadd tmm5, [{trits} + {row}*1 + {half}]",
            "tileloadd tmm6, [{x0} + {stride}*1]",
            "tileloadd tmm7, [{x1} + {stride}*1]",
            "tdpbsud tmm0, tmm6, tmm4",
            "tdpbsud tmm1, tmm6, tmm5",
            "tdpbsud tmm2, tmm7, tmm4",
            "tdpbsud tmm3, tmm7, tmm5",
            "add {trits}, 1024",
            "add {x0}, 64",
            "add {x1}, 64",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {row}*1], tmm0",
            "tilestored [{sums} + {row}*1 + 1024], tmm1",
            "tilestored [{sums} + {row}*1 + 2048], tmm2",
            "tilestored [{sums} + {row}*1 + 3072], tmm3",
            half = const size_of::<Chunk>() / 2,
            sums = in(reg) sums,
            row = in(reg) STEP,
            trits = inout(reg) trits => _,
            x0 = inout(reg) x[0] => _,
            x1 = inout(reg) x[1] => _,
            stride = in(reg) stride,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// [`super::Simd::multiply_registers`], four products a round.
///
/// # Safety
/// This process may use AMX, and no [`Shape`] is alive on this thread.
pub(super) unsafe fn multiply_registers(rounds: usize) -> u64 {
    // SAFETY: the caller promises AMX, and this is the only shape.
    let _shape = unsafe { Shape::new() };
    for _ in 0..rounds {
        // SAFETY: a shape is set; registers are multiplied with registers, whatever they hold.
        unsafe {
            asm!(
                "tdpbsud tmm0, tmm6, tmm4", "tdpbsud tmm1, tmm6, tmm5",
                "tdpbsud tmm2, tmm7, tmm4", "tdpbsud tmm3, tmm7, tmm5",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
    (rounds * 4 * 2 * ROWS * ROWS * STEP) as u64
}

/// Writes the digits of blocks of [`Packing::Twos`], and zeros up to a whole number of steps.
///
/// # Safety
/// The CPU has AVX-512 F and BW; `weights` is whole blocks of at most a chunk.
#[inline(always)]
unsafe fn unpack_twos(weights: &[u8], to: *mut Chunk) {
    let blocks = weights.len() / BLOCK_BYTES;
    // SAFETY: block b < blocks lies within `weights`, and its four registers of each half within the chunk, as those of a
    // started step do; the caller promises the instruction sets.
    unsafe {
        let low_bits = _mm512_set1_epi8(3);
        for b in 0..blocks {
            for half in 0..2 {
                let from = weights.as_ptr().add(b * BLOCK_BYTES + 64 * half);
                prefetch(from);
                let mut packed = _mm512_loadu_si512(from.cast());
                for j in 0..BLOCK_COLS / 4 {
                    store(to, half, b * BLOCK_COLS / 4 + j, _mm512_and_si512(packed, low_bits));
                    packed = _mm512_srli_epi16::<2>(packed);
                }
            }
        }
        fill_step(to, blocks * BLOCK_COLS / 4);
    }
}

/// Writes the digits of blocks of [`Packing::Fives`], and zeros up to a whole number of steps.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VBMI; `weights` is whole blocks of at most a chunk.
#[inline(always)]
unsafe fn unpack_fives(weights: &[u8], to: *mut Chunk) {
    let blocks = weights.len() / FIVES_BYTES;
    // SAFETY: block b < blocks lies within `weights`, and its five registers of each half within the chunk, as those of a
    // started step do; the caller promises the instruction sets.
    unsafe {
        let tables = Tables::load();
        for b in 0..blocks {
            for half in 0..2 {
                let from = weights.as_ptr().add(b * FIVES_BYTES + 64 * half);
                prefetch(from);
                for (d, digits) in tables.digits(from).into_iter().enumerate() {
                    store(to, half, DIGITS * b + d, digits);
                }
            }
        }
        fill_step(to, DIGITS * blocks);
    }
}

/// Zeros from register `from` of a chunk to the end of a step.
///
/// # Safety
/// The CPU has AVX-512 F; `from` is at most the registers of a chunk.
#[inline(always)]
unsafe fn fill_step(to: *mut Chunk, from: usize) {
    for n in from..from.next_multiple_of(STEP / 4) {
        for half in 0..2 {
            // SAFETY: a chunk is whole steps, so register n is one of its.
            unsafe { store(to, half, n, _mm512_setzero_si512()) };
        }
    }
}

/// Writes register `n` of half a chunk.
///
/// # Safety
/// The CPU has AVX-512 F; `to` points to a chunk, `half` is 0 or 1, and `n` one of its registers.
#[inline(always)]
unsafe fn store(to: *mut Chunk, half: usize, n: usize, digits: __m512i) {
    // SAFETY: the caller promises that these 64 bytes are the chunk's.
    unsafe { _mm512_storeu_si512(to.cast::<u8>().add((half * CHUNK / 4 + n) * 64).cast(), digits) };
}
