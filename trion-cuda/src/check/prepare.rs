//! The kernels of `prepare.cu`.

use super::case::Format;
use super::data::Random;
use super::reference::{normed, quantized};
use super::{Bench, Named, named};
use crate::error::Result;
use crate::kernels::{Shape, args};
use crate::layout::Packing;

/// Threads that prepare a row; as in `kernels/prepare.cu`.
const THREADS: usize = 512;
/// Columns of a row that `prepare` keeps in shared memory, at most.
const SHARED_COLS: usize = 10_240;
/// Epsilons of the two norms.
const EPS: [f32; 2] = [1e-5, 1e-6];
const COLS: [usize; 19] =
    [1, 2, 31, 32, 33, 63, 256, 257, 511, 512, 513, 1000, 2048, 2560, 4097, 6912, 10_240, 10_241, 13_824];

/// Numbers that are not ordinary, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    Nothing,
    Zeros,
    /// So small that their squares are subnormal or zero.
    Tiny,
    /// So large that their squares are infinite.
    Huge,
    NanFirst,
    NanLast,
    NanEverywhere,
    InfinityFirst,
    InfinityLast,
}

impl Odd {
    const ALL: [Odd; 9] = [
        Odd::Nothing,
        Odd::Zeros,
        Odd::Tiny,
        Odd::Huge,
        Odd::NanFirst,
        Odd::NanLast,
        Odd::NanEverywhere,
        Odd::InfinityFirst,
        Odd::InfinityLast,
    ];

    fn make(self, random: &mut Random, cols: usize) -> Vec<f32> {
        let mut x = random.floats(cols);
        match self {
            Odd::Nothing => {}
            Odd::Zeros => x.iter_mut().for_each(|x| *x *= 0.0),
            Odd::Tiny => x.iter_mut().for_each(|x| *x *= 1e-22),
            Odd::Huge => x.iter_mut().for_each(|x| *x *= 1e30),
            Odd::NanFirst => x[0] = f32::NAN,
            Odd::NanLast => x[cols - 1] = f32::NAN,
            Odd::NanEverywhere => x.fill(f32::NAN),
            Odd::InfinityFirst => x[0] = f32::INFINITY,
            Odd::InfinityLast => x[cols - 1] = f32::NEG_INFINITY,
        }
        x
    }
}

/// A launch of one of these kernels.
#[derive(Debug, Clone, Copy)]
struct Row {
    cols: usize,
    /// How the weights are stored, which pads the quantised row.
    packing: Packing,
    /// Whether there is the one norm, and the other.
    norms: [bool; 2],
    /// Columns that are quantised together; 0 for none.
    span: usize,
    /// Rows of the source that are passed over, and the tokens behind them.
    skip: usize,
    tokens: usize,
    odd: Odd,
    in_shared: bool,
}

impl Row {
    /// Columns with the zeros behind them.
    fn q_cols(self) -> usize {
        self.cols.next_multiple_of(self.packing.piece_cols())
    }
}

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    let kernels = [
        (2, named!(bench, prepare_row_2)),
        (5, named!(bench, prepare_row_5)),
        (8, named!(bench, prepare_row_8)),
        (14, named!(bench, prepare_row_14)),
        (20, named!(bench, prepare_row_20)),
    ];
    for cols in COLS {
        for norms in [[false, false], [true, false], [false, true], [true, true]] {
            for (i, odd) in Odd::ALL.into_iter().enumerate() {
                let (skip, tokens) = [(0, 1), (2, 1), (1, 3)][i % 3];
                let packing = [Packing::Twos, Packing::Fives][i % 2];
                let in_shared = cols <= SHARED_COLS;
                let row = Row { cols, packing, norms, span: cols, skip, tokens, odd, in_shared };
                // The one that a session takes, which is the first, and those for wider rows.
                for (_, kernel) in kernels.iter().filter(|(width, _)| row.q_cols() <= width * THREADS) {
                    check_row(bench, *kernel, row)?;
                }
                let group = [16, 48, 128, 256, 2576][i % 5];
                for span in [0, cols, group] {
                    check_prepare(bench, Row { span, ..row })?;
                }
                // As rows that are too wide for shared memory.
                if i % 4 == 0 {
                    for span in [0, cols, group] {
                        check_prepare(bench, Row { span, in_shared: false, ..row })?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// One of the kernels that keep a row in registers.
fn check_row(bench: &mut Bench, kernel: Named, row: Row) -> Result<()> {
    check_launch(bench, kernel, row, false)
}

fn check_prepare(bench: &mut Bench, row: Row) -> Result<()> {
    check_launch(bench, named!(bench, prepare), row, true)
}

/// `writes_floats` says whether the kernel is the one that has somewhere to write floats to.
fn check_launch(bench: &mut Bench, kernel: Named, row: Row, writes_floats: bool) -> Result<()> {
    let Row { cols, span, skip, tokens, in_shared, .. } = row;
    let q_cols = row.q_cols();
    // Strides are those of a model with a wider matrix.
    let (q_stride, input_stride) = (q_cols + row.packing.piece_cols(), cols + 5);
    let groups = if span == 0 { 1 } else { cols.div_ceil(span) };
    let spans = groups + 1;
    let mut case = bench.case();
    let random = &mut bench.random;
    let rows: Vec<Vec<f32>> = (0..skip + tokens).map(|_| row.odd.make(random, cols)).collect();
    let norms = row.norms.map(|is_there| is_there.then(|| random.floats(cols)));
    let source = case.floats("source", &rows.concat());
    let [norm, own_norm] = ["norm", "own norm"].map(|name| {
        let which = usize::from(name != "norm");
        case.floats_if_any(name, norms[which].as_deref())
    });
    let input = case.output("input", Format::F32, tokens * input_stride);
    let q = case.output("quantised", Format::I8, tokens * q_stride);
    let scales = case.output("scales", Format::U32, 2 * tokens * spans);
    for (t, x) in rows[skip..].iter().enumerate() {
        let x = normed(x, [norms[0].as_deref(), norms[1].as_deref()], EPS);
        if writes_floats && (span == 0 || !in_shared) {
            case.expect_floats(input, t * input_stride, &x);
        }
        if span > 0 {
            let groups = quantized(&x, span);
            let mut bytes: Vec<i8> = groups.iter().flat_map(|group| group.q.iter().copied()).collect();
            bytes.resize(q_cols, 0);
            case.expect(q, t * q_stride, &bytes);
            case.expect(scales, t * spans, &groups.iter().map(super::reference::Span::words).collect::<Vec<_>>());
        }
    }
    let [eps, own_eps] = EPS;
    let mut shape = Shape { grid: [tokens, 1, 1], block: [THREADS, 1], shared: 0 };
    let what = format!("{row:?}");
    if writes_floats {
        shape.shared = if in_shared { 4 * cols } else { 0 };
        let args = args![
            source,
            skip,
            cols,
            norm,
            eps,
            own_norm,
            own_eps,
            input,
            input_stride,
            q,
            q_stride,
            q_cols,
            scales,
            spans,
            span,
            in_shared,
        ];
        bench.run(what, &case, &[(kernel, shape, args)])
    } else {
        let args = args![source, skip, cols, norm, eps, own_norm, own_eps, q, q_stride, q_cols, scales, spans];
        bench.run(what, &case, &[(kernel, shape, args)])
    }
}
