//! The forward pass as a row of stages, each of many small units, so that it can stop after any of them.
//!
//! Where the pass stands is plain data ([`Cursor`]); what a stage computed stays in the session's memory. A stage begins
//! when the one before is complete, and its units do not depend on each other.

use core::ops::Range;

use super::memory::{Memory, quantized_stride, spans};
use super::{Logits, Observation, Progress, Session};
use crate::config::{Activation, Config};
use crate::kernel::bands::{Band, Bands, for_each_band};
use crate::kernel::{CacheFormat, Kernel, Op, Simd};
use crate::kv_cache::{Cache, KvCache};
use crate::layer::{Attention, RmsNorm, activate, rotary_tables, rotate, scores_len};
use crate::matrix::{Input, Linear, Matrix};
use crate::model::{Layer, LayerNorm, Model, Projection};
use crate::parallel::Parallel;
use crate::quant::{ActivationScale, Quantize};
use crate::ternary::{BLOCK_COLS, TILE_ROWS};

/// How far the batch under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Tokens of the batch; 0 when none is under way.
    batch: usize,
    /// Stages that are complete.
    stage: usize,
    /// Units of the current stage that are complete.
    unit: usize,
}

impl Cursor {
    /// No batch is under way.
    pub(super) const IDLE: Cursor = Cursor { batch: 0, stage: 0, unit: 0 };
}

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Rows of the embedding, and the tables of the rotary embedding. A unit is a token.
    Embed,
    /// Norms before a projection, and quantisation. A unit is a token.
    Prepare(Projection),
    /// A projection and what follows each of its outputs. A unit is a tile of 32 rows, for every token.
    Multiply(Projection),
    /// Query and key norms, rotation, and the write to the cache. A unit is a token.
    Rotate,
    /// Attention. A unit is a head of a token.
    Attend,
    /// The norm before the head. A unit is a token.
    PrepareHead,
    /// The head. A unit is a tile of 32 rows, for every token that wants logits.
    MultiplyHead,
}

/// The stages of a block, in order.
const BLOCK: [Stage; 16] = {
    use Projection as P;
    use Stage::{Attend, Multiply, Prepare, Rotate};
    [
        Prepare(P::Query),
        Multiply(P::Query),
        Prepare(P::Key),
        Multiply(P::Key),
        Prepare(P::Value),
        Multiply(P::Value),
        Rotate,
        Attend,
        Prepare(P::Output),
        Multiply(P::Output),
        Prepare(P::Gate),
        Multiply(P::Gate),
        Prepare(P::Up),
        Multiply(P::Up),
        Prepare(P::Down),
        Multiply(P::Down),
    ]
};

/// The stage at place `index` of the whole pass, with its layer.
fn stage_at(layers: usize, index: usize) -> (usize, Stage) {
    match index.checked_sub(1) {
        None => (0, Stage::Embed),
        Some(i) if i < layers * BLOCK.len() => (i / BLOCK.len(), BLOCK[i % BLOCK.len()]),
        Some(i) if i == layers * BLOCK.len() => (0, Stage::PrepareHead),
        Some(_) => (0, Stage::MultiplyHead),
    }
}

/// Row-blocks of a token's row of the embedding and its rotary tables, of which the sines are most.
const fn embed_cost(config: &Config) -> usize {
    1 + config.head_dim / 4
}

/// Row-blocks of a pass over a vector: a norm with quantisation, or the rotation of all heads.
const fn vector_cost(elements: usize) -> usize {
    1 + elements / 256
}

/// Row-blocks of one head of attention over `positions`.
const fn attend_cost(positions: usize) -> usize {
    1 + positions / 32
}

/// Row-blocks of one token, alone, when it is number `positions` of its sequence.
pub(super) fn row_blocks_per_token(model: &Model<'_>, positions: usize) -> usize {
    let alone = Batch { tokens: 1, first: positions.saturating_sub(1), logits: 1 };
    let mut sum = 0_usize;
    for index in 0..alone.stages(model) {
        let (layer, stage) = stage_at(model.config().num_hidden_layers, index);
        let (units, cost) = alone.extent(model, layer, stage);
        sum = sum.saturating_add(units.saturating_mul(cost));
    }
    sum
}

/// Whether a projection reads an input that is not the one prepared for the projection before it.
fn needs_input(layer: &Layer<'_>, projection: Projection) -> bool {
    let source = match projection {
        Projection::Key => Projection::Query,
        Projection::Value => Projection::Key,
        Projection::Up => Projection::Gate,
        _ => return true,
    };
    let (own, other) = (layer.projection(projection), layer.projection(source));
    own.norm.is_some() || other.norm.is_some() || activation_span(&own.matrix) != activation_span(&other.matrix)
}

