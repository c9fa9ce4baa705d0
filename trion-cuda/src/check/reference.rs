//! `docs/numerics.md`, written down as it stands there: one number after the other, without regard to speed.

use trion_core::numeric::{ATTENTION_BLOCK, f16_to_f32};

use super::data::{Rule, Sink};

const LANES: usize = 32;
const ROUND: f32 = 12_582_912.0;
const ROUND_BITS: i32 = 0x4b40_0000;
const SMALLEST_SCALE: f32 = 1e-5;

/// A NaN in either argument gives `b`, and so does a tie.
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// SUM.
fn sum(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, term) in terms.enumerate() {
        lanes[i % LANES] += term;
    }
    fold(lanes, |a, b| a + b)
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// LARGEST.
fn largest(x: &[f32]) -> f32 {
    let whole = x.len() / LANES * LANES;
    let mut lanes = [0.0; LANES];
    for (lane, x) in lanes.iter_mut().zip(&x[whole..]) {
        *lane = x.abs();
    }
    for (i, x) in x[..whole].iter().enumerate() {
        lanes[i % LANES] = larger(x.abs(), lanes[i % LANES]);
    }
    fold(lanes, larger)
}

/// Activations that share a scale.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) q: Vec<i8>,
    pub(super) scale: f32,
}

impl Span {
    pub(super) fn quantized(x: &[f32]) -> Self {
        let scale = 127.0 / larger(largest(x), SMALLEST_SCALE);
        let round = |v: f32| ((v + ROUND).to_bits() as i32 - ROUND_BITS) as i8;
        let q = x.iter().map(|x| round(smaller(larger(x * scale, -128.0), 127.0))).collect();
        Span { q, scale }
    }

    pub(super) fn sum(&self) -> i32 {
        self.q.iter().map(|q| i32::from(*q)).sum()
    }

    /// Scale and sum, as they lie in memory.
    pub(super) fn words(&self) -> [u32; 2] {
        [self.scale.to_bits(), self.sum() as u32]
    }
}

/// An input quantised over spans of `span` columns.
pub(super) fn quantized(x: &[f32], span: usize) -> Vec<Span> {
    x.chunks(span).map(Span::quantized).collect()
}

pub(super) fn exp(x: f32) -> f32 {
    let x = smaller(larger(x, -87.0), 88.0);
    let z = x * f32::from_bits(0x3fb8_aa3b) + ROUND;
    let n = z - ROUND;
    let r = (x - n * f32::from_bits(0x3f31_8000)) - n * f32::from_bits(0xb95e_8083);
    let mut q = f32::from_bits(0x3ab6_88be);
    for e in [0x3c09_05f1, 0x3d2a_aa8b, 0x3e2a_aa6e, 0x3f00_0000] {
        q = q * r + f32::from_bits(e);
    }
    let e = ((q * (r * r)) + r) + 1.0;
    e * f32::from_bits(z.to_bits().wrapping_add(127) << 23)
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(0.0 - x))
}

fn relu2(x: f32) -> f32 {
    let p = larger(x, 0.0);
    p * p
}

/// What becomes of an output: `old` is what was there, the gate where there is an activation.
pub(super) fn put(sink: Sink, old: f32, y: f32) -> f32 {
    match sink {
        Sink::Store => y,
        Sink::Add => old + y,
        Sink::Relu2 => relu2(old) * y,
        Sink::Silu => silu(old) * y,
    }
}

/// The product of a row of trits with quantised activations. `multipliers` are those of the row's groups.
pub(super) fn ternary_product(trits: &[i8], rule: Rule, multipliers: &[u16], spans: &[Span]) -> f32 {
    let mut rest = trits;
    let mut sums = spans.iter().map(|span| {
        let (trits, behind) = rest.split_at(span.q.len());
        rest = behind;
        let acc: i32 = trits.iter().zip(&span.q).map(|(t, q)| i32::from(*t) * i32::from(*q)).sum();
        (acc as f32, span.scale)
    });
    match rule {
        Rule::Groups(_) => {
            let mut y = 0.0;
            for ((acc, s), m) in sums.zip(multipliers) {
                y += (acc / s) * f16_to_f32(*m);
            }
            y
        }
        Rule::Multiply(m) => sums.next().map_or(0.0, |(acc, s)| (acc / s) * m),
        Rule::Divide(d) => sums.next().map_or(0.0, |(acc, s)| acc / (d * s)),
    }
}

