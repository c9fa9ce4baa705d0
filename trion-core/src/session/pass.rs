//! What each stage computes, for the units that sessions were assigned.

use core::ops::Range;

use super::Member;
use super::forward::Stage;
use super::memory::{quantized_stride, spans};
use crate::config::Activation;
use crate::kernel::bands::{Bands, PerSession, Tile, for_each_band, for_each_tile, per_session};
use crate::kernel::{CacheFormat, Kernel, Op, Simd};
use crate::kv_cache::{Cache, KvCache};
use crate::layer::{Attention, RmsNorm, activate, rotary_tables, rotate, scores_len};
use crate::matrix::{Input, Linear, Matrix, Outputs};
use crate::model::{Layer, LayerNorm, Model, Projection};
use crate::packing::{BLOCK_COLS, TILE_ROWS};
use crate::parallel::Parallel;
use crate::quant::Quantize;

/// What the units of one stage are computed with.
pub(super) struct Pass<'p, 's> {
    pub(super) model: &'p Model<'p>,
    pub(super) kernel: Kernel,
    pub(super) members: &'p mut [Member<'s>],
    pub(super) parallel: &'p dyn Parallel,
}

impl Pass<'_, '_> {
    pub(super) fn run(&mut self, layer: usize, stage: Stage) {
        let weights = &self.model.layers()[layer];
        match stage {
            Stage::Embed => self.embed(),
            Stage::Prepare(p) => self.prepare(weights, p),
            Stage::Multiply(p) => self.multiply(weights, p),
            Stage::Rotate => self.rotate(layer),
            Stage::Attend => self.attend(layer),
            Stage::PrepareHead => {
                let head = Linear { matrix: *self.model.head(), norm: None };
                self.prepare_input(&head, Source::LastHidden, Some(self.model.norm()));
            }
            Stage::MultiplyHead => self.multiply_head(),
        }
    }

    /// The units that were assigned, of each session.
    fn units(&self) -> PerSession<Range<usize>> {
        per_session(self.members.iter().map(|member| member.units.clone()))
    }

    fn embed(&mut self) {
        let config = self.model.config();
        let units = self.units();
        let mut tokens = PerSession::new();
        let (mut hidden, mut rotation) = (PerSession::new(), PerSession::new());
        for member in &mut *self.members {
            let memory = &mut member.memory;
            let first = member.counts.done;
            let _ = tokens.push((first, &memory.tokens[first..]));
            let _ = hidden.push(Bands::of_rows(memory.hidden, config.hidden_size));
            let _ = rotation.push(Bands::of_rows(memory.rotation, config.head_dim));
        }
        let (embedding, kernel) = (self.model.embedding(), self.kernel);
        for_each_band(
            self.parallel,
            &units,
            (&mut hidden, &mut rotation, &mut ()),
            |session, t, (mut hidden, mut rotation, ())| {
                let (first, tokens) = tokens[session];
                kernel.run(Row { matrix: embedding, row: tokens[t] as usize, out: hidden.row(0) });
                let (cos, sin) = rotation.row(0).split_at_mut(config.head_dim / 2);
                rotary_tables(config.rope_theta, config.head_dim, first + t, cos, sin);
            },
        );
    }

    fn prepare(&mut self, layer: &Layer<'_>, projection: Projection) {
        let (source, norm) = match projection {
            Projection::Query | Projection::Key | Projection::Value => (Source::Hidden, LayerNorm::Attention),
            Projection::Output => (Source::Attention, LayerNorm::AttentionSub),
            Projection::Gate | Projection::Up => (Source::Hidden, LayerNorm::Mlp),
            Projection::Down => (Source::Intermediate, LayerNorm::MlpSub),
        };
        self.prepare_input(layer.projection(projection), source, layer.norm(norm));
    }