/// Columns that a matrix wants activations quantised over; `None` for a float matrix.
pub(super) fn activation_span(matrix: &Matrix<'_>) -> Option<usize> {
    match matrix {
        Matrix::Ternary(m) => Some(m.activation_span()),
        Matrix::Float(_) => None,
    }
}

impl Session<'_, '_> {
    /// Spends the budget; there is at least one token to compute. Whoever observes sees every stage that is completed.
    pub(super) fn forward(
        &mut self,
        mut budget: usize,
        parallel: &dyn Parallel,
        mut observer: Option<&mut dyn FnMut(Observation<'_>)>,
    ) -> Progress {
        self.logits_rows = 0;
        loop {
            if self.cursor.batch == 0 {
                let batch = (self.len - self.done).min(self.options.max_batch);
                self.cursor = Cursor { batch, stage: 0, unit: 0 };
            }
            let batch = self.batch();
            let stages = batch.stages(self.model);
            while self.cursor.stage < stages {
                let (layer, stage) = stage_at(self.model.config().num_hidden_layers, self.cursor.stage);
                let (units, cost) = batch.extent(self.model, layer, stage);
                let from = self.cursor.unit;
                // The last unit may cost more than what is left: every call spends its budget, and a small one gets on.
                let affordable = budget.div_ceil(cost.max(1));
                let to = units.min(from.saturating_add(affordable));
                if from < to {
                    if budget == 0 {
                        return Progress::More;
                    }
                    let mut pass = Pass {
                        model: self.model,
                        kernel: self.kernel,
                        memory: &mut self.memory,
                        parallel,
                        batch: self.cursor.batch,
                        first: self.done,
                        context: self.options.context,
                    };
                    pass.run(layer, stage, from..to);
                    if parallel.cancelled() {
                        // Nobody knows which units of the stage were done. The batch can be begun again: its first stage
                        // overwrites all that the others read, but the cache, where each position is written before it is
                        // read.
                        self.cursor = Cursor::IDLE;
                        return Progress::More;
                    }
                    let spent = (to - from).saturating_mul(cost);
                    self.spent = self.spent.saturating_add(spent);
                    budget = budget.saturating_sub(spent);
                }
                self.cursor.unit = to;
                if to < units {
                    return Progress::More;
                }
                if let Some(observer) = observer.as_deref_mut().filter(|_| units > 0) {
                    self.observe(layer, stage, batch.tokens, batch.logits, observer);
                }
                self.cursor.stage += 1;
                self.cursor.unit = 0;
            }
            self.done += batch.tokens;
            self.cursor = Cursor::IDLE;
            if self.done == self.len {
                self.logits_rows = batch.logits;
                return Progress::Ready;
            }
        }
    }

    /// The batch under way.
    fn batch(&self) -> Batch {
        let tokens = self.cursor.batch;
        let logits = match self.options.logits {
            Logits::All => tokens,
            Logits::Last => usize::from(self.done + tokens == self.len),
        };
        Batch { tokens, first: self.done, logits }
    }
}

/// Tokens that go through the model together.
struct Batch {
    tokens: usize,
    /// Position of the first.
    first: usize,
    /// How many want logits: the last ones.
    logits: usize,
}

impl Batch {
    fn stages(&self, model: &Model<'_>) -> usize {
        1 + model.config().num_hidden_layers * BLOCK.len() + if self.logits > 0 { 2 } else { 0 }
    }

    /// Units of a stage, and the row-blocks that each costs.
    fn extent(&self, model: &Model<'_>, layer: usize, stage: Stage) -> (usize, usize) {
        let (tokens, config) = (self.tokens, model.config());
        let layer = &model.layers()[layer];
        match stage {
            Stage::Embed => (tokens, embed_cost(config)),
            Stage::Rotate => (tokens, vector_cost(config.query_size() + config.key_value_size())),
            Stage::Prepare(p) if needs_input(layer, p) => (tokens, vector_cost(p.shape(config)[1])),
            Stage::Prepare(_) => (0, 1),
            Stage::Multiply(p) => {
                let matrix = &layer.projection(p).matrix;
                (matrix.tiles(), tokens * matrix.tile_cost())
            }
            Stage::Attend => (tokens * config.num_attention_heads, attend_cost(self.first + tokens)),
            Stage::PrepareHead => (self.logits, vector_cost(config.hidden_size)),
            Stage::MultiplyHead => (model.head().tiles(), self.logits * model.head().tile_cost()),
        }
    }
}

/// What the stages of one batch work with.
struct Pass<'p, 'm, 'b> {
    model: &'p Model<'m>,
    kernel: Kernel,
    memory: &'p mut Memory<'b>,
    parallel: &'p dyn Parallel,
    /// Tokens of the batch.
    batch: usize,
    /// Position of the first.
    first: usize,
    context: usize,
}

