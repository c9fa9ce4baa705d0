//! The kernels of `rotate.cu`, `attention_token.cu` and `attention_prompt.cu`.

use trion_core::CacheType;
use trion_core::numeric::{ATTENTION_BLOCK, f16_to_f32, f32_to_f16, rotary_tables};

use super::case::{Case, Format, NOBODYS};
use super::data::Random;
use super::reference::{largest_score, rotated, score_scale, scores, weighted_values};
use super::{Bench, named};
use crate::error::Result;
use crate::forward::output_shape;
use crate::kernels::{Arg, Shape, Slot, args};

/// Columns that a block of threads of a token's attention makes at once, its threads, positions that it scores at once,
/// and query heads that it takes together; as in `kernels/attention_token.cu`.
const COLUMNS: usize = 8;
const THREADS: usize = 256;
const CHUNK: usize = 32;
const HEADS: usize = 4;
/// Queries that a block of threads of a prompt's attention takes together; as in `kernels/attention_prompt.cu`.
const QUERIES: usize = 8;
const EPS: f32 = 1e-5;
const THETA: f32 = 10_000.0;

const CACHES: [CacheType; 2] = [CacheType::F32, CacheType::F16];
const HEAD_DIMS: [usize; 7] = [2, 10, 64, 66, 128, 256, 320];
/// Query heads that share a key and value head.
const HEAD_GROUPS: [usize; 5] = [1, 3, 4, 5, 8];
const POSITIONS: [usize; 11] = [0, 1, 31, 32, 63, 64, 65, 577, 1023, 1024, 1500];

/// What all tokens of a launch share.
#[derive(Debug, Clone, Copy)]
struct Model {
    /// Query heads of a key and value head.
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    /// The layer, which is the last one.
    layer: usize,
    cache: CacheType,
    /// Whether queries and keys have norms.
    norms: bool,
    /// Whether there are NaN and infinity among keys and values.
    odd: bool,
}

impl Model {
    fn heads(&self) -> usize {
        self.group * self.kv_heads
    }

    /// A number as the cache keeps it.
    fn kept(&self, value: f32) -> f32 {
        match self.cache {
            CacheType::F32 => value,
            CacheType::F16 => f16_to_f32(f32_to_f16(value)),
        }
    }

    fn kept_all(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|value| self.kept(*value)).collect()
    }
}

/// A session: what its cache holds of each key and value head, and where it lies.
struct Sequence {
    context: usize,
    /// `[kv_heads][positions, head_dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Cosines and sines of the positions from the current one on.
    rotation: Vec<f32>,
    slot: Slot,
}

impl Sequence {
    /// A session with `known` positions in its cache, whose current one is `position`; `coming` of the rotary tables
    /// are there from that one on. Nothing else in its memory may count.
    fn new(
        case: &mut Case,
        random: &mut Random,
        model: &Model,
        context: usize,
        known: usize,
        position: usize,
        coming: usize,
    ) -> Self {
        let head_dim = model.head_dim;
        let mut plane = || -> Vec<Vec<f32>> {
            (0..model.kv_heads).map(|_| model.kept_all(&random.floats(known * head_dim))).collect()
        };
        let (mut keys, mut values) = (plane(), plane());
        if model.odd && known > 0 {
            for (head, (keys, values)) in keys.iter_mut().zip(&mut values).enumerate() {
                keys[random.below(known * head_dim)] = f32::NAN;
                keys[random.below(known * head_dim)] = f32::NEG_INFINITY;
                if head == 0 {
                    values[random.below(known * head_dim)] = f32::NAN;
                    values[random.below(known * head_dim)] = f32::INFINITY;
                }
            }
        }
        let nobodys = f32::from_bits(NOBODYS);
        let stride = context * head_dim;
        let mut cache = vec![nobodys; (model.layer + 1) * model.kv_heads * 2 * stride];
        for head in 0..model.kv_heads {
            let at = (model.layer * model.kv_heads + head) * 2 * stride;
            cache[at..at + known * head_dim].copy_from_slice(&keys[head]);
            cache[at + stride..at + stride + known * head_dim].copy_from_slice(&values[head]);
        }
        let mut rotation = Vec::new();
        for p in position..position + coming {
            let (mut cos, mut sin) = (vec![0.0; head_dim / 2], vec![0.0; head_dim / 2]);
            rotary_tables(THETA, head_dim, p, &mut cos, &mut sin);
            rotation.extend(cos);
            rotation.extend(sin);
        }
        let mut tables = vec![nobodys; stride];
        tables[position * head_dim..position * head_dim + rotation.len()].copy_from_slice(&rotation);
        let slot = Slot {
            cache: case.numbers("cache", model.cache, &cache),
            rotation: case.floats("rotation", &tables),
            tokens: 0,
            context: context as i32,
            position: position as i32,
        };
        Sequence { context, keys, values, rotation, slot }
    }

