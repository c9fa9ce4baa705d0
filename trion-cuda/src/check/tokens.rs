//! The kernels of `argmax.cu` and `embed.cu`.

use super::case::{Case, Format};
use super::data::{Floats, Random, Rule, Trits};
use super::{Bench, named};
use crate::error::Result;
use crate::kernels::{Shape, Slot, args};
use crate::layout::Kind;
use crate::memory::ARGMAX_BLOCKS;

/// Threads of a block of threads of all these kernels.
const THREADS: usize = 256;
/// Tokens that a session of these cases has room for.
const CONTEXT: usize = 9;

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    for count in [1, 2, 255, 256, 257, 1000, 32_769, 128_256] {
        for kind in LOGITS {
            check_argmax(bench, count, &[kind])?;
        }
        check_argmax(bench, count, &LOGITS)?;
    }
    for parts in [1, 2, 31, 128, 255, 256] {
        check_argmax_next(bench, parts)?;
    }
    check_begin(bench)?;
    check_embed(bench)
}

/// What a row of logits is like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Logits {
    Random,
    /// The largest, everywhere.
    Equal(f32),
    /// The largest in two places.
    Twice(f32),
    /// NaN and infinities among numbers.
    Odd,
}

const LOGITS: [Logits; 9] = [
    Logits::Random,
    Logits::Equal(0.0),
    Logits::Equal(f32::NAN),
    Logits::Equal(f32::NEG_INFINITY),
    Logits::Equal(f32::INFINITY),
    Logits::Equal(f32::MIN),
    Logits::Twice(100.0),
    Logits::Twice(f32::INFINITY),
    Logits::Odd,
];

impl Logits {
    fn make(self, random: &mut Random, count: usize) -> Vec<f32> {
        let mut logits = random.floats(count);
        let mut place = || random.below(count);
        match self {
            Logits::Random => {}
            Logits::Equal(value) => logits.fill(value),
            Logits::Twice(value) => [place(), place()].into_iter().for_each(|at| logits[at] = value),
            Logits::Odd => {
                // Below zero, so that a NaN or a zero of either sign would be chosen if it counted for more.
                logits.iter_mut().for_each(|logit| *logit = -logit.abs());
                for value in [f32::NAN, f32::NAN, f32::NEG_INFINITY, 0.0, -0.0] {
                    logits[place()] = value;
                }
            }
        }
        logits
    }
}

/// The best of some tokens: logit and token, as `Best` in `kernels/argmax.cu`.
type Best = (f32, i32);

/// What no thread sees.
const NONE: Best = (f32::NEG_INFINITY, i32::MAX);

