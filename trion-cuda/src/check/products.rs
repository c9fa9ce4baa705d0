//! The kernels of `ternary.cu`, `gemm.cu` and `float_matrix.cu`: products with an input that was prepared.

use super::case::{Case, Format};
use super::data::{Floats, Random, Rule, Sink, Trits};
use super::project::{pair_of, rows_of, units_of};
use super::reference::{self, Span};
use super::{Bench, Named, named};
use crate::error::Result;
use crate::forward::{project_shape, warps_for};
use crate::kernels::{Shape, args};
use crate::layout::{Kind, PIECE_COLS, PIECE_ROWS};

/// Tokens that the kernels for few tokens take together.
const FEW: usize = 4;
/// Warps of a block of threads of `kernels/ternary.cu`, at most.
const WARPS: usize = 10;
/// Rows and tokens of a tile of `kernels/gemm.cu`.
const GEMM_TILE: usize = 64;
/// Tokens that `kernels/tokens.cu` takes together, the bytes of sums that a group of warps has there, the units that it
/// makes in a session at least for more tokens, and groups and warps of a block of threads, at most.
const TOKENS_AT_ONCE: usize = 8;
const UNIT_SUMS: usize = 2 * 16 * TOKENS_AT_ONCE * 4;
const TOKENS_ROUNDS: usize = 8;
const TOKENS_GROUPS: usize = 16;
const MOST_WARPS: usize = 32;
/// Columns that neither words nor pieces divide, and some that they do.
const COLS: [usize; 14] = [1, 15, 16, 17, 33, 250, 256, 257, 1000, 2560, 2561, 5121, 6912, 8192];

pub(super) fn check_ternary(bench: &mut Bench) -> Result<()> {
    for (i, cols) in COLS.into_iter().enumerate() {
        for (j, rows) in [&[1][..], &[7], &[8], &[33], &[9, 30], &[40, 9, 1], &[100, 31, 65]].iter().enumerate() {
            let matrices = rows
                .iter()
                .map(|rows| {
                    let rule = bench.random.rule();
                    Trits::new(&mut bench.random, *rows, cols, rule)
                })
                .collect::<Result<Vec<_>>>()?;
            // Tensor cores, where there are some, also take more.
            for tokens in (1..=16).chain([65]) {
                // One matrix may also be an up projection whose gate is there.
                let sinks = if rows.len() == 1 { 4 } else { 2 };
                check_gemv(bench, &matrices, Sink::ALL[(i + j + tokens) % sinks], false, tokens)?;
            }
        }
        for (j, rows) in [1, 7, 8, 9, 100].into_iter().enumerate() {
            let rules = [bench.random.rule(), bench.random.rule()];
            let matrices = rules.map(|rule| Trits::new(&mut bench.random, rows, cols, rule));
            let matrices = matrices.into_iter().collect::<Result<Vec<_>>>()?;
            for tokens in (1..=16).chain([65]) {
                check_gemv(bench, &matrices, [Sink::Relu2, Sink::Silu][(i + j + tokens) % 2], true, tokens)?;
            }
        }
        for (j, rows) in [1, 8, 33, 100].into_iter().enumerate() {
            for (k, group) in [16, 32, 48, 256, 1008].into_iter().enumerate() {
                let matrix = Trits::new(&mut bench.random, rows, cols, Rule::Groups(group))?;
                for (l, tokens) in [1, 2, 17].into_iter().enumerate() {
                    check_groups(bench, &matrix, Sink::ALL[(i + j + k + l) % 4], tokens)?;
                }
            }
        }
    }
    for (i, cols) in [1, 15, 16, 17, 250, 256, 257, 1000, 2561].into_iter().enumerate() {
        for (j, rows) in [1, 7, 9, 64, 65, 100, 130].into_iter().enumerate() {
            let scale = bench.random.float();
            let rule = if (i + j) % 2 == 0 { Rule::Multiply(scale) } else { Rule::Divide(scale) };
            let matrix = Trits::new(&mut bench.random, rows, cols, rule)?;
            for (k, tokens) in [17, 64, 65, 130].into_iter().enumerate() {
                check_gemm(bench, &matrix, Sink::ALL[(i / 2 + j / 2 + k) % 4], tokens)?;
            }
        }
    }
    Ok(())
}