    /// Says that the cache gets a key and a value of a head, as they are before they are rounded.
    fn expect_kept(&self, case: &mut Case, model: &Model, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let at = (((model.layer * model.kv_heads + head) * 2) * self.context + position) * model.head_dim;
        case.expect_numbers(self.slot.cache, at, model.cache, key);
        case.expect_numbers(self.slot.cache, at + self.context * model.head_dim, model.cache, value);
    }
}

/// Queries, keys and values of some tokens, and the norms.
struct Batch {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    norms: [Option<Vec<f32>>; 2],
    /// Addresses, in this order, without the norms.
    at: [u64; 3],
    norms_at: [u64; 2],
}

impl Batch {
    fn new(case: &mut Case, random: &mut Random, model: &Model, tokens: usize) -> Self {
        let head_dim = model.head_dim;
        let query = random.floats(tokens * model.heads() * head_dim);
        let [key, mut value] = [0, 1].map(|_| random.floats(tokens * model.kv_heads * head_dim));
        if model.odd {
            // Too large for half precision, and a subnormal there.
            (value[0], value[head_dim - 1]) = (70_000.0, 1e-7);
        }
        let norms = [0, 1].map(|_| model.norms.then(|| random.floats(head_dim)));
        let at = [("query", &query), ("key", &key), ("value", &value)].map(|(name, x)| case.floats(name, x));
        let [q_norm, k_norm] = &norms;
        let norms_at = [("query norm", q_norm), ("key norm", k_norm)]
            .map(|(name, norm)| case.floats_if_any(name, norm.as_deref()));
        Batch { query, key, value, norms, at, norms_at }
    }

    /// Query head `head` of token `t`, rotated.
    fn query(&self, model: &Model, t: usize, head: usize, rotation: &[f32]) -> Vec<f32> {
        let at = (t * model.heads() + head) * model.head_dim;
        rotated(&self.query[at..at + model.head_dim], self.norms[0].as_deref(), EPS, rotation)
    }

    /// Key head `head` of token `t`, rotated, and the value.
    fn key_and_value(&self, model: &Model, t: usize, head: usize, rotation: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let at = (t * model.kv_heads + head) * model.head_dim;
        let key = rotated(&self.key[at..at + model.head_dim], self.norms[1].as_deref(), EPS, rotation);
        (key, self.value[at..at + model.head_dim].to_vec())
    }

    /// The first arguments of the kernels that rotate.
    fn args(&self, model: &Model, slots: u64) -> [Arg; 11] {
        let ([query, key, value], [q_norm, k_norm]) = (self.at, self.norms_at);
        [
            slots.into(),
            model.layer.into(),
            query.into(),
            key.into(),
            value.into(),
            q_norm.into(),
            k_norm.into(),
            EPS.into(),
            model.heads().into(),
            model.kv_heads.into(),
            model.head_dim.into(),
        ]
    }
}