/// `RMSNorm`, in place.
pub(super) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let r = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = (*x * r) * w;
    }
}

/// `x` through the norms that there are.
pub(super) fn normed(x: &[f32], norms: [Option<&[f32]>; 2], eps: [f32; 2]) -> Vec<f32> {
    let mut x = x.to_vec();
    for (norm, eps) in norms.into_iter().zip(eps) {
        if let Some(norm) = norm {
            rms_norm(&mut x, norm, eps);
        }
    }
    x
}

/// A head through its norm, if any, and rotated by cosines and sines that lie one behind the other.
pub(super) fn rotated(head: &[f32], norm: Option<&[f32]>, eps: f32, rotation: &[f32]) -> Vec<f32> {
    let mut head = normed(head, [norm, None], [eps, 0.0]);
    let half = head.len() / 2;
    for i in 0..half {
        let (a, b, cos, sin) = (head[i], head[i + half], rotation[i], rotation[i + half]);
        head[i] = (a * cos) - (b * sin);
        head[i + half] = (b * cos) + (a * sin);
    }
    head
}

/// What scores are multiplied by.
pub(super) fn score_scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// The score of each position.
pub(super) fn scores(query: &[f32], keys: &[f32]) -> Vec<f32> {
    let c = score_scale(query.len());
    keys.chunks_exact(query.len()).map(|key| dot(query, key) * c).collect()
}

/// The largest of some scores.
pub(super) fn largest_score(scores: impl Iterator<Item = f32>) -> f32 {
    scores.fold(f32::NEG_INFINITY, |m, score| larger(score, m))
}