/// Quantised inputs of some tokens, each in spans.
pub(super) fn inputs(random: &mut Random, tokens: usize, cols: usize, span: usize) -> Vec<Vec<Span>> {
    let one = |random: &mut Random, columns: usize| {
        let q = (0..columns).map(|_| random.bits() as i8).collect();
        // An infinity among the activations makes a scale of zero.
        let scale = if random.below(20) == 0 { 0.0 } else { random.float().abs() * 100.0 };
        Span { q, scale }
    };
    let spans: Vec<usize> = (0..cols).step_by(span).map(|first| span.min(cols - first)).collect();
    (0..tokens).map(|_| spans.iter().map(|columns| one(random, *columns)).collect()).collect()
}

/// Where quantised inputs lie.
pub(super) struct Placed {
    pub(super) q: u64,
    /// From token to token, in pieces of 16 bytes.
    pub(super) q_stride: usize,
    pub(super) scales: u64,
    /// From token to token.
    pub(super) spans: usize,
}

/// Puts inputs into a case, in whole pieces of so many columns, with the strides of a model with a wider matrix.
pub(super) fn place(case: &mut Case, inputs: &[Vec<Span>], cols: usize, piece_cols: usize) -> Placed {
    let q_stride = cols.next_multiple_of(piece_cols) + piece_cols;
    let spans = inputs[0].len() + 1;
    let (mut q, mut scales) = (Vec::new(), Vec::new());
    for input in inputs {
        let first = q.len();
        q.extend(input.iter().flat_map(|span| span.q.iter().copied()));
        // Zeros as `prepare` leaves them, and behind them what another matrix left.
        q.resize(first + cols.next_multiple_of(piece_cols), 0);
        q.resize(first + q_stride, 77);
        scales.extend(input.iter().map(Span::words));
        scales.resize(scales.len() + 1, [f32::NAN.to_bits(), 12_345]);
    }
    let q = case.piece("quantised", Format::I8, &q);
    let scales = case.piece("scales", Format::U32, &scales);
    Placed { q, q_stride: q_stride / 16, scales, spans }
}