pub(super) fn check_rotate(bench: &mut Bench) -> Result<()> {
    for head_dim in HEAD_DIMS {
        for (i, group) in HEAD_GROUPS.into_iter().enumerate() {
            for (j, cache) in CACHES.into_iter().enumerate() {
                for (k, (tokens, first)) in [(2, 0), (7, 1), (64, 63), (3, 500)].into_iter().enumerate() {
                    let (norms, odd) = ((i + j + k) % 2 == 0, k % 2 == 1);
                    let model = Model { group, kv_heads: 1 + (i + k) % 3, head_dim, layer: k % 2, cache, norms, odd };
                    check_rotate_of(bench, model, tokens, first)?;
                }
            }
        }
    }
    Ok(())
}

fn check_rotate_of(bench: &mut Bench, model: Model, tokens: usize, first: usize) -> Result<()> {
    let mut case = bench.case();
    let random = &mut bench.random;
    let (head_dim, heads, context) = (model.head_dim, model.heads(), first + tokens + 3);
    let sequence = Sequence::new(&mut case, random, &model, context, first, first, tokens);
    let slots = case.piece("slots", Format::U32, &[sequence.slot]);
    let batch = Batch::new(&mut case, random, &model, tokens);
    for (t, rotation) in sequence.rotation.chunks_exact(head_dim).enumerate() {
        for head in 0..heads {
            let query = batch.query(&model, t, head, rotation);
            case.expect_floats(batch.at[0], (t * heads + head) * head_dim, &query);
        }
        for head in 0..model.kv_heads {
            let (key, value) = batch.key_and_value(&model, t, head, rotation);
            sequence.expect_kept(&mut case, &model, head, first + t, &key, &value);
        }
    }
    let kernel = match model.cache {
        CacheType::F32 => named!(bench, rotate_f32),
        CacheType::F16 => named!(bench, rotate_f16),
    };
    let units = heads + 2 * model.kv_heads;
    let shape = Shape { grid: [units.div_ceil(4), tokens, 1], block: [32, 4], shared: 0 };
    let what = format!("{tokens} tokens from position {first} on, {model:?}");
    bench.run(what, &case, &[(kernel, shape, &batch.args(&model, slots))])
}

pub(super) fn check_token(bench: &mut Bench) -> Result<()> {
    let multiprocessors = bench.device.multiprocessors();
    for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (j, group) in HEAD_GROUPS.into_iter().enumerate() {
            for (k, cache) in CACHES.into_iter().enumerate() {
                // Wide heads take much memory.
                let kv_heads = if head_dim > 128 { 1 } else { 1 + (i + j) % 3 };
                let layer = if head_dim > 128 { 0 } else { (j + k) % 2 };
                let model = Model { group, kv_heads, head_dim, layer, cache, norms: (i + k) % 2 == 0, odd: i % 3 == 1 };
                // As many pieces of the positions as a session has, and few, so that each is many chunks.
                let usual = |context: usize| {
                    let parts = group.div_ceil(HEADS) * kv_heads;
                    context.div_ceil(CHUNK).min((2 * multiprocessors).div_ceil(parts))
                };
                if (i + j + k) % 2 == 0 {
                    check_token_of(bench, model, &POSITIONS, usual(1510))?;
                } else {
                    check_token_of(bench, Model { odd: true, ..model }, &POSITIONS[..8], 1 + (i + j) % 5)?;
                }
                for (l, position) in POSITIONS.into_iter().enumerate() {
                    let model = Model { norms: (i + j + k + l) % 2 == 0, odd: (j + k + l) % 3 == 0, ..model };
                    let pieces = [usual(position + 1), usual(position + 100), 1, 3][(i + j + l) % 4];
                    check_token_of(bench, model, &[position], pieces)?;
                }
            }
        }
    }
    Ok(())
}