/// What attention makes of scores and values.
pub(super) fn weighted_values(scores: &[f32], values: &[f32], head_dim: usize) -> Vec<f32> {
    let m = largest_score(scores.iter().copied());
    let weights: Vec<f32> = scores.iter().map(|score| exp(score - m)).collect();
    let mut total = 0.0;
    let mut out = vec![0.0; head_dim];
    for (weights, values) in weights.chunks(ATTENTION_BLOCK).zip(values.chunks(ATTENTION_BLOCK * head_dim)) {
        total += sum(weights.iter().copied());
        let mut block = vec![0.0; head_dim];
        for (w, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
            for (b, v) in block.iter_mut().zip(value) {
                *b += w * v;
            }
        }
        for (out, b) in out.iter_mut().zip(block) {
            *out += b;
        }
    }
    out.iter().map(|out| out / total).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trion_core::numeric::{bf16_to_f32, f32_to_f16, rotary_tables};
    use trion_core::{
        Activation, CacheType, FloatData, Int6Matrix, LayerNorm, Linear, Matrix, Model, Projection, Rescale,
        SessionOptions, TernaryMatrix,
    };
    use trion_engine::{FloatFormat, PackOptions, Packing, Pool, Session, quantize};

    use super::*;

    fn trits(matrix: &TernaryMatrix<'_>, row: usize) -> (Vec<i8>, Vec<u16>, Rule) {
        let mut trits = vec![0; matrix.cols()];
        matrix.decode_row(row, &mut trits);
        let multipliers = (0..).map_while(|group| matrix.group_scale(row, group));
        let groups = matrix.cols().div_ceil(matrix.activation_span());
        let rule = match matrix.rescale() {
            Rescale::Multiply(m) => Rule::Multiply(m),
            Rescale::Divide(d) => Rule::Divide(d),
            Rescale::Groups { size, .. } => Rule::Groups(size),
        };
        (trits, multipliers.take(groups).collect(), rule)
    }

    /// A row of a float matrix, and its scale if it has one.
    fn floats(data: FloatData<'_>, row: usize, cols: usize) -> (Vec<f32>, Option<f32>) {
        let own = row * cols..(row + 1) * cols;
        match data {
            FloatData::F32(w) => (w[own].to_vec(), None),
            FloatData::F16(w) => (w[own].iter().map(|w| f16_to_f32(*w)).collect(), None),
            FloatData::Bf16(w) => (w[own].iter().map(|w| bf16_to_f32(*w)).collect(), None),
            FloatData::I8 { values, scales } => {
                (values[own].iter().map(|w| f32::from(*w)).collect(), Some(scales[row]))
            }
        }
    }

    /// Codes times block scales of a row.
    fn int6(matrix: &Int6Matrix<'_>, row: usize) -> Vec<i32> {
        let (mut codes, mut scales) = (vec![0; matrix.cols()], vec![0; matrix.cols().div_ceil(16)]);
        matrix.decode_row(row, &mut codes, &mut scales);
        codes.iter().enumerate().map(|(c, code)| i32::from(*code) * i32::from(scales[c / 16])).collect()
    }

    fn product(matrix: &Matrix<'_>, x: &[f32]) -> Vec<f32> {
        let [rows, cols] = matrix.shape();
        match matrix {
            Matrix::Ternary(m) => {
                let spans = quantized(x, m.activation_span());
                let row = |row| trits(m, row);
                (0..rows)
                    .map(row)
                    .map(|(t, multipliers, rule)| ternary_product(&t, rule, &multipliers, &spans))
                    .collect()
            }
            Matrix::Int6(m) => {
                let spans = quantized(x, 128);
                let row = |row| int6(m, row);
                let product = |weights: Vec<i32>| {
                    let groups = weights.chunks(128).zip(&spans);
                    groups.fold(0.0, |y, (w, span)| {
                        let sum: i32 = w.iter().zip(&span.q).map(|(w, q)| w * i32::from(*q)).sum();
                        y + sum as f32 / span.scale
                    })
                };
                (0..rows).map(row).zip(m.row_scales()).map(|(w, scale)| product(w) * scale).collect()
            }
            Matrix::Float(m) => {
                let row = |row| floats(m.data(), row, cols);
                (0..rows).map(row).map(|(w, scale)| scale.map_or(dot(&w, x), |scale| dot(&w, x) * scale)).collect()
            }
        }
    }

    fn embedding(matrix: &Matrix<'_>, token: usize) -> Vec<f32> {
        match matrix {
            Matrix::Ternary(m) => {
                let (trits, multipliers, rule) = trits(m, token);
                let scale = |c: usize| match rule {
                    Rule::Multiply(m) => m,
                    Rule::Divide(d) => 1.0 / d,
                    Rule::Groups(size) => f16_to_f32(multipliers[c / size]),
                };
                trits.iter().enumerate().map(|(c, t)| f32::from(*t) * scale(c)).collect()
            }
            Matrix::Int6(m) => int6(m, token).into_iter().map(|w| w as f32 * m.row_scales()[token]).collect(),
            Matrix::Float(m) => {
                let (w, scale) = floats(m.data(), token, matrix.shape()[1]);
                w.iter().map(|w| w * scale.unwrap_or(1.0)).collect()
            }
        }
    }

    /// The logits behind some tokens, by the functions above alone.
    fn logits(model: &Model<'_>, tokens: &[u32], cache: CacheType) -> Vec<f32> {
        let config = model.config();
        let (eps, head_dim) = (config.rms_norm_eps, config.head_dim);
        let kept = |x: &f32| if cache == CacheType::F16 { f16_to_f32(f32_to_f16(*x)) } else { *x };
        let act = if config.hidden_act == Activation::Relu2 { Sink::Relu2 } else { Sink::Silu };
        // Keys and values of each layer and head.
        let mut caches = vec![[Vec::new(), Vec::new()]; model.layers().len() * config.num_key_value_heads];
        let mut hidden = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let mut rotation = vec![0.0; head_dim];
            let (cos, sin) = rotation.split_at_mut(head_dim / 2);
            rotary_tables(config.rope_theta, head_dim, position, cos, sin);
            hidden = embedding(model.embedding(), *token as usize);
            for (layer, caches) in model.layers().iter().zip(caches.chunks_mut(config.num_key_value_heads)) {
                let norm = |which: LayerNorm| layer.norms[which as usize];
                let project = |which: Projection, x: &[f32]| {
                    let Linear { matrix, norm } = &layer.projections[which as usize];
                    product(matrix, &normed(x, [*norm, None], [config.projection_norm_eps, 0.0]))
                };
                let x = normed(&hidden, [norm(LayerNorm::Attention), None], [eps, 0.0]);
                let [query, key, value] =
                    [Projection::Query, Projection::Key, Projection::Value].map(|which| project(which, &x));
                for (head, [keys, values]) in caches.iter_mut().enumerate() {
                    let own = head * head_dim..(head + 1) * head_dim;
                    let key = rotated(&key[own.clone()], norm(LayerNorm::Key), eps, &rotation);
                    keys.extend(key.iter().map(kept));
                    values.extend(value[own].iter().map(kept));
                }
                let group = config.num_attention_heads / config.num_key_value_heads;
                let mut attention = Vec::new();
                for (head, query) in query.chunks_exact(head_dim).enumerate() {
                    let query = rotated(query, norm(LayerNorm::Query), eps, &rotation);
                    let [keys, values] = &caches[head / group];
                    attention.extend(weighted_values(&scores(&query, keys), values, head_dim));
                }
                let attention = normed(&attention, [norm(LayerNorm::AttentionSub), None], [eps, 0.0]);
                let add = |(h, y): (&mut f32, f32)| *h = put(Sink::Add, *h, y);
                hidden.iter_mut().zip(project(Projection::Output, &attention)).for_each(add);
                let x = normed(&hidden, [norm(LayerNorm::Mlp), None], [eps, 0.0]);
                let [gate, up] = [Projection::Gate, Projection::Up].map(|which| project(which, &x));
                let gated: Vec<f32> = gate.iter().zip(up).map(|(gate, up)| put(act, *gate, up)).collect();
                let gated = normed(&gated, [norm(LayerNorm::MlpSub), None], [eps, 0.0]);
                hidden.iter_mut().zip(project(Projection::Down, &gated)).for_each(add);
            }
        }
        product(model.head(), &normed(&hidden, [Some(model.norm()), None], [eps, 0.0]))
    }

    #[test]
    fn the_contract_as_it_is_written_here_gives_the_cpus_logits() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden");
        let models = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
        let models: Vec<_> = models.filter(|path| path.join("config.json").exists()).collect();
        assert!(models.len() >= 8, "{models:?}");
        let pool = Pool::new(1).unwrap();
        // Each checkpoint as it is, and with six bits a weight for its embedding and head.
        let packed = std::env::temp_dir().join(format!("trion-int6-{}.safetensors", std::process::id()));
        for (path, open) in models.iter().flat_map(|path| [(path, path), (path, &packed)]) {
            if *open == packed {
                let int6 = PackOptions { embedding: FloatFormat::Int6, packing: Packing::Fives };
                quantize(path, open, &int6, &mut |_, _| {}).unwrap();
            }
            let model = trion_engine::Model::open(open).unwrap();
            let count = 70.min(model.config().max_position_embeddings);
            let tokens: Vec<u32> = (0..count).map(|i| ((i * 7919 + 13) % model.config().vocab_size) as u32).collect();
            for cache in [CacheType::F32, CacheType::F16] {
                let options = SessionOptions { cache, ..SessionOptions::new(count) };
                let mut session = Session::new(&model, options).unwrap();
                let expected = session.evaluate(&tokens, &pool).unwrap();
                let found = logits(model.core(), &tokens, cache);
                let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(expected), "{}, {cache:?}", path.display());
            }
        }
        std::fs::remove_file(packed).unwrap();
    }

    #[test]
    fn the_largest_begins_with_the_tail() {
        let mut x = vec![1.0; 34];
        x[5] = f32::NAN;
        assert_eq!(largest(&x), 1.0);
        // A NaN in the tail takes its lane out of the running.
        x[33] = f32::NAN;
        x[1] = -3.0;
        assert_eq!(largest(&x), 1.0);
        x[2] = f32::NEG_INFINITY;
        assert_eq!(Span::quantized(&x).scale, 0.0);
    }
}
