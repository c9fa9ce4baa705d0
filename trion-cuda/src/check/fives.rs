//! The kernels of `fives.cu` and `fives_gemm.cu`: weights of which five lie in a byte.

use super::data::{Rule, Sink, Trits};
use super::products::{Placed, inputs, place};
use super::project::{pair_of, rows_of, units_of};
use super::reference::Span;
use super::{Bench, Named};
use crate::error::Result;
use crate::fives::{self, Blocks};
use crate::kernels::{Jobs, KernelSet, MOST_SHARED, Shape, args};
use crate::layout::{FIVES_COLS, Packing};

/// Warps of a block of threads, at most.
const MOST_WARPS: usize = 32;
/// Columns that neither words, lanes nor pieces divide, and some that they do.
const COLS: [usize; 15] = [1, 15, 19, 20, 21, 80, 81, 319, 320, 321, 1000, 2560, 2561, 5121, 10_240];
/// Rows of matrices that share an input, and whether they are gate and up.
const ROWS: [(&[usize], bool); 12] = [
    (&[1], false),
    (&[7], false),
    (&[8], false),
    (&[17], false),
    (&[9, 30], false),
    (&[40, 9, 1], false),
    (&[100, 31, 65], false),
    (&[1, 1], true),
    (&[7, 7], true),
    (&[8, 8], true),
    (&[9, 9], true),
    (&[100, 100], true),
];
/// So many that a block of threads goes round several times on any card.
const MANY_ROWS: [(&[usize], bool); 2] = [(&[9000, 2500, 2501], false), (&[6912, 6912], true)];

/// Matrices of a launch, and what happens to their outputs.
struct Launch {
    matrices: Vec<Trits>,
    pair: bool,
    sink: Sink,
}

impl Launch {
    fn new(bench: &mut Bench, (rows, pair): (&[usize], bool), cols: usize, number: usize) -> Result<Self> {
        let make = |rows: &usize| {
            let rule = bench.random.rule();
            Trits::packed(&mut bench.random, [*rows, cols], rule, Packing::Fives)
        };
        let matrices = rows.iter().map(make).collect::<Result<_>>()?;
        // One matrix may also be an up projection whose gate is there.
        let sinks = match (pair, rows.len()) {
            (true, _) => &Sink::ALL[2..],
            (false, 1) => &Sink::ALL,
            (false, _) => &Sink::ALL[..2],
        };
        Ok(Launch { matrices, pair, sink: sinks[number % sinks.len()] })
    }

    fn cols(&self) -> usize {
        self.matrices[0].cols
    }

    fn tiles(&self) -> usize {
        self.cols().div_ceil(FIVES_COLS)
    }

    /// What the kernel is told of the matrices, with the outputs that are expected, and the number of units.
    fn jobs(&self, bench: &mut Bench, case: &mut super::case::Case, inputs: &[Span]) -> (Jobs, usize) {
        let jobs = if self.pair {
            pair_of(case, &self.matrices, inputs, self.sink)
        } else {
            let old = |matrix: &Trits| bench.random.floats(inputs.len() * matrix.rows);
            let old: Vec<Vec<f32>> = self.matrices.iter().map(old).collect();
            rows_of(case, &self.matrices, inputs, &old, self.sink)
        };
        units_of(jobs, &self.matrices, self.pair)
    }

    fn name(&self) -> String {
        let shapes: Vec<(usize, Rule)> = self.matrices.iter().map(|matrix| (matrix.rows, matrix.rule)).collect();
        format!("{} columns, rows and scales {shapes:?}, {:?}", self.cols(), self.sink)
    }
}