/// A token of each of some sessions at these positions.
fn check_token_of(bench: &mut Bench, model: Model, positions: &[usize], pieces: usize) -> Result<()> {
    let mut case = bench.case();
    let random = &mut bench.random;
    let (head_dim, heads, rows) = (model.head_dim, model.heads(), positions.len());
    let sequences: Vec<Sequence> = positions
        .iter()
        .enumerate()
        // The first has no more room.
        .map(|(row, position)| Sequence::new(&mut case, random, &model, position + 1 + row, *position, *position, 1))
        .collect();
    let stride = sequences.iter().map(|sequence| sequence.context).max().unwrap_or(1).next_multiple_of(ATTENTION_BLOCK);
    let slots: Vec<Slot> = sequences.iter().map(|sequence| sequence.slot).collect();
    let slots = case.piece("slots", Format::U32, &slots);
    let batch = Batch::new(&mut case, random, &model, rows);
    // Scores that other positions left would outweigh all others.
    let scores_at = case.floats("scores", &vec![1e30; rows * heads * stride]);
    let largest_at = case.floats("largest", &vec![1e30; rows * heads * pieces]);

    let mut outputs = Vec::new();
    for (row, (sequence, position)) in sequences.iter().zip(positions).enumerate() {
        for kv_head in 0..model.kv_heads {
            let (key, value) = batch.key_and_value(&model, row, kv_head, &sequence.rotation);
            sequence.expect_kept(&mut case, &model, kv_head, *position, &key, &value);
            let keys = [&sequence.keys[kv_head][..], &model.kept_all(&key)].concat();
            let values = [&sequence.values[kv_head][..], &model.kept_all(&value)].concat();
            for head in kv_head * model.group..(kv_head + 1) * model.group {
                let scores = scores(&batch.query(&model, row, head, &sequence.rotation), &keys);
                case.expect_floats(scores_at, (row * heads + head) * stride, &scores);
                // Chunks of 32 positions go to the pieces in turn; a piece without any writes nothing.
                for piece in 0..pieces.min(scores.len().div_ceil(CHUNK)) {
                    let own = scores.iter().enumerate().filter(|(j, _)| j / CHUNK % pieces == piece);
                    let largest = largest_score(own.map(|(_, score)| *score));
                    case.expect_floats(largest_at, (row * heads + head) * pieces + piece, &[largest]);
                }
                outputs.push(weighted_values(&scores, &values, head_dim));
            }
        }
    }

    let [scores_kernel, outputs_kernel] = match model.cache {
        CacheType::F32 => [named!(bench, attention_scores_f32), named!(bench, attention_outputs_f32)],
        CacheType::F16 => [named!(bench, attention_scores_f16), named!(bench, attention_outputs_f16)],
    };
    let parts = model.group.div_ceil(HEADS) * model.kv_heads;
    let own = args![score_scale(head_dim), scores_at, stride, largest_at];
    let scores_args = [&batch.args(&model, slots)[..], own].concat();
    let shape = Shape { grid: [parts, pieces, rows], block: [THREADS, 1], shared: 4 * 5 * head_dim };
    let first = (scores_kernel, shape, &scores_args[..]);
    let what = format!("positions {positions:?}, in {pieces} pieces, {model:?}");
    bench.run(what.clone(), &case, &[first])?;

    let query = batch.at[0];
    let args = args![slots, model.layer, scores_at, stride, largest_at, pieces, heads, model.kv_heads, head_dim, query];
    let all = head_dim.div_ceil(COLUMNS);
    let launch_of = |each: usize| {
        let (grid, shared) = ([parts, all.div_ceil(each), rows], 4 * each * HEADS * COLUMNS);
        (outputs_kernel, Shape { grid, block: [THREADS, 1], shared }, &args[..])
    };
    // As many pieces of columns for a block of threads as a session has, and other numbers.
    let (_, usual) = output_shape(head_dim, parts * rows, bench.device.multiprocessors());
    let other = [1, all, all.div_ceil(2)][(positions[0] + rows + model.group) % 3];
    // By itself, behind scores of the CPU's.
    let mut alone = case.clone();
    alone.begin_with_expected();
    for case in [&mut alone, &mut case] {
        case.expect_floats(query, 0, &outputs.concat());
    }
    for each in [usual, other] {
        bench.run(format!("{each} pieces of columns a block, {what}"), &alone, &[launch_of(each)])?;
    }
    bench.run(format!("behind the scores' kernel, {what}"), &case, &[first, launch_of(usual)])
}