/// Products of plain matrices, one or several tokens at a time.
fn check_gemv(bench: &mut Bench, matrices: &[Trits], sink: Sink, pair: bool, tokens: usize) -> Result<()> {
    let cols = matrices[0].cols;
    let tiles = cols.div_ceil(PIECE_COLS);
    let (kernel, few) = match (tokens, pair) {
        (1, false) => (named!(bench, ternary_gemv), 1),
        (1, true) => (named!(bench, ternary_gemv_pair), 1),
        (_, false) => (named!(bench, ternary_gemv_4), FEW),
        (_, true) => (named!(bench, ternary_gemv_pair_4), FEW),
    };
    let mut case = bench.case();
    let inputs = inputs(&mut bench.random, tokens, cols, cols);
    let Placed { q, q_stride, scales, spans } = place(&mut case, &inputs, cols, PIECE_COLS);
    let inputs = inputs.concat();
    let jobs = if pair {
        pair_of(&mut case, matrices, &inputs, sink)
    } else {
        let old: Vec<Vec<f32>> = matrices.iter().map(|matrix| bench.random.floats(tokens * matrix.rows)).collect();
        rows_of(&mut case, matrices, &inputs, &old, sink)
    };
    let counted = if pair { 1 } else { matrices.len() };
    let pieces: usize = matrices[..counted].iter().map(|matrix| matrix.rows.div_ceil(PIECE_ROWS)).sum();
    let args = args![jobs, q, q_stride, scales, spans, tiles, tokens];
    // As many warps as a session takes, as many as there can be, and some number between.
    let usual = warps_for(tiles, pieces * tokens.div_ceil(few), bench.device.multiprocessors());
    for warps in [usual, WARPS, 1 + bench.random.below(WARPS)] {
        let shape = Shape { grid: [tokens.div_ceil(few), pieces, 1], block: [32, warps], shared: 0 };
        let shapes: Vec<(usize, Rule)> = matrices.iter().map(|matrix| (matrix.rows, matrix.rule)).collect();
        let what = format!("{cols} columns, rows and scales {shapes:?}, {sink:?}, {tokens} tokens, {warps} warps");
        bench.run(what, &case, &[(kernel, shape, args)])?;
    }
    let by_tensor_cores = if pair {
        bench.device.kernels().ternary_tokens_pair.map(|kernel| ("ternary_tokens_pair", kernel))
    } else {
        bench.device.kernels().ternary_tokens.map(|kernel| ("ternary_tokens", kernel))
    };
    let Some(kernel) = by_tensor_cores else { return Ok(()) };
    let (units_jobs, units) = units_of(jobs, matrices, pair);
    // As a session does it, and with few groups and blocks, which go round more often.
    let least = if tokens > TOKENS_AT_ONCE { TOKENS_ROUNDS } else { 1 };
    let usual = project_shape(units, tiles, bench.device.multiprocessors(), least);
    let few_groups = 1 + bench.random.below((MOST_WARPS / tiles).min(TOKENS_GROUPS));
    for (groups, blocks) in [usual, (1, 1), (few_groups, 1 + tokens % 2)] {
        let args = args![units_jobs, units, q, q_stride, scales, spans, tiles, groups, tokens];
        let grid = [blocks, tokens.div_ceil(TOKENS_AT_ONCE), 1];
        let shape = Shape { grid, block: [32, groups * tiles], shared: groups * UNIT_SUMS };
        let shapes: Vec<(usize, Rule)> = matrices.iter().map(|matrix| (matrix.rows, matrix.rule)).collect();
        let what = format!(
            "{cols} columns, rows and scales {shapes:?}, {sink:?}, {tokens} tokens, {groups} groups, {blocks} blocks"
        );
        bench.run(what, &case, &[(kernel, shape, args)])?;
    }
    Ok(())
}

/// One matrix's outputs: their address, with what is expected there.
fn outputs(case: &mut Case, old: &[f32], sink: Sink, products: impl Iterator<Item = Vec<f32>>) -> u64 {
    let out = case.floats("output", old);
    let products: Vec<f32> = products.flatten().collect();
    let made: Vec<f32> = products.iter().zip(old).map(|(y, old)| reference::put(sink, *old, *y)).collect();
    case.expect_floats(out, 0, &made);
    out
}

fn check_groups(bench: &mut Bench, matrix: &Trits, sink: Sink, tokens: usize) -> Result<()> {
    let (rows, cols, span) = (matrix.rows, matrix.cols, matrix.span());
    let tiles = cols.div_ceil(PIECE_COLS);
    let mut case = bench.case();
    let [weights, multipliers] = matrix.put(&mut case);
    let inputs = inputs(&mut bench.random, tokens, cols, span);
    let Placed { q, q_stride, scales, spans } = place(&mut case, &inputs, cols, PIECE_COLS);
    let old = bench.random.floats(tokens * rows);
    let out = outputs(&mut case, &old, sink, inputs.iter().map(|input| matrix.products(input)));
    let args = args![weights, multipliers, out, rows, sink as i32, q, q_stride, scales, spans, tiles, cols, span];
    let shape = Shape { grid: [rows.div_ceil(PIECE_ROWS), tokens, 1], block: [128, 1], shared: 0 };
    let what = format!("{rows} rows, {cols} columns in groups of {span}, {sink:?}, {tokens} tokens");
    let launch = (named!(bench, ternary_groups), shape, &args[..]);
    bench.run(what, &case, &[launch])
}

