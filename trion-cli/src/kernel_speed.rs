//! `trion bench --kernels`: products of trits by themselves, beside what memory and the processor's instructions give.

use std::hint::black_box;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use trion_core::{Rescale, TernaryMatrix};
use trion_engine::{Kernel, Packing, Parallel};

use crate::bench::{huge_pages, median};
use crate::common::{Failure, Outcome};

/// Rows and columns of the products: those of `BitNet` b1.58 2B4T, and its keys and values alone.
const SHAPES: [[usize; 2]; 5] = [[2560, 2560], [640, 2560], [6912, 2560], [13_824, 2560], [2560, 6912]];
/// Bytes of all copies of a matrix, beyond any cache.
const COPIES_BYTES: usize = 640 << 20;
/// Bytes of the copies that many tokens are multiplied with.
const PROMPT_BYTES: usize = 40 << 20;
/// Tokens that are multiplied together.
const TOKENS: usize = 64;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Rounds on registers alone.
const ROUNDS: usize = 1 << 20;
/// Measurements; the median counts.
const REPEATS: usize = 9;

/// Prints a row for each shape and packing.
pub(crate) fn run(kernel: Kernel, pool: &dyn Parallel) -> Outcome {
    let mut out = io::stdout().lock();
    writeln!(out, "kernel {}, {} threads; medians of {REPEATS}:", kernel.isa().name(), pool.threads())?;
    writeln!(
        out,
        "{:>6} x {:<6} {:8} {:>9} {:>7} {:>11} {:>9} {:>11} {:>9} {:>13} {:>16} {:>13}",
        "rows",
        "cols",
        "packing",
        "token, us",
        "GB/s",
        "plain, GB/s",
        "of plain",
        "ahead, GB/s",
        "of ahead",
        "64, Gop/s",
        "registers, Gop/s",
        "of registers"
    )?;
    let packings = [Packing::Twos, kernel.packing()];
    for [rows, cols] in SHAPES {
        for packing in &packings[..if packings[0] == packings[1] { 1 } else { 2 }] {
            let copies = Copies::new([rows, cols], *packing)?;
            let matrices = copies.matrices()?;
            let rate = |work: &Work<'_>| Ok(copies.bytes as f64 / seconds(pool, &matrices, work)?);
            // Each measurement beside its limits, as others use this machine, too.
            let [(token, _), (plain, of_plain), (ahead, of_ahead)] =
                beside([&mut || rate(&product(kernel, &copies, 1)), &mut || rate(&read(kernel, false)), &mut || {
                    rate(&read(kernel, true))
                }])?;
            let operations = (2 * TOKENS * rows * cols) as f64;
            let few = &matrices[..(PROMPT_BYTES / copies.bytes).clamp(1, matrices.len())];
            let [(prompt, _), (registers, of_registers)] =
                beside([&mut || Ok(operations / seconds(pool, few, &product(kernel, &copies, TOKENS))?), &mut || {
                    Ok(ceiling(kernel, pool))
                }])?;
            let known = registers > 0.0;
            writeln!(
                out,
                "{rows:>6} x {cols:<6} {:8} {:>9.1} {:>7.1} {:>11.1} {:>7.0} % {:>11.1} {:>7.0} % {:>13.0} {:>16} {:>13}",
                format!("{packing:?}").to_lowercase(),
                copies.bytes as f64 / token * 1e6,
                token / 1e9,
                plain / 1e9,
                100.0 * of_plain,
                ahead / 1e9,
                100.0 * of_ahead,
                prompt / 1e9,
                if known { format!("{:.0}", registers / 1e9) } else { String::new() },
                if known { format!("{:.0} %", 100.0 * of_registers) } else { String::new() },
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures a rate.
type Measure<'a> = &'a mut dyn FnMut() -> Result<f64, Failure>;

/// A rate, and limits of it, measured in turns: of each the median, and that of what the first is of it.
fn beside<const N: usize>(measures: [Measure<'_>; N]) -> Result<[(f64, f64); N], Failure> {
    let mut measured = [const { (Vec::new(), Vec::new()) }; N];
    for _ in 0..REPEATS {
        let mut first = None;
        for (n, (rates, fractions)) in measured.iter_mut().enumerate() {
            let rate = measures[n]()?;
            rates.push(rate);
            fractions.push(*first.get_or_insert(rate) / rate);
        }
    }
    Ok(measured.each_mut().map(|(rates, fractions)| (median(rates), median(fractions))))
}

/// Operations a second of all threads together, on registers alone; 0 for a kernel that does not count them.
fn ceiling(kernel: Kernel, pool: &dyn Parallel) -> f64 {
    let operations = AtomicU64::new(0);
    let left = AtomicUsize::new(64 * pool.threads());
    let start = Instant::now();
    pool.run(&|| {
        while take(&left).is_some() {
            operations.fetch_add(kernel.multiply_registers(ROUNDS / 64), Ordering::Relaxed);
        }
    });
    operations.into_inner() as f64 / start.elapsed().as_secs_f64()
}

/// One less than is left, if there is any.
fn take(left: &AtomicUsize) -> Option<usize> {
    let one_less = |left: usize| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|before| before - 1)
}

/// What is done with a matrix; the list is a thread's own, and as long as it needs.
type Work<'a> = dyn Fn(&TernaryMatrix<'_>, &mut Vec<i32>) -> Result<(), Failure> + Sync + 'a;

/// Seconds of `work` with one of `matrices`, each of which a thread takes.
fn seconds(pool: &dyn Parallel, matrices: &[TernaryMatrix<'_>], work: &Work<'_>) -> Result<f64, Failure> {
    let (left, failed) = (AtomicUsize::new(matrices.len()), Mutex::new(None));
    let start = Instant::now();
    pool.run(&|| {
        let mut list = Vec::new();
        while let Some(matrix) = take(&left).and_then(|n| matrices.get(matrices.len() - 1 - n)) {
            if let Err(error) = work(matrix, &mut list) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64() / matrices.len() as f64;
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(seconds), Err)
}

/// Reads a matrix, asked for ahead or not.
fn read(kernel: Kernel, ahead: bool) -> impl Fn(&TernaryMatrix<'_>, &mut Vec<i32>) -> Result<(), Failure> + Sync {
    move |matrix, _| {
        black_box(kernel.read_memory(matrix.packed(), ahead));
        Ok(())
    }
}

/// Multiplies a matrix with `tokens` tokens.
fn product(
    kernel: Kernel,
    copies: &Copies,
    tokens: usize,
) -> impl Fn(&TernaryMatrix<'_>, &mut Vec<i32>) -> Result<(), Failure> + Sync {
    let [rows, cols] = copies.shape;
    // From the start of a line of the cache on, as a session's are.
    let q: Vec<i8> = (0..tokens * cols + LINE).map(|i| (i * 37 % 255) as u8 as i8).collect();
    let from = q.as_ptr().align_offset(LINE).min(LINE);
    move |matrix, sums| {
        sums.resize(tokens * rows, 0);
        Ok(matrix.sums(kernel, &q[from..][..tokens * cols], sums)?)
    }
}

/// Copies of one matrix of trits, in memory.
struct Copies {
    memory: memmap2::MmapMut,
    shape: [usize; 2],
    packing: Packing,
    /// Bytes of each.
    bytes: usize,
}

impl Copies {
    fn new(shape: [usize; 2], packing: Packing) -> Result<Self, Failure> {
        let [rows, cols] = shape;
        let bytes = packing.bytes(rows, cols);
        let mut memory = huge_pages(COPIES_BYTES / bytes * bytes)?;
        let mut first = vec![0; bytes];
        packing.clear(&mut first);
        let mut trits = vec![0; cols];
        for row in 0..rows {
            trits.iter_mut().enumerate().for_each(|(col, t)| *t = ((row * 7 + col * col + col / 5) % 3) as i8 - 1);
            packing.pack_row(&mut first, rows, cols, row, &trits)?;
        }
        memory.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(&first));
        Ok(Copies { memory, shape, packing, bytes })
    }

    fn matrices(&self) -> Result<Vec<TernaryMatrix<'_>>, Failure> {
        let [rows, cols] = self.shape;
        let matrix = |copy| TernaryMatrix::new(rows, cols, self.packing, copy, Rescale::Multiply(1.0));
        Ok(self.memory.chunks_exact(self.bytes).map(matrix).collect::<Result<_, _>>()?)
    }
}