/// Of two kernels, those of rows and of pairs, the one that a launch has; none on an older card.
macro_rules! kernel {
    ($bench:expr, $launch:expr, $rows:ident, $pair:ident) => {{
        let kernels = $bench.device.kernels();
        let [rows, pair] = [(stringify!($rows), kernels.$rows), (stringify!($pair), kernels.$pair)];
        let (name, kernel) = if $launch.pair { pair } else { rows };
        kernel.map(|kernel| -> Named { (name, kernel) })
    }};
}

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    if bench.device.kernel_set() != KernelSet::Sm90 {
        return Ok(());
    }
    for (i, cols) in COLS.into_iter().enumerate() {
        for (j, rows) in ROWS.into_iter().enumerate() {
            // As a session has them, and others for each kernel.
            let tokens: &[usize] = if cols > 2600 { &[1, 8, 65] } else { &[1, 2, 3, 7, 8, 9, 16, 17, 63, 64, 65, 130] };
            for tokens in tokens {
                let launch = Launch::new(bench, rows, cols, i + j + tokens)?;
                check_prepared(bench, &launch, *tokens)?;
            }
        }
    }
    for (i, rows) in MANY_ROWS.into_iter().enumerate() {
        let launch = Launch::new(bench, rows, 321, i)?;
        for tokens in [1, 8, 65] {
            check_prepared(bench, &launch, tokens)?;
        }
    }
    Ok(())
}

/// Groups and blocks of threads: as a session has them, and few, which go round more often.
fn shapes(bench: &mut Bench, units: usize, tiles: usize, at_once: usize) -> [Blocks; 3] {
    let usual = Blocks::new(units, tiles, bench.device.multiprocessors(), at_once);
    let groups = 1 + bench.random.below((MOST_WARPS / tiles).min(8));
    let blocks = 1 + bench.random.below(3);
    let of = |groups, blocks| Blocks::of(units, tiles, [groups, blocks], at_once);
    [usual, of(1, 1), of(groups, blocks)]
}

/// Products with inputs that are prepared.
fn check_prepared(bench: &mut Bench, launch: &Launch, tokens: usize) -> Result<()> {
    let (cols, tiles) = (launch.cols(), launch.tiles());
    let mut inputs = inputs(&mut bench.random, tokens, cols, cols);
    for input in &mut inputs {
        // The largest sums that there can be, of either sign.
        match bench.random.below(4) {
            0 => input[0].q.fill(i8::MIN),
            1 => input[0].q.fill(i8::MAX),
            _ => {}
        }
    }
    let mut case = bench.case();
    let Placed { q, q_stride, scales, spans } = place(&mut case, &inputs, cols, FIVES_COLS);
    let (jobs, units) = launch.jobs(bench, &mut case, &inputs.concat());
    let name = format!("{}, {tokens} tokens", launch.name());
    let by_groups = [
        (kernel!(bench, launch, fives_gemv, fives_gemv_pair).filter(|_| tokens == 1), 1),
        (
            kernel!(bench, launch, fives_gemv_one, fives_gemv_pair)
                .filter(|_| tokens == 1 && launch.matrices.len() == 1),
            1,
        ),
        (kernel!(bench, launch, fives_tokens, fives_tokens_pair), fives::TOKENS),
    ];
    for (kernel, at_once) in by_groups {
        let Some(kernel) = kernel else { continue };
        for Blocks { groups, blocks, shared } in shapes(bench, units, tiles, at_once) {
            if shared > MOST_SHARED {
                continue;
            }
            let args = args![jobs, units, q, q_stride, scales, spans, tiles, groups, tokens];
            let shape = Shape { grid: [blocks, tokens.div_ceil(at_once), 1], block: [32, groups * tiles], shared };
            bench.run(format!("{name}, {groups} groups, {blocks} blocks"), &case, &[(kernel, shape, args)])?;
        }
    }
    let Some(kernel) = kernel!(bench, launch, fives_gemm, fives_gemm_pair) else { return Ok(()) };
    let args = args![jobs, units, q, q_stride, scales, spans, tiles, tokens];
    let grid = [tokens.div_ceil(fives::GEMM_TOKENS), units.div_ceil(fives::GEMM_UNITS), 1];
    bench.run(name, &case, &[(kernel, Shape { grid, block: [32, fives::GEMM_UNITS], shared: 0 }, args)])
}
