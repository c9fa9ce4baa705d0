//! `trion bench --kernels`: products of trits by themselves, beside what memory and the processor's instructions give.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use trion_core::{Rescale, TernaryMatrix};
use trion_engine::{Kernel, Packing, Parallel};

use crate::bench::{bandwidth, huge_pages, median};
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
const REPEATS: usize = 5;

/// Prints a row for each shape and packing.
pub(crate) fn run(kernel: Kernel, pool: &dyn Parallel) -> Outcome {
    let mut out = io::stdout().lock();
    let (memory, ceiling) = (bandwidth(pool)?, ceiling(kernel, pool));
    writeln!(
        out,
        "kernel {}, {} threads: memory gives {:.1} GB/s, registers {:.0} G operations/s",
        kernel.isa().name(),
        pool.threads(),
        memory / 1e9,
        ceiling / 1e9
    )?;
    writeln!(
        out,
        "{:>6} x {:<6} {:8} {:>9} {:>7} {:>10} {:>13} {:>13}",
        "rows", "cols", "packing", "token, us", "GB/s", "of memory", "64, Gop/s", "of registers"
    )?;
    let packings = [Packing::Twos, kernel.packing()];
    for [rows, cols] in SHAPES {
        for packing in &packings[..if packings[0] == packings[1] { 1 } else { 2 }] {
            let matrices = Matrices::new([rows, cols], *packing)?;
            let each = matrices.seconds(kernel, pool, matrices.count, 1)?;
            let few = (PROMPT_BYTES / matrices.bytes).max(1);
            let prompt = matrices.seconds(kernel, pool, few, TOKENS)?;
            let (bytes, operations) = (matrices.bytes as f64 / each, (2 * TOKENS * rows * cols) as f64 / prompt);
            let part = |of: f64| if of > 0.0 { format!("{:.0} %", 100.0 * operations / of) } else { String::new() };
            writeln!(
                out,
                "{rows:>6} x {cols:<6} {:8} {:>9.1} {:>7.1} {:>8.0} % {:>13.0} {:>13}",
                format!("{packing:?}").to_lowercase(),
                each * 1e6,
                bytes / 1e9,
                100.0 * bytes / memory,
                operations / 1e9,
                part(ceiling),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Operations a second of all threads together, on registers alone; 0 for a kernel that does not count them.
fn ceiling(kernel: Kernel, pool: &dyn Parallel) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..REPEATS {
        let operations = AtomicU64::new(0);
        let left = AtomicUsize::new(64 * pool.threads());
        let start = Instant::now();
        pool.run(&|| {
            while take(&left).is_some() {
                operations.fetch_add(kernel.multiply_registers(ROUNDS / 64), Ordering::Relaxed);
            }
        });
        rates.push(operations.into_inner() as f64 / start.elapsed().as_secs_f64());
    }
    median(&mut rates)
}

/// One less than is left, if there is any.
fn take(left: &AtomicUsize) -> Option<usize> {
    let one_less = |left: usize| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|before| before - 1)
}

/// Copies of one matrix of trits.
struct Matrices {
    memory: memmap2::MmapMut,
    shape: [usize; 2],
    packing: Packing,
    /// Bytes of each.
    bytes: usize,
    count: usize,
}

impl Matrices {
    fn new(shape: [usize; 2], packing: Packing) -> Result<Self, Failure> {
        let [rows, cols] = shape;
        let bytes = packing.bytes(rows, cols);
        let count = COPIES_BYTES / bytes;
        let mut memory = huge_pages(count * bytes)?;
        let mut first = vec![0; bytes];
        packing.clear(&mut first);
        let mut trits = vec![0; cols];
        for row in 0..rows {
            trits.iter_mut().enumerate().for_each(|(col, t)| *t = ((row * 7 + col * col + col / 5) % 3) as i8 - 1);
            packing.pack_row(&mut first, rows, cols, row, &trits)?;
        }
        memory.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(&first));
        Ok(Matrices { memory, shape, packing, bytes, count })
    }

    /// Seconds of a product of `tokens` tokens with one of the first `count` copies, each of which a thread computes.
    fn seconds(&self, kernel: Kernel, pool: &dyn Parallel, count: usize, tokens: usize) -> Result<f64, Failure> {
        let [rows, cols] = self.shape;
        let copies = self.memory.chunks_exact(self.bytes).take(count);
        let matrices: Vec<TernaryMatrix<'_>> = copies
            .map(|copy| TernaryMatrix::new(rows, cols, self.packing, copy, Rescale::Multiply(1.0)))
            .collect::<Result<_, _>>()?;
        // From the start of a line of the cache on, as a session's are.
        let q: Vec<i8> = (0..tokens * cols + LINE).map(|i| (i * 37 % 255) as u8 as i8).collect();
        let q = &q[q.as_ptr().align_offset(LINE).min(LINE)..][..tokens * cols];
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            let (left, failed) = (AtomicUsize::new(matrices.len()), OnceLock::new());
            let start = Instant::now();
            pool.run(&|| {
                let mut out = vec![0; tokens * rows];
                while let Some(matrix) = take(&left).and_then(|n| matrices.get(matrices.len() - 1 - n)) {
                    if let Err(error) = matrix.sums(kernel, q, &mut out) {
                        failed.get_or_init(|| error);
                    }
                }
            });
            if let Some(error) = failed.into_inner() {
                return Err(error.into());
            }
            times.push(start.elapsed().as_secs_f64() / matrices.len() as f64);
        }
        Ok(median(&mut times))
    }
}
