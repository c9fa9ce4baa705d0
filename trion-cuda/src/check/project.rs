//! The kernels of `project.cu`.

use super::case::{Case, Format};
use super::data::{Rule, Sink, Trits};
use super::reference::{self, Span, normed};
use super::{Bench, named};
use crate::error::Result;
use crate::forward::{PROJECT_ROUNDS, PROJECT_WARPS, project_shape};
use crate::kernels::{Job, Jobs, Shape, args};
use crate::layout::{PIECE_COLS, PIECE_ROWS};

/// Warps of a block of threads of the kernels for wide rows, and groups of warps, at most; as in `kernels/project.cu`.
const WIDE_WARPS: usize = 32;
const GROUPS: usize = 16;
/// Pieces of 8 rows that a group has on its way at once, of rows and of pairs, in the usual kernels and in those for
/// wide rows; as there.
const DEPTHS: [[usize; 2]; 2] = [[4, 4], [3, 2]];
/// Epsilons of the two norms.
const EPS: [f32; 2] = [1e-5, 1e-6];

/// A launch.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Whether the matrices are gate and up.
    pair: bool,
    groups: usize,
    blocks: usize,
    /// Whether there is the one norm, and the other.
    norms: [bool; 2],
    /// A number in the first column of the input.
    odd: Option<f32>,
}

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    let all_norms = [[false, false], [true, false], [false, true], [true, true]];
    for (i, cols) in [32, 64, 224, 256, 288, 2560, 5120, 5152, 6912, 8192].into_iter().enumerate() {
        // As a session does it.
        for (j, rows) in
            [&[1][..], &[7], &[8], &[9], &[100], &[9, 30], &[40, 9, 1], &[2560, 640, 640]].iter().enumerate()
        {
            let matrices = matrices(bench, rows, cols)?;
            for (k, norms) in all_norms.into_iter().enumerate() {
                let add = [Sink::Store, Sink::Add][(i + j + k) % 2];
                let plan = usual(bench, false, norms, &matrices);
                check_plan(bench, plan, &matrices, add)?;
                check_odd(bench, plan, &matrices, add)?;
            }
        }
        for (j, rows) in [1, 7, 8, 9, 100, 1000].into_iter().enumerate() {
            let matrices = matrices(bench, &[rows, rows], cols)?;
            for (k, norms) in all_norms.into_iter().enumerate() {
                let act = [Sink::Relu2, Sink::Silu][(i + j + k) % 2];
                let plan = usual(bench, true, norms, &matrices);
                check_plan(bench, plan, &matrices, act)?;
                check_odd(bench, plan, &matrices, act)?;
            }
        }
    }
    // Blocks of threads that go round 1 to 9 times, the last of them not whole.
    for (i, (cols, groups, blocks)) in [
        (256_usize, 1, 1),
        (32, 16, 1),
        (256, 16, 1),
        (224, 5, 3),
        (512, 10, 2),
        (1024, 3, 1),
        (2560, 2, 2),
        (5120, 1, 3),
        (5152, 1, 2),
        (8192, 1, 1),
        (2816, 2, 1),
        (512, 16, 2),
        (512, 11, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let warps = groups * cols.div_ceil(PIECE_COLS);
        for rounds in 1..=9 {
            for pair in [false, true] {
                let depth = DEPTHS[usize::from(warps > PROJECT_WARPS)][usize::from(pair)];
                let pieces = rounds * depth * groups * blocks - rounds % 3;
                let rows = (pieces * PIECE_ROWS).saturating_sub(rounds % 5).max(1);
                let all = if pair { vec![rows; 2] } else { split(rows, rounds % 3 + 1) };
                let matrices = matrices(bench, &all, cols)?;
                let sink = Sink::ALL[usize::from(pair) * 2 + (i + rounds) % 2];
                let plan = Plan { pair, groups, blocks, norms: all_norms[(i + rounds) % 4], odd: None };
                check_plan(bench, plan, &matrices, sink)?;
            }
        }
    }
    Ok(())
}

/// Rows in so many matrices: pieces of 8, but for the last.
fn split(rows: usize, matrices: usize) -> Vec<usize> {
    let each = rows / matrices / PIECE_ROWS * PIECE_ROWS;
    if each == 0 {
        return vec![rows];
    }
    let mut all = vec![each; matrices];
    all[matrices - 1] = rows - each * (matrices - 1);
    all
}

fn matrices(bench: &mut Bench, rows: &[usize], cols: usize) -> Result<Vec<Trits>> {
    let make = |rows: &usize| {
        let rule = bench.random.rule();
        Trits::new(&mut bench.random, *rows, cols, rule)
    };
    rows.iter().map(make).collect()
}

/// Groups and blocks of threads as a session has them.
fn usual(bench: &Bench, pair: bool, norms: [bool; 2], matrices: &[Trits]) -> Plan {
    let tiles = matrices[0].cols.div_ceil(PIECE_COLS);
    let pieces = pieces_of(pair, matrices);
    let (groups, blocks) = project_shape(pieces, tiles, bench.device.multiprocessors(), PROJECT_ROUNDS);
    Plan { pair, groups, blocks, norms, odd: None }
}

/// Pieces of 8 rows in all matrices; of a pair, in one.
fn pieces_of(pair: bool, matrices: &[Trits]) -> usize {
    let counted = if pair { 1 } else { matrices.len() };
    matrices[..counted].iter().map(|matrix| matrix.rows.div_ceil(PIECE_ROWS)).sum()
}