    /// For each unit u, puts token u of `source` through `norm` and the projection's own norm into row u of the input, and
    /// quantises it if the projection is ternary.
    fn prepare_input(&mut self, linear: &Linear<'_>, source: Source, norm: Option<&[f32]>) {
        let config = self.model.config();
        let [_, cols] = linear.matrix.shape();
        let units = self.units();
        let mut sources = PerSession::<&[f32]>::new();
        // A row of each buffer is a band, so that every token is a task of its own.
        let (mut inputs, mut quantized, mut scales) = (PerSession::new(), PerSession::new(), PerSession::new());
        for member in &mut *self.members {
            let rows = member.counts.rows(member.options);
            let memory = &mut member.memory;
            let _ = sources.push(match source {
                Source::Hidden => memory.hidden,
                Source::LastHidden => &memory.hidden[(rows.tokens - rows.logits) * cols..],
                Source::Attention => memory.query,
                Source::Intermediate => memory.intermediate,
            });
            let _ = inputs.push(Bands::of_rows(memory.input, config.widest_input()));
            let _ = quantized.push(Bands::of_rows(memory.quantized, quantized_stride(config)));
            let _ = scales.push(Bands::of_rows(memory.scales, spans(config)));
        }
        let span = linear.matrix.activation_span();
        let kernel = self.kernel;
        for_each_band(
            self.parallel,
            &units,
            (&mut inputs, &mut quantized, &mut scales),
            |session, unit, (mut x, mut q, mut scales)| {
                let x = &mut x.row(0)[..cols];
                x.copy_from_slice(&sources[session][unit * cols..][..cols]);
                if let Some(weight) = norm {
                    kernel.run(RmsNorm { x, weight, eps: config.rms_norm_eps });
                }
                if let Some(weight) = linear.norm {
                    kernel.run(RmsNorm { x, weight, eps: config.projection_norm_eps });
                }
                let Some(span) = span else { return };
                let q = &mut q.row(0)[..cols.next_multiple_of(BLOCK_COLS)];
                for ((x, q), scale) in
                    x.chunks(span).zip(q.chunks_mut(span.next_multiple_of(BLOCK_COLS))).zip(scales.row(0))
                {
                    *scale = kernel.run(Quantize { x, out: q });
                }
            },
        );
    }

    fn multiply(&mut self, layer: &Layer<'_>, projection: Projection) {
        let matrix = &layer.projection(projection).matrix;
        let sink = match projection {
            Projection::Query | Projection::Key | Projection::Value | Projection::Gate => Sink::Store,
            Projection::Up => Sink::Activate(self.model.config().hidden_act),
            Projection::Output | Projection::Down => Sink::Add,
        };
        self.product(matrix, Some(projection), sink);
    }

    fn multiply_head(&mut self) {
        self.product(self.model.head(), None, Sink::Store);
    }

    /// The product of a matrix with the inputs that [`Pass::prepare_input`] left: of a block's, or of the head.
    fn product(&mut self, matrix: &Matrix<'_>, projection: Option<Projection>, sink: Sink) {
        let config = self.model.config();
        let [rows, cols] = matrix.shape();
        let Some(tiles) = self.members.first().map(|member| member.units.clone()) else { return };
        let (mut inputs, mut outputs) = (PerSession::new(), PerSession::new());
        for member in &mut *self.members {
            let batch = member.counts.rows(member.options);
            let memory = &mut member.memory;
            let (tokens, out): (usize, &mut [f32]) = match projection {
                Some(Projection::Query) => (batch.tokens, memory.query),
                Some(Projection::Key) => (batch.tokens, memory.key),
                Some(Projection::Value) => (batch.tokens, memory.value),
                Some(Projection::Gate | Projection::Up) => (batch.tokens, memory.intermediate),
                Some(Projection::Output | Projection::Down) => (batch.tokens, memory.hidden),
                None => (batch.logits, memory.logits),
            };
            let _ = inputs.push(Input {
                tokens,
                x: memory.input,
                x_stride: config.widest_input(),
                cols,
                q: memory.quantized,
                q_stride: quantized_stride(config),
                scales: memory.scales,
                spans: spans(config),
            });
            let _ = outputs.push(Bands::new(&mut out[..tokens * rows], rows, TILE_ROWS));
        }
        let kernel = self.kernel;
        for_each_tile(self.parallel, tiles, &mut outputs, |tile, out| {
            kernel.run(Product { matrix, tile, inputs: &inputs, out: TileOutputs { out, sink } });
        });
    }

    fn rotate(&mut self, layer: usize) {
        let config = self.model.config();
        let weights = &self.model.layers()[layer];
        let (kernel, head_dim) = (self.kernel, config.head_dim);
        for member in &mut *self.members {
            let first = member.counts.done;
            let memory = &mut member.memory;
            for t in member.units.clone() {
                if self.parallel.cancelled() {
                    return;
                }
                let (cos, sin) = memory.rotation[t * head_dim..][..head_dim].split_at(head_dim / 2);
                let query = &mut memory.query[t * config.query_size()..][..config.query_size()];
                let key = &mut memory.key[t * config.key_value_size()..][..config.key_value_size()];
                let value = &memory.value[t * config.key_value_size()..][..config.key_value_size()];
                for (heads, norm) in [(query, LayerNorm::Query), (&mut *key, LayerNorm::Key)] {
                    for head in heads.chunks_exact_mut(head_dim) {
                        if let Some(weight) = weights.norm(norm) {
                            kernel.run(RmsNorm { x: head, weight, eps: config.rms_norm_eps });
                        }
                        rotate(head, cos, sin);
                    }
                }
                match &mut memory.cache {
                    KvCache::F32(cache) => cache.write(kernel, layer, first + t, key, value),
                    KvCache::F16(cache) => cache.write(kernel, layer, first + t, key, value),
                }
            }
        }
    }