fn check_gemm(bench: &mut Bench, matrix: &Trits, sink: Sink, tokens: usize) -> Result<()> {
    let (rows, cols, (scale, divide)) = (matrix.rows, matrix.cols, matrix.scale());
    let tiles = cols.div_ceil(PIECE_COLS);
    let mut case = bench.case();
    let [weights, _] = matrix.put(&mut case);
    let inputs = inputs(&mut bench.random, tokens, cols, cols);
    let Placed { q, q_stride, scales, spans } = place(&mut case, &inputs, cols, PIECE_COLS);
    let old = bench.random.floats(tokens * rows);
    let out = outputs(&mut case, &old, sink, inputs.iter().map(|input| matrix.products(input)));
    let args = args![weights, out, scale, divide, rows, sink as i32, q, q_stride, scales, spans, tiles, tokens];
    let shape = Shape { grid: [tokens.div_ceil(GEMM_TILE), rows.div_ceil(GEMM_TILE), 1], block: [128, 1], shared: 0 };
    let what = format!("{rows} rows, {cols} columns, {:?}, {sink:?}, {tokens} tokens", matrix.rule);
    let launch = (named!(bench, ternary_gemm), shape, &args[..]);
    bench.run(what, &case, &[launch])
}

pub(super) fn check_float(bench: &mut Bench) -> Result<()> {
    let kinds = [
        (
            Kind::F32,
            named!(bench, float_product_f32),
            [named!(bench, float_product_f32_4), named!(bench, float_product_f32_8)],
        ),
        (
            Kind::F16,
            named!(bench, float_product_f16),
            [named!(bench, float_product_f16_4), named!(bench, float_product_f16_8)],
        ),
        (
            Kind::Bf16,
            named!(bench, float_product_bf16),
            [named!(bench, float_product_bf16_4), named!(bench, float_product_bf16_8)],
        ),
        (
            Kind::I8,
            named!(bench, float_product_i8),
            [named!(bench, float_product_i8_4), named!(bench, float_product_i8_8)],
        ),
    ];
    for (kind, one, [four, eight]) in kinds {
        for (i, cols) in [1, 31, 32, 33, 127, 130, 256, 513, 1000, 2560].into_iter().enumerate() {
            for (j, rows) in [1, 4, 5, 31, 32, 33, 100].into_iter().enumerate() {
                let matrix = Floats::new(&mut bench.random, kind, rows, cols, (i + j) % 2 == 1)?;
                // A session takes four at once for 2 to 4 tokens, and eight for more; either takes any number.
                for (k, tokens) in [1, 2, 3, 4, 5, 8, 9, 17].into_iter().enumerate() {
                    for sink in [Sink::ALL[(i + j + k) % 4], Sink::ALL[(i + j + k + 2) % 4]] {
                        if tokens == 1 {
                            check_float_product(bench, one, 1, &matrix, sink, tokens)?;
                        } else {
                            check_float_product(bench, four, 4, &matrix, sink, tokens)?;
                            check_float_product(bench, eight, 8, &matrix, sink, tokens)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// `kernel` takes `at_once` tokens together.
fn check_float_product(
    bench: &mut Bench,
    kernel: Named,
    at_once: usize,
    matrix: &Floats,
    sink: Sink,
    tokens: usize,
) -> Result<()> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let mut case = bench.case();
    let [weights, row_scales] = matrix.put(&mut case);
    let mut inputs: Vec<Vec<f32>> = (0..tokens).map(|_| bench.random.floats(cols)).collect();
    if bench.random.below(3) == 0 {
        for odd in [f32::NAN, f32::INFINITY] {
            inputs[bench.random.below(tokens)][bench.random.below(cols)] = odd;
        }
    }
    // The stride of a model with a wider matrix.
    let stride = cols + 3;
    let rest = [f32::NAN; 3];
    let x: Vec<f32> = inputs.iter().flat_map(|x| x.iter().chain(&rest).copied()).collect();
    let x = case.floats("input", &x);
    let old = bench.random.floats(tokens * rows);
    let out = outputs(&mut case, &old, sink, inputs.iter().map(|x| matrix.products(x)));
    let args = args![weights, row_scales, x, stride, out, rows, cols, sink as i32, tokens];
    let shape = Shape { grid: [tokens.div_ceil(at_once), rows.div_ceil(32), 1], block: [256, 1], shared: 0 };
    let what = format!("{rows} rows, {cols} columns, {sink:?}, {tokens} tokens");
    bench.run(what, &case, &[(kernel, shape, args)])
}