/// The same with numbers in the input that are not ordinary; of the large matrices they would show nothing more.
fn check_odd(bench: &mut Bench, plan: Plan, matrices: &[Trits], sink: Sink) -> Result<()> {
    if matrices[0].rows > 100 {
        return Ok(());
    }
    for odd in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        check_plan(bench, Plan { odd: Some(odd), ..plan }, matrices, sink)?;
    }
    Ok(())
}

fn check_plan(bench: &mut Bench, plan: Plan, matrices: &[Trits], sink: Sink) -> Result<()> {
    let Plan { pair, groups, blocks, .. } = plan;
    let cols = matrices[0].cols;
    let tiles = cols.div_ceil(PIECE_COLS);
    let warps = groups * tiles;
    assert!(warps <= WIDE_WARPS && groups <= GROUPS, "{plan:?} is no launch");
    let kernel = match (pair, warps <= PROJECT_WARPS) {
        (false, true) => named!(bench, project_rows),
        (false, false) => named!(bench, project_rows_wide),
        (true, true) => named!(bench, project_pair),
        (true, false) => named!(bench, project_pair_wide),
    };
    let mut case = bench.case();
    let mut x = bench.random.floats(cols);
    if let Some(odd) = plan.odd {
        x[0] = odd;
    }
    let norms = plan.norms.map(|is_there| is_there.then(|| bench.random.floats(cols)));
    let source = case.floats("source", &x);
    let norm = case.floats_if_any("norm", norms[0].as_deref());
    let own_norm = case.floats_if_any("own norm", norms[1].as_deref());
    let x = normed(&x, [norms[0].as_deref(), norms[1].as_deref()], EPS);
    let input = [Span::quantized(&x)];
    let jobs = if pair {
        pair_of(&mut case, matrices, &input, sink)
    } else {
        let old: Vec<Vec<f32>> = matrices.iter().map(|matrix| bench.random.floats(matrix.rows)).collect();
        rows_of(&mut case, matrices, &input, &old, sink)
    };
    let pieces = pieces_of(pair, matrices);
    let [eps, own_eps] = EPS;
    let args = args![jobs, pieces, source, cols, norm, eps, own_norm, own_eps, tiles, groups];
    let shape = Shape { grid: [blocks, 1, 1], block: [32, warps], shared: 4 * cols + tiles * PIECE_COLS };
    let shapes: Vec<(usize, Rule)> = matrices.iter().map(|matrix| (matrix.rows, matrix.rule)).collect();
    let what = format!("{cols} columns, rows and scales {shapes:?}, {sink:?}, {plan:?}");
    bench.run(what, &case, &[(kernel, shape, args)])
}

/// The same jobs for kernels that make units of 16 rows, or of 8 of each of a pair, and the number of these.
pub(super) fn units_of(mut jobs: Jobs, matrices: &[Trits], pair: bool) -> (Jobs, usize) {
    if pair {
        return (jobs, matrices[0].rows.div_ceil(PIECE_ROWS));
    }
    let mut units = 0;
    for (i, matrix) in matrices.iter().enumerate() {
        if i > 0 {
            jobs.begin[i - 1] = units as i32;
        }
        units += matrix.rows.div_ceil(2 * PIECE_ROWS);
    }
    (jobs, units)
}

/// A job of a matrix.
pub(super) fn job_of(case: &mut Case, matrix: &Trits, out: u64, sink: Sink) -> Job {
    let ([weights, _], (scale, divide)) = (matrix.put(case), matrix.scale());
    Job { weights, out, scale, divide: i32::from(divide), rows: matrix.rows as i32, sink: sink as i32 }
}

/// Gate and up, for one token or several, whose inputs are `inputs`.
pub(super) fn pair_of(case: &mut Case, matrices: &[Trits], inputs: &[Span], act: Sink) -> Jobs {
    let rows = matrices[0].rows;
    let out = case.output("output", Format::F32, inputs.len() * rows);
    for (t, input) in inputs.iter().enumerate() {
        let input = std::slice::from_ref(input);
        let [gate, up] = [0, 1].map(|i| matrices[i].products(input));
        let made: Vec<f32> = gate.iter().zip(up).map(|(gate, up)| reference::put(act, *gate, up)).collect();
        case.expect_floats(out, t * rows, &made);
    }
    let mut jobs = Jobs::one(job_of(case, &matrices[0], out, act));
    jobs.job[1] = job_of(case, &matrices[1], out, act);
    jobs
}

/// Up to three matrices, for one token or several, whose inputs are `inputs`. `old` is what is in the place of the
/// outputs of each.
pub(super) fn rows_of(case: &mut Case, matrices: &[Trits], inputs: &[Span], old: &[Vec<f32>], sink: Sink) -> Jobs {
    let mut jobs = Jobs { begin: [i32::MAX; 2], ..Jobs::default() };
    let mut pieces = 0;
    for (i, matrix) in matrices.iter().enumerate() {
        if i > 0 {
            jobs.begin[i - 1] = pieces as i32;
        }
        pieces += matrix.rows.div_ceil(PIECE_ROWS);
        let out = case.floats("output", &old[i]);
        for (t, input) in inputs.iter().enumerate() {
            let products = matrix.products(std::slice::from_ref(input));
            let old = &old[i][t * matrix.rows..];
            let made: Vec<f32> = products.iter().zip(old).map(|(y, old)| reference::put(sink, *old, *y)).collect();
            case.expect_floats(out, t * matrix.rows, &made);
        }
        jobs.job[i] = job_of(case, matrix, out, sink);
    }
    jobs
}