    /// Unit u is token u % batch of head u / batch. Heads that share keys and values are computed together, as far as
    /// all threads have something to do.
    fn attend(&mut self, layer: usize) {
        let config = self.model.config();
        let (query_size, head_dim) = (config.query_size(), config.head_dim);
        let group = config.num_attention_heads / config.num_key_value_heads;
        let shared = self.members.len() * config.num_key_value_heads;
        let together = heads_together(group, shared, self.parallel.threads());
        let mut tasks = PerSession::new();
        let mut sessions = PerSession::new();
        let (mut queries, mut scores) = (PerSession::new(), PerSession::new());
        for member in &mut *self.members {
            let (batch, first) = (member.counts.cursor.batch, member.counts.done);
            let (memory, units) = (&mut member.memory, &member.units);
            let _ = tasks.push(units.start / (batch * together)..units.end.div_ceil(batch * together));
            let scores_len = scores_len(member.options.context);
            let _ = queries.push(Bands::new(&mut memory.query[..batch * query_size], query_size, together * head_dim));
            let _ = scores.push(Bands::of_rows(memory.scores, together * scores_len));
            let _ = sessions.push((units.clone(), batch, first, scores_len, &memory.cache));
        }
        let (kernel, parallel) = (self.kernel, self.parallel);
        for_each_band(
            parallel,
            &tasks,
            (&mut queries, &mut scores, &mut ()),
            |session, task, (mut queries, mut scores, ())| {
                let (units, batch, first, scores_len, cache) = &sessions[session];
                let (batch, begin) = (*batch, task * together * batch);
                let kv_head = task * together / group;
                for t in 0..batch {
                    // Of this task's heads, those whose unit of this token was assigned.
                    let head_of = |unit: usize| unit.saturating_sub(begin + t).div_ceil(batch).min(together);
                    let (from, to) = (head_of(units.start), head_of(units.end));
                    if from >= to {
                        continue;
                    }
                    if parallel.cancelled() {
                        return;
                    }
                    let queries = &mut queries.row(t)[from * head_dim..to * head_dim];
                    let scores = &mut scores.row(0)[from * scores_len..to * scores_len];
                    let positions = first + t + 1;
                    match cache {
                        KvCache::F32(cache) => attend(kernel, cache, layer, kv_head, positions, queries, scores),
                        KvCache::F16(cache) => attend(kernel, cache, layer, kv_head, positions, queries, scores),
                    }
                }
            },
        );
    }
}

/// How many heads of a `group` that shares keys and values a task takes, where there are `shared` such groups: all of
/// them, unless fewer divide the work better among the threads.
fn heads_together(group: usize, shared: usize, threads: usize) -> usize {
    let divides_well = |parts: usize| (shared * parts).is_multiple_of(threads) || shared * parts >= 8 * threads;
    let parts = (1..group).filter(|parts| group.is_multiple_of(*parts)).find(|parts| divides_well(*parts));
    group / parts.unwrap_or(group)
}

/// Attention of query heads that share one head of the cache over its first `positions`.
fn attend<F: CacheFormat>(
    kernel: Kernel,
    cache: &Cache<'_, F>,
    layer: usize,
    kv_head: usize,
    positions: usize,
    queries: &mut [f32],
    scores: &mut [f32],
) {
    let (keys, values) = cache.head(layer, kv_head, positions);
    kernel.run(Attention::<F> { queries, head_dim: cache.head_dim, keys, values, scores });
}

/// Where a projection's input comes from.
#[derive(Clone, Copy)]
enum Source {
    Hidden,
    /// Those of the tokens that want logits.
    LastHidden,
    Attention,
    Intermediate,
}

/// What happens to the outputs of a projection.
#[derive(Clone, Copy)]
enum Sink {
    /// They replace what is there.
    Store,
    /// They are added to the residual stream.
    Add,
    /// They are the up projection: what is there is the gate, and becomes act(gate) * up.
    Activate(Activation),
}

/// The product of one tile for every token.
struct Product<'a, 'o> {
    matrix: &'a Matrix<'a>,
    tile: usize,
    inputs: &'a [Input<'a>],
    out: TileOutputs<'o>,
}

struct TileOutputs<'o> {
    out: Tile<'o, f32>,
    sink: Sink,
}

impl Op for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.matrix.tile_products(simd, self.tile, self.inputs, &mut self.out);
    }
}

impl Outputs for TileOutputs<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, session: usize, token: usize, y: &[f32; TILE_ROWS]) {
        let out = self.out.row(session, token);
        match self.sink {
            Sink::Store => out.iter_mut().zip(y).for_each(|(out, y)| *out = *y),
            Sink::Add => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
            Sink::Activate(activation) => activate(simd, activation, out, y),
        }
    }
}

/// A row of the embedding.
struct Row<'a> {
    matrix: &'a Matrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Op for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.matrix.row(simd, self.row, self.out);
    }
}