pub(super) fn check_prompt(bench: &mut Bench) -> Result<()> {
    let mut i = 0;
    for tokens in [2, 7, 8, 9, 64, 100] {
        for first in [0, 1, 63, 500] {
            for (j, cache) in CACHES.into_iter().enumerate() {
                let (head_dim, group) = (HEAD_DIMS[i % 7], HEAD_GROUPS[i % 5]);
                let kv_heads = if head_dim > 128 { 1 } else { 1 + i % 3 };
                let model =
                    Model { group, kv_heads, head_dim, layer: (i + j) % 2, cache, norms: false, odd: i % 3 == 1 };
                check_prompt_of(bench, model, tokens, first, usize::MAX)?;
                check_prompt_of(bench, Model { odd: false, ..model }, tokens, first, 1 + i % 3)?;
                i += 1;
            }
        }
    }
    // Every width with every number of heads.
    for head_dim in HEAD_DIMS {
        for (j, group) in HEAD_GROUPS.into_iter().enumerate() {
            for cache in CACHES {
                let model =
                    Model { group, kv_heads: 1 + j % 2, head_dim, layer: j % 2, cache, norms: false, odd: j % 2 == 1 };
                check_prompt_of(bench, model, 9, 60, usize::MAX)?;
                check_prompt_of(bench, model, 3, 0, usize::MAX)?;
            }
        }
    }
    Ok(())
}

/// A batch of a prompt, with at most so many blocks of threads.
fn check_prompt_of(bench: &mut Bench, model: Model, tokens: usize, first: usize, blocks: usize) -> Result<()> {
    let (head_dim, heads, group) = (model.head_dim, model.heads(), model.group);
    let work = (tokens * group).div_ceil(QUERIES) * model.kv_heads;
    let blocks = work.min(4 * bench.device.multiprocessors()).min(blocks);
    let mut case = bench.case();
    let random = &mut bench.random;
    let (known, context) = (first + tokens, first + tokens + 2);
    let stride = context.next_multiple_of(ATTENTION_BLOCK);
    let sequence = Sequence::new(&mut case, random, &model, context, known, first, 0);
    let slots = case.piece("slots", Format::U32, &[sequence.slot]);
    let queries = random.floats(tokens * heads * head_dim);
    let query = case.floats("query", &queries);
    let scratch = case.output("scratch", Format::Scratch, 4 * blocks * QUERIES * stride);
    for (i, own) in queries.chunks_exact(head_dim).enumerate() {
        let (t, kv_head) = (i / heads, i % heads / group);
        let seen = (first + t + 1) * head_dim;
        let scores = scores(own, &sequence.keys[kv_head][..seen]);
        let made = weighted_values(&scores, &sequence.values[kv_head][..seen], head_dim);
        case.expect_floats(query, i * head_dim, &made);
    }
    let kernel = match model.cache {
        CacheType::F32 => named!(bench, attention_prompt_f32),
        CacheType::F16 => named!(bench, attention_prompt_f16),
    };
    let args = args![
        slots,
        model.layer,
        query,
        scratch,
        stride,
        tokens,
        heads,
        model.kv_heads,
        head_dim,
        score_scale(head_dim),
    ];
    let shape = Shape { grid: [blocks, 1, 1], block: [128, 1], shared: 4 * QUERIES * head_dim };
    let what = format!("{tokens} tokens from position {first} on, {blocks} blocks, {model:?}");
    bench.run(what, &case, &[(kernel, shape, args)])
}