impl Pass<'_, '_, '_> {
    fn run(&mut self, layer: usize, stage: Stage, units: Range<usize>) {
        let weights = &self.model.layers()[layer];
        match stage {
            Stage::Embed => self.embed(units),
            Stage::Prepare(p) => self.prepare(weights, p, units),
            Stage::Multiply(p) => self.multiply(weights, p, units),
            Stage::Rotate => self.rotate(layer, units),
            Stage::Attend => self.attend(layer, units),
            Stage::PrepareHead => {
                let rows = self.memory.logits.len() / self.model.config().vocab_size;
                let skip = self.batch - rows.min(self.batch);
                let head = Linear { matrix: *self.model.head(), norm: None };
                self.prepare_input(&head, Source::Hidden, Some(self.model.norm()), skip, units);
            }
            Stage::MultiplyHead => self.multiply_head(units),
        }
    }

    fn embed(&mut self, tokens: Range<usize>) {
        let config = self.model.config();
        let half = config.head_dim / 2;
        let memory = &mut *self.memory;
        for t in tokens {
            if self.parallel.cancelled() {
                return;
            }
            let hidden = &mut memory.hidden[t * config.hidden_size..][..config.hidden_size];
            let token = memory.tokens[self.first + t] as usize;
            self.kernel.run(Row { matrix: self.model.embedding(), row: token, out: hidden });
            let (cos, sin) = memory.rotation[t * config.head_dim..][..config.head_dim].split_at_mut(half);
            rotary_tables(config.rope_theta, config.head_dim, self.first + t, cos, sin);
        }
    }

    fn prepare(&mut self, layer: &Layer<'_>, projection: Projection, tokens: Range<usize>) {
        let (source, norm) = match projection {
            Projection::Query | Projection::Key | Projection::Value => (Source::Hidden, LayerNorm::Attention),
            Projection::Output => (Source::Attention, LayerNorm::AttentionSub),
            Projection::Gate | Projection::Up => (Source::Hidden, LayerNorm::Mlp),
            Projection::Down => (Source::Intermediate, LayerNorm::MlpSub),
        };
        self.prepare_input(layer.projection(projection), source, layer.norm(norm), 0, tokens);
    }

    /// For each unit u, puts token `skip + u` of `source` through `norm` and the projection's own norm into row u of the
    /// input, and quantises it if the projection is ternary.
    fn prepare_input(
        &mut self,
        linear: &Linear<'_>,
        source: Source,
        norm: Option<&[f32]>,
        skip: usize,
        units: Range<usize>,
    ) {
        let config = self.model.config();
        let memory = &mut *self.memory;
        let [_, cols] = linear.matrix.shape();
        let source: &[f32] = match source {
            Source::Hidden => memory.hidden,
            Source::Attention => memory.query,
            Source::Intermediate => memory.intermediate,
        };
        let span = activation_span(&linear.matrix);
        let (input_stride, q_stride, spans) = (config.widest_input(), quantized_stride(config), spans(config));
        // A row of each buffer is a band, so that every token is a task of its own.
        let mut inputs =
            Bands::new(&mut memory.input[..self.batch * input_stride], self.batch * input_stride, input_stride);
        let mut quantized = Bands::new(&mut memory.quantized[..self.batch * q_stride], self.batch * q_stride, q_stride);
        let mut scales = Bands::new(&mut memory.scales[..self.batch * spans], self.batch * spans, spans);
        let kernel = self.kernel;
        for_each_band(
            self.parallel,
            units,
            (&mut inputs, &mut quantized, &mut scales),
            |unit, (mut x, mut q, mut scales)| {
                let x = &mut x.row(0)[..cols];
                x.copy_from_slice(&source[(skip + unit) * cols..][..cols]);
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

    fn multiply(&mut self, layer: &Layer<'_>, projection: Projection, tiles: Range<usize>) {
        let memory = &mut *self.memory;
        let linear = layer.projection(projection);
        let [rows, _] = linear.matrix.shape();
        let (out, sink): (&mut [f32], Sink) = match projection {
            Projection::Query => (memory.query, Sink::Store),
            Projection::Key => (memory.key, Sink::Store),
            Projection::Value => (memory.value, Sink::Store),
            Projection::Gate => (memory.intermediate, Sink::Store),
            Projection::Up => (memory.intermediate, Sink::Activate(self.model.config().hidden_act)),
            Projection::Output | Projection::Down => (memory.hidden, Sink::Add),
        };
        let input =
            prepared(self.model.config(), &linear.matrix, self.batch, memory.input, memory.quantized, memory.scales);
        let mut out = Bands::new(&mut out[..self.batch * rows], rows, TILE_ROWS);
        let kernel = self.kernel;
        for_each_band(self.parallel, tiles, (&mut out, &mut (), &mut ()), |tile, (out, (), ())| {
            kernel.run(Product { matrix: &linear.matrix, tile, input: &input, out, sink });
        });
    }

    fn multiply_head(&mut self, tiles: Range<usize>) {
        let memory = &mut *self.memory;
        let vocab_size = self.model.config().vocab_size;
        let rows = (memory.logits.len() / vocab_size).min(self.batch);
        let matrix = self.model.head();
        let input = prepared(self.model.config(), matrix, rows, memory.input, memory.quantized, memory.scales);
        let mut out = Bands::new(&mut memory.logits[..rows * vocab_size], vocab_size, TILE_ROWS);
        let kernel = self.kernel;
        for_each_band(self.parallel, tiles, (&mut out, &mut (), &mut ()), |tile, (out, (), ())| {
            kernel.run(Product { matrix, tile, input: &input, out, sink: Sink::Store });
        });
    }

    fn rotate(&mut self, layer: usize, tokens: Range<usize>) {
        let config = self.model.config();
        let weights = &self.model.layers()[layer];
        let (kernel, head_dim) = (self.kernel, config.head_dim);
        let memory = &mut *self.memory;
        for t in tokens {
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
                KvCache::F32(cache) => cache.write(kernel, layer, self.first + t, key, value),
                KvCache::F16(cache) => cache.write(kernel, layer, self.first + t, key, value),
            }
        }
    }

    fn attend(&mut self, layer: usize, units: Range<usize>) {
        let memory = &mut *self.memory;
        let (query, scores) = (&mut *memory.query, &mut *memory.scores);
        let heads = Heads {
            config: self.model.config(),
            kernel: self.kernel,
            parallel: self.parallel,
            layer,
            batch: self.batch,
            first: self.first,
            context: self.context,
        };
        match &memory.cache {
            KvCache::F32(cache) => heads.attend(cache, query, scores, units),
            KvCache::F16(cache) => heads.attend(cache, query, scores, units),
        }
    }
}

/// Attention of the heads of one layer.
struct Heads<'a> {
    config: &'a Config,
    kernel: Kernel,
    parallel: &'a dyn Parallel,
    layer: usize,
    batch: usize,
    first: usize,
    context: usize,
}