fn better(a: Best, b: Best) -> Best {
    if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

fn words(best: Best) -> [u32; 2] {
    [best.0.to_bits(), best.1 as u32]
}

/// The best of each block of threads.
fn parts_of(logits: &[f32]) -> Vec<Best> {
    let mut parts = vec![NONE; ARGMAX_BLOCKS];
    for (i, logit) in logits.iter().enumerate() {
        let part = &mut parts[i / THREADS % ARGMAX_BLOCKS];
        *part = better(*part, (if logit.is_nan() { f32::MIN } else { *logit }, i as i32));
    }
    parts
}

/// Sessions with tokens of their own, at positions of their own, the first at `first`: where their slots lie, the
/// slots, and what the tokens are.
fn sessions(
    case: &mut Case,
    random: &mut Random,
    count: usize,
    first: usize,
    vocab: usize,
) -> (u64, Vec<Slot>, Vec<Vec<u32>>) {
    let tokens: Vec<Vec<u32>> =
        (0..count).map(|_| (0..CONTEXT).map(|_| random.below(vocab) as u32).collect()).collect();
    let slots: Vec<Slot> = (0..count)
        .map(|i| {
            let tokens = case.piece("tokens", Format::U32, &tokens[i]);
            let position = ((first + 3 * i) % (CONTEXT - 1)) as i32;
            Slot { cache: 0, rotation: 0, tokens, context: CONTEXT as i32, position }
        })
        .collect();
    (case.piece("slots", Format::U32, &slots), slots, tokens)
}

/// Says that each session goes on to its next position with a token.
fn expect_next(case: &mut Case, at: u64, slots: &[Slot], chosen: impl Iterator<Item = Best>) {
    for (row, (slot, best)) in slots.iter().zip(chosen).enumerate() {
        let position = slot.position + 1;
        case.expect(at, row, &[Slot { position, ..*slot }]);
        case.expect(slot.tokens, position as usize, &[best.1 as u32]);
    }
}

fn check_argmax(bench: &mut Bench, count: usize, kinds: &[Logits]) -> Result<()> {
    let rows = kinds.len();
    let mut case = bench.case();
    let logits: Vec<Vec<f32>> = kinds.iter().map(|kind| kind.make(&mut bench.random, count)).collect();
    let at = case.piece("logits", Format::U32, &logits.concat());
    let best = case.output("parts", Format::U32, 2 * rows * ARGMAX_BLOCKS);
    let (slots_at, slots, _) = sessions(&mut case, &mut bench.random, rows, 0, 1000);
    let parts: Vec<Vec<Best>> = logits.iter().map(|logits| parts_of(logits)).collect();
    for (row, parts) in parts.iter().enumerate() {
        case.expect(best, row * ARGMAX_BLOCKS, &parts.iter().map(|part| words(*part)).collect::<Vec<_>>());
    }
    let what = format!("{count} logits, {kinds:?}");
    let shape = Shape { grid: [ARGMAX_BLOCKS, rows, 1], block: [THREADS, 1], shared: 0 };
    let first = (named!(bench, argmax_parts), shape, &args![at, count, best][..]);
    bench.run(what.clone(), &case, &[first])?;
    expect_next(&mut case, slots_at, &slots, parts.iter().map(|parts| parts.iter().copied().fold(NONE, better)));
    let shape = Shape { grid: [rows, 1, 1], block: [THREADS, 1], shared: 0 };
    let second = (named!(bench, argmax_next), shape, &args![best, ARGMAX_BLOCKS, slots_at][..]);
    bench.run(format!("behind argmax_parts, {what}"), &case, &[first, second])
}

fn check_argmax_next(bench: &mut Bench, count: usize) -> Result<()> {
    for rows in [1, 3] {
        let mut case = bench.case();
        let random = &mut bench.random;
        // Many are equal.
        let parts: Vec<Best> =
            (0..rows * count).map(|_| (random.below(count) as f32, random.below(100_000) as i32)).collect();
        let best = case.piece("parts", Format::U32, &parts.iter().map(|part| words(*part)).collect::<Vec<_>>());
        let (slots_at, slots, _) = sessions(&mut case, random, rows, 7, 1000);
        let chosen = parts.chunks_exact(count).map(|parts| parts.iter().copied().fold(NONE, better));
        expect_next(&mut case, slots_at, &slots, chosen);
        let shape = Shape { grid: [rows, 1, 1], block: [THREADS, 1], shared: 0 };
        let launch = (named!(bench, argmax_next), shape, &args![best, count, slots_at][..]);
        bench.run(format!("{count} parts, {rows} rows"), &case, &[launch])?;
    }
    Ok(())
}

fn check_begin(bench: &mut Bench) -> Result<()> {
    for first in [0_usize, 1, 4095] {
        let mut case = bench.case();
        let (slots_at, slots, _) = sessions(&mut case, &mut bench.random, 2, 2, 1000);
        case.expect(slots_at, 0, &[Slot { position: first as i32, ..slots[0] }]);
        let shape = Shape { grid: [1, 1, 1], block: [1, 1], shared: 0 };
        let launch = (named!(bench, begin), shape, &args![slots_at, first][..]);
        bench.run(format!("position {first}"), &case, &[launch])?;
    }
    Ok(())
}

/// Rows of an embedding.
const VOCAB: usize = 70;

fn check_embed(bench: &mut Bench) -> Result<()> {
    for cols in [1, 15, 31, 33, 130, 256, 257, 511, 513, 1000, 2560] {
        for (kind, name) in [(Kind::F32, "f32"), (Kind::F16, "f16"), (Kind::Bf16, "bf16"), (Kind::I8, "i8")] {
            let floats = Floats::new(&mut bench.random, kind, VOCAB, cols, true)?;
            let put = |case: &mut Case| floats.put(case);
            check_embed_of(bench, name, kind, [cols, 1], 1.0, &put, &|row| floats.embedding(row))?;
        }
        for (kind, name, rule) in [
            (Kind::Multiply, "trits, multiply", Rule::Multiply(bench.random.float())),
            (Kind::Divide, "trits, divide", Rule::Divide(bench.random.float())),
            (Kind::Groups, "trits, groups of 16", Rule::Groups(16)),
            (Kind::Groups, "trits, groups of 48", Rule::Groups(48)),
            (Kind::Groups, "trits, groups of 256", Rule::Groups(256)),
        ] {
            let trits = Trits::new(&mut bench.random, VOCAB, cols, rule)?;
            let put = |case: &mut Case| trits.put(case);
            let sizes = [cols, trits.span()];
            check_embed_of(bench, name, kind, sizes, trits.scale().0, &put, &|row| trits.embedding(row))?;
        }
    }
    Ok(())
}

/// `put` puts a matrix into a case, and `row` is what a row of it should become.
fn check_embed_of(
    bench: &mut Bench,
    name: &str,
    kind: Kind,
    [cols, group]: [usize; 2],
    scale: f32,
    put: &dyn Fn(&mut Case) -> [u64; 2],
    row: &dyn Fn(usize) -> Vec<f32>,
) -> Result<()> {
    for (is_prompt, batch, first) in [(true, 1, 0), (true, 5, 2), (false, 1, 3), (false, 4, 1)] {
        let mut case = bench.case();
        let [weights, scales] = put(&mut case);
        let sequences = if is_prompt { 1 } else { batch };
        let (at, slots, tokens) = sessions(&mut case, &mut bench.random, sequences, first, VOCAB);
        let hidden = case.output("hidden", Format::F32, batch * cols);
        for t in 0..batch {
            let (sequence, behind) = if is_prompt { (0, t) } else { (t, 0) };
            let token = tokens[sequence][slots[sequence].position as usize + behind];
            case.expect_floats(hidden, t * cols, &row(token as usize));
        }
        let shape = Shape { grid: [batch, cols.div_ceil(256), 1], block: [THREADS, 1], shared: 0 };
        let args = args![at, is_prompt, weights, scales, scale, kind as i32, group, cols, hidden];
        let mode = if is_prompt { "of a prompt" } else { "of each session" };
        let what = format!("{name}, {cols} columns, {batch} tokens {mode} from position {first} on");
        let launch = (named!(bench, embed), shape, &args[..]);
        bench.run(what, &case, &[launch])?;
    }
    Ok(())
}
