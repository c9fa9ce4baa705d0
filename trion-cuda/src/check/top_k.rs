//! The kernels of `top_k.cu`.

use super::case::Format;
use super::{Bench, Named, named};
use crate::error::Result;
use crate::kernels::{Arg, Shape, args};

/// Threads of a block, the logits that it goes through, and what it keeps at most; as in `kernels/top_k.cu`.
const THREADS: usize = 512;
const CHUNK: usize = 4096;
const MOST: usize = 512;

/// A token and its logit's bits.
type Candidate = [u32; 2];

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    for count in [1, 2, 31, 301, 511, 513, 4095, 4096, 4097, 8192, 40_000, 128_256] {
        for (i, keep) in [1, 2, 40, 256, 511, MOST].into_iter().enumerate() {
            for (j, kind) in [Kind::Different, Kind::Few, Kind::Equal, Kind::Odd].into_iter().enumerate() {
                check_find(bench, kind, count, keep.min(count), 1 + (i + j) % 3)?;
            }
        }
    }
    Ok(())
}

/// What the logits are like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Different,
    /// Of few values, so that many are equal.
    Few,
    Equal,
    /// NaN, infinities and both zeros are many of them.
    Odd,
}

impl Kind {
    fn make(self, bench: &mut Bench, count: usize) -> Vec<f32> {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN, 1e-40];
        let random = &mut bench.random;
        let mut logit = || match self {
            Kind::Different => random.float(),
            Kind::Few => random.below(5) as f32 - 2.0,
            Kind::Equal => -1.5,
            Kind::Odd => odd[random.below(odd.len())],
        };
        (0..count).map(|_| logit()).collect()
    }
}

/// The best of some candidates, in order.
fn best(mut candidates: Vec<Candidate>, keep: usize) -> Vec<Candidate> {
    let logit = |candidate: &Candidate| {
        let logit = f32::from_bits(candidate[1]);
        if logit.is_nan() { f32::MIN } else { logit }
    };
    let order = |a: &Candidate, b: &Candidate| logit(b).partial_cmp(&logit(a)).map(|order| order.then(a[0].cmp(&b[0])));
    candidates.sort_by(|a, b| order(a, b).unwrap_or(std::cmp::Ordering::Equal));
    candidates.truncate(keep);
    candidates
}

/// Rows of logits, one round of chunks behind the other until one chunk is left, whose order is known.
fn check_find(bench: &mut Bench, kind: Kind, count: usize, keep: usize, rows: usize) -> Result<()> {
    let mut case = bench.case();
    let logits: Vec<Vec<f32>> = (0..rows).map(|_| kind.make(bench, count)).collect();
    let mut from = case.piece("logits", Format::U32, &logits.concat());
    let mut launches: Vec<(Named, Shape, Vec<Arg>)> = Vec::new();
    let (mut left, mut from_stride, mut kernel) = (count, count, named!(bench, top_k_logits));
    loop {
        let chunks = left.div_ceil(CHUNK);
        let next: usize = (0..chunks).map(|chunk| keep.min(left - chunk * CHUNK)).sum();
        // With something of its own behind each row.
        let stride = next + 3;
        let to = if chunks == 1 {
            case.output("best", Format::U32, 2 * rows * stride)
        } else {
            // In no order, and looked at by the next round.
            case.output("some of the best", Format::Scratch, 8 * rows * stride)
        };
        let shape = Shape { grid: [chunks, rows, 1], block: [THREADS, 1], shared: 0 };
        launches.push((kernel, shape, args![from, left, from_stride, keep, to, stride].to_vec()));
        if chunks == 1 {
            for (row, logits) in logits.iter().enumerate() {
                let all = logits.iter().zip(0..).map(|(logit, token)| [token, logit.to_bits()]).collect();
                case.expect(to, row * stride, &best(all, keep));
            }
            break;
        }
        (kernel, from, left, from_stride) = (named!(bench, top_k_candidates), to, next, stride);
    }
    let launches: Vec<_> = launches.iter().map(|(kernel, shape, args)| (*kernel, *shape, &args[..])).collect();
    bench.run(format!("{keep} of {count} logits, {rows} rows, {kind:?}"), &case, &launches)
}