impl Heads<'_> {
    /// Unit u is token u % batch of head u / batch: a head's tokens follow each other, and share its scores.
    fn attend<F: CacheFormat>(&self, cache: &Cache<'_, F>, query: &mut [f32], scores: &mut [f32], units: Range<usize>) {
        let (head_dim, batch) = (self.config.head_dim, self.batch);
        let group = self.config.num_attention_heads / self.config.num_key_value_heads;
        let query_size = self.config.query_size();
        let mut queries = Bands::new(&mut query[..batch * query_size], query_size, head_dim);
        let scores_total = scores.len();
        let mut scores = Bands::new(scores, scores_total, scores_len(self.context));
        let heads = units.start / batch..units.end.div_ceil(batch);
        for_each_band(
            self.parallel,
            heads,
            (&mut queries, &mut scores, &mut ()),
            |head, (mut query, mut scores, ())| {
                let from = units.start.max(head * batch) - head * batch;
                let to = units.end.min((head + 1) * batch) - head * batch;
                for t in from..to {
                    if self.parallel.cancelled() {
                        return;
                    }
                    let (keys, values) = cache.head(self.layer, head / group, self.first + t + 1);
                    let attention = Attention::<F> { query: query.row(t), keys, values, scores: scores.row(0) };
                    self.kernel.run(attention);
                }
            },
        );
    }
}

/// Where a projection's input comes from.
#[derive(Clone, Copy)]
enum Source {
    Hidden,
    Attention,
    Intermediate,
}

/// The input that [`Pass::prepare_input`] left for a matrix.
fn prepared<'a>(
    config: &Config,
    matrix: &Matrix<'_>,
    tokens: usize,
    x: &'a [f32],
    q: &'a [i8],
    scales: &'a [ActivationScale],
) -> Input<'a> {
    let [_, cols] = matrix.shape();
    Input {
        tokens,
        x,
        x_stride: config.widest_input(),
        cols,
        q,
        q_stride: quantized_stride(config),
        scales,
        spans: spans(config),
    }
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

/// The outputs of one tile for every token.
struct Product<'a, 'o> {
    matrix: &'a Matrix<'a>,
    tile: usize,
    input: &'a Input<'a>,
    out: Band<'o, f32>,
    sink: Sink,
}

impl Op for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.matrix.tile_products(simd, self.tile, self.input, |token, y| {
            let out = self.out.row(token);
            match self.sink {
                Sink::Store => out.iter_mut().zip(y).for_each(|(out, y)| *out = *y),
                Sink::Add => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
                Sink::Activate(activation) => activate(simd, activation, out, y),
            }
        });
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
