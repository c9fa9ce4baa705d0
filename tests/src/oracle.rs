//! The forward pass once more, as plainly as it can be written: integers where they belong, sums in double precision.
//! Norms and quantisation work in single precision, in the contract's order: embeddings of few bits have exact ties, and
//! only roundings decide them.
//!
//! It knows nothing of kernels, tiles of work, batches or caches. Where its quantised activations lie within float
//! rounding of a half, the side they fall on is chance, in any implementation; it can take the other side on request.

use trion_core::numeric::{LANES, bf16_to_f32, f16_to_f32};
use trion_core::{Activation, FloatData, LayerNorm, Linear, Matrix, Model, Projection, Rescale, TernaryMatrix};

/// A quantised activation that nearly was another integer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tie {
    /// Which of all activations that were quantised, in order.
    pub index: usize,
    /// How far the value lay from a half.
    pub distance: f64,
}

/// The pass over one prompt.
struct Pass<'m> {
    model: &'m Model<'m>,
    /// Activations quantised so far.
    count: usize,
    /// Indices of those that are rounded the other way, ascending.
    flips: Vec<usize>,
    /// Those that are near a half.
    ties: Vec<Tie>,
    /// The last input and what it was quantised to: projections that share an input share its rounding.
    last: (Vec<f64>, Vec<f64>),
}

/// Distance from a half within which the side is chance: some units in the last place of values up to 127.
const NEAR: f64 = 1e-4;

/// Ties that, rounded the other way, make the oracle's logits agree with `logits` within `tolerance`.
///
/// # Errors
/// The difference that is left when no tie brings them closer.
pub fn ties_that_explain(model: &Model<'_>, tokens: &[u32], logits: &[f32], tolerance: f32) -> Result<Vec<Tie>, f32> {
    // The first token that differs, and the sum of its differences: flips are judged by how far they push them back.
    let vocab_size = model.config().vocab_size;
    let judge = |found: &[f32]| {
        let rows = found.chunks(vocab_size).zip(logits.chunks(vocab_size));
        let mut differences = rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()));
        let first = differences.clone().position(|mut row| row.any(|d| d >= tolerance)).unwrap_or(tokens.len());
        (first, differences.nth(first).map_or(0.0, std::iter::Iterator::sum::<f32>))
    };
    let mut chosen: Vec<Tie> = Vec::new();
    let flips = |chosen: &[Tie]| {
        let mut flips: Vec<usize> = chosen.iter().map(|tie| tie.index).collect();
        flips.sort_unstable();
        flips
    };
    let (mut found, mut ties) = run(model, tokens, &[]);
    loop {
        let (first, difference) = judge(&found);
        if first == tokens.len() {
            return Ok(chosen);
        }
        ties.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        let candidates = ties.iter().filter(|tie| !chosen.contains(tie)).take(200);
        let better = candidates.copied().find_map(|tie| {
            let mut more = chosen.clone();
            more.push(tie);
            let (found, ties) = run(model, tokens, &flips(&more));
            let (next, left) = judge(&found);
            (next > first || (next == first && left < 0.9 * difference)).then_some((more, found, ties))
        });
        (chosen, found, ties) = better.ok_or(difference)?;
    }
}

/// Logits `[tokens, vocab_size]`, and the near ties.
fn run(model: &Model<'_>, tokens: &[u32], flips: &[usize]) -> (Vec<f32>, Vec<Tie>) {
    let mut pass = Pass { model, count: 0, flips: flips.to_vec(), ties: Vec::new(), last: Default::default() };
    let logits = pass.logits(tokens);
    (logits, pass.ties)
}

impl Pass<'_> {
    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let model = self.model;
        let config = *model.config();
        let mut hidden: Vec<Vec<f64>> = tokens.iter().map(|token| row(model.embedding(), *token as usize)).collect();
        for layer in model.layers() {
            let project =
                |pass: &mut Self, projection: Projection, x: &[f64]| pass.linear(layer.projection(projection), x);
            let normed = |x: &[f64], norm: LayerNorm| match layer.norm(norm) {
                Some(weight) => rms_norm(x, weight, config.rms_norm_eps),
                None => x.to_vec(),
            };
            let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for (position, h) in hidden.iter().enumerate() {
                let x = normed(h, LayerNorm::Attention);
                for (projection, norm, out) in
                    [(Projection::Query, LayerNorm::Query, &mut queries), (Projection::Key, LayerNorm::Key, &mut keys)]
                {
                    let heads = project(self, projection, &x);
                    let rotated = heads
                        .chunks(config.head_dim)
                        .flat_map(|head| rotate(&normed(head, norm), position, config.rope_theta));
                    out.push(rotated.collect::<Vec<_>>());
                }
                values.push(project(self, Projection::Value, &x));
            }
            for (position, h) in hidden.iter_mut().enumerate() {
                let group = config.num_attention_heads / config.num_key_value_heads;
                let mut attended = Vec::new();
                for (n, query) in queries[position].chunks(config.head_dim).enumerate() {
                    let columns = n / group * config.head_dim..(n / group + 1) * config.head_dim;
                    attended.extend(attention(query, &keys[..=position], &values[..=position], columns));
                }
                let x = normed(&attended, LayerNorm::AttentionSub);
                add(h, &project(self, Projection::Output, &x));
                let x = normed(h, LayerNorm::Mlp);
                let mut gate = project(self, Projection::Gate, &x);
                let up = project(self, Projection::Up, &x);
                for (g, u) in gate.iter_mut().zip(up) {
                    *g = u * match config.hidden_act {
                        Activation::Relu2 => g.max(0.0).powi(2),
                        Activation::Silu => *g / (1.0 + (-*g).exp()),
                    };
                }
                let x = normed(&gate, LayerNorm::MlpSub);
                add(h, &project(self, Projection::Down, &x));
            }
        }
        let head = Linear { matrix: *model.head(), norm: None };
        let norm = model.norm();
        hidden
            .iter()
            .flat_map(|h| self.linear(&head, &rms_norm(h, norm, config.rms_norm_eps)))
            .map(|logit| logit as f32)
            .collect()
    }

    fn linear(&mut self, linear: &Linear<'_>, x: &[f64]) -> Vec<f64> {
        let eps = self.model.config().projection_norm_eps;
        let x = linear.norm.map_or_else(|| x.to_vec(), |weight| rms_norm(x, weight, eps));
        let [rows, _] = linear.matrix.shape();
        let Matrix::Ternary(matrix) = &linear.matrix else {
            return (0..rows).map(|r| dot(&row(&linear.matrix, r), &x)).collect();
        };
        let scale = match matrix.rescale() {
            Rescale::Multiply(scale) => f64::from(scale),
            Rescale::Divide(scale) => 1.0 / f64::from(scale),
            Rescale::Groups { .. } => panic!("models with group scales have no reference that is free of their cost"),
        };
        let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs() as f32));
        let s = 127.0 / largest.max(1e-5);
        if self.last.0 != x {
            let q = x.iter().map(|x| self.round(f64::from(*x as f32 * s))).collect();
            self.last = (x, q);
        }
        (0..rows).map(|r| dot(&trits(matrix, r), &self.last.1) / f64::from(s) * scale).collect()
    }

    fn round(&mut self, value: f64) -> f64 {
        let index = self.count;
        self.count += 1;
        let distance = (value - value.floor() - 0.5).abs();
        if distance < NEAR {
            self.ties.push(Tie { index, distance });
        }
        let rounded = value.round_ties_even();
        if self.flips.binary_search(&index).is_err() {
            rounded
        } else if rounded > value {
            rounded - 1.0
        } else {
            rounded + 1.0
        }
    }
}

fn trits(matrix: &TernaryMatrix<'_>, row: usize) -> Vec<f64> {
    let mut trits = vec![0; matrix.cols()];
    matrix.decode_row(row, &mut trits);
    trits.into_iter().map(f64::from).collect()
}

fn row(matrix: &Matrix<'_>, row: usize) -> Vec<f64> {
    let [_, cols] = matrix.shape();
    let range = row * cols..(row + 1) * cols;
    match matrix {
        Matrix::Ternary(matrix) => trits(matrix, row),
        Matrix::Float(matrix) => match matrix.data() {
            FloatData::F32(values) => values[range].iter().map(|v| f64::from(*v)).collect(),
            FloatData::F16(bits) => bits[range].iter().map(|b| f64::from(f16_to_f32(*b))).collect(),
            FloatData::Bf16(bits) => bits[range].iter().map(|b| f64::from(bf16_to_f32(*b))).collect(),
            FloatData::I8 { values, scales } => {
                values[range].iter().map(|v| f64::from(*v) * f64::from(scales[row])).collect()
            }
        },
        Matrix::Int6(matrix) => {
            let mut weights = vec![0.0; cols];
            matrix.row(row, &mut weights);
            weights.into_iter().map(f64::from).collect()
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += what);
}

fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mut lanes = [0.0_f32; LANES];
    for (i, x) in x.iter().enumerate() {
        lanes[i % LANES] += *x as f32 * *x as f32;
    }
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    let r = 1.0 / (lanes[0] / x.len() as f32 + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| f64::from(*x as f32 * r * w)).collect()
}

fn rotate(head: &[f64], position: usize, theta: f32) -> Vec<f64> {
    let half = head.len() / 2;
    let angle = |i: usize| {
        let frequency = f64::from(theta).powf(-((2 * i) as f64) / head.len() as f64) as f32;
        f64::from(position as f32 * frequency)
    };
    let first = (0..half).map(|i| head[i] * angle(i).cos() - head[half + i] * angle(i).sin());
    let second = (0..half).map(|i| head[half + i] * angle(i).cos() + head[i] * angle(i).sin());
    first.chain(second).collect()
}

fn attention(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], columns: std::ops::Range<usize>) -> Vec<f64> {
    let scale = (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, &key[columns.clone()]) / scale).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    columns.map(|c| weights.iter().zip(values).map(|(w, value)| w * value[c]).sum::<f64>() / total).collect()
}
