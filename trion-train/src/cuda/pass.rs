//! Forward and backward on a GPU. What backward needs stays in memory from forward: the residual before each norm, quantised
//! activations, and results of products.

use trion_engine::Config;

use super::gpu::{Address, Form, Gpu, HALF, Product, SINGLE, arguments};
use super::kernels::{TILE, WARPS};
use super::plan::{Block, MATRICES};
use super::{Cuda, Weights};
use crate::error::{Error, Result};
use crate::learner::Batch;
use crate::model::angles;

/// Rows whose logits are computed together.
const HEAD_ROWS: usize = 16_384;

/// Rows that were normed and quantised: the numbers, one over the root of the mean square, and one over the scale.
#[derive(Clone, Copy)]
struct Quantized {
    q: Address,
    root: Address,
    unit: Address,
}

/// What a block leaves for backward.
#[derive(Clone, Copy)]
struct Layer {
    /// The residual before attention, and before the MLP.
    input: Address,
    middle: Address,
    for_qkv: Quantized,
    /// Queries, keys and values, the former two turned.
    qkv: Address,
    attended: Address,
    logs: Address,
    for_output: Quantized,
    for_gate_up: Quantized,
    /// The products of gate and up.
    gate_up: Address,
    for_down: Quantized,
}

pub(super) struct Activations {
    /// Tokens that there is room for.
    tokens: usize,
    ids: Address,
    targets: Address,
    /// Rows by token, and where the rows of each token begin.
    order: Address,
    starts: Address,
    /// Cosines and sines.
    turn: Address,
    layers: Vec<Layer>,
    last: Address,
    for_head: Quantized,
    logits: Address,
    of_logits: Address,
    losses: Address,
    /// Results of products that are not kept: as wide as the residual, and as queries, keys and values.
    y: Address,
    y_qkv: Address,
    /// The gradient of the residual, and of what comes from it.
    dh: Address,
    dy: Address,
    dx: Address,
    d_wide: Address,
    d_gate_up: Address,
    d_attended: Address,
    along: Address,
    d_qkv: Address,
    partials: Address,
}

impl Activations {
    pub(super) fn new(gpu: &mut Gpu, config: &Config, sequences: usize, positions: usize) -> Result<Self> {
        let Config { hidden_size: hidden, intermediate_size: wide, num_attention_heads: heads, head_dim, .. } = *config;
        let tokens = sequences * positions;
        let query = heads * head_dim;
        let qkv = query + 2 * config.num_key_value_heads * head_dim;
        // Offsets of elements in kernels are 32 bits wide where they count rotated pairs.
        if tokens.saturating_mul(qkv.max(2 * wide)) > i32::MAX as usize {
            let message = format!("{tokens} tokens are too many at once; give fewer sequences, and more to accumulate");
            return Err(Error::Argument(message));
        }
        let mut turn = Vec::new();
        for position in 0..positions {
            turn.extend(angles(config, position).flat_map(|angle| [angle.cos(), angle.sin()]));
        }
        let turn = gpu.constant(&turn)?;
        let mut halves = |cols: usize| gpu.allocate(tokens * cols * HALF);
        let [y, dy, dx] = [halves(hidden)?, halves(hidden)?, halves(hidden)?];
        let [y_qkv, d_qkv] = [halves(qkv)?, halves(qkv)?];
        let [d_wide, d_gate_up, d_attended] = [halves(wide)?, halves(2 * wide)?, halves(query)?];
        let quantized = |gpu: &mut Gpu, cols: usize| -> Result<Quantized> {
            Ok(Quantized {
                q: gpu.allocate(tokens * cols * HALF)?,
                root: gpu.allocate(tokens * SINGLE)?,
                unit: gpu.allocate(tokens * SINGLE)?,
            })
        };
        let mut layers = Vec::new();
        for _ in 0..config.num_hidden_layers {
            layers.push(Layer {
                input: gpu.allocate(tokens * hidden * SINGLE)?,
                middle: gpu.allocate(tokens * hidden * SINGLE)?,
                for_qkv: quantized(gpu, hidden)?,
                qkv: gpu.allocate(tokens * qkv * HALF)?,
                attended: gpu.allocate(tokens * query * HALF)?,
                logs: gpu.allocate(tokens * heads * SINGLE)?,
                for_output: quantized(gpu, query)?,
                for_gate_up: quantized(gpu, hidden)?,
                gate_up: gpu.allocate(tokens * 2 * wide * HALF)?,
                for_down: quantized(gpu, wide)?,
            });
        }
        let head_rows = tokens.min(HEAD_ROWS);
        Ok(Activations {
            tokens,
            ids: gpu.allocate(tokens * SINGLE)?,
            targets: gpu.allocate(tokens * SINGLE)?,
            order: gpu.allocate(tokens * SINGLE)?,
            starts: gpu.allocate((config.vocab_size + 1) * SINGLE)?,
            turn,
            layers,
            last: gpu.allocate(tokens * hidden * SINGLE)?,
            for_head: quantized(gpu, hidden)?,
            logits: gpu.allocate(head_rows * config.vocab_size * SINGLE)?,
            of_logits: gpu.allocate(head_rows * config.vocab_size * HALF)?,
            losses: gpu.allocate(tokens * SINGLE)?,
            y,
            y_qkv,
            dh: gpu.allocate(tokens * hidden * SINGLE)?,
            dy,
            dx,
            d_wide,
            d_gate_up,
            d_attended,
            along: gpu.allocate(tokens * heads * SINGLE)?,
            d_qkv,
            partials: gpu.allocate(gpu.blocks * hidden.max(wide).max(query) * SINGLE)?,
        })
    }
}

/// A product of the forward pass.
struct Linear {
    /// Where its weights begin, and their shape.
    at: usize,
    rows: usize,
    cols: usize,
}

impl Cuda {
    /// Brings a batch to the GPU.
    pub(super) fn upload(&self, batch: &Batch) -> Result<()> {
        let (tokens, vocab_size) = (batch.ids.len(), self.config.vocab_size);
        if tokens > self.activations.tokens {
            let message = format!("{tokens} tokens in a batch, expected at most {}", self.activations.tokens);
            return Err(Error::Argument(message));
        }
        let mut starts = vec![0_i32; vocab_size + 1];
        for id in &batch.ids {
            starts[*id as usize + 1] += 1;
        }
        for token in 0..vocab_size {
            starts[token + 1] += starts[token];
        }
        let (mut next, mut order) = (starts.clone(), vec![0_i32; tokens]);
        for (row, id) in batch.ids.iter().enumerate() {
            let at = &mut next[*id as usize];
            order[*at as usize] = row as i32;
            *at += 1;
        }
        let a = &self.activations;
        self.gpu.write(a.ids, &batch.ids)?;
        self.gpu.write(a.targets, &batch.targets)?;
        self.gpu.write(a.order, &order)?;
        self.gpu.write(a.starts, &starts)
    }

    /// The layers of a batch that was uploaded, up to the last norm.
    pub(super) fn forward(&self, batch: &Batch, lambda: f64) -> Result<()> {
        let (gpu, kernels, a) = (&self.gpu, &self.kernels, &self.activations);
        let Config { num_attention_heads: heads, .. } = self.config;
        let (rows, positions) = (batch.ids.len(), batch.positions);
        let by_rows = [rows.div_ceil(WARPS), 1, 1];
        let by_pairs = [(rows * self.qkv() / 4).div_ceil(256), 1, 1];
        let tiles = [positions.div_ceil(TILE), heads, rows / positions];
        let first = a.layers.first().map_or(a.last, |layer| layer.input);
        gpu.launch(&kernels.embed, by_rows, 32 * WARPS, arguments![self.parameters, a.ids, first, rows])?;
        let mut h = first;
        // What is added to the residual next: the unit of its product's tokens, and the mean of the weights.
        let mut before = [Address::NONE; 3];
        for (n, (layer, block)) in a.layers.iter().zip(&self.plan.blocks).enumerate() {
            let mean = |matrix: usize| self.weights.means.element(n * MATRICES + matrix, SINGLE);
            self.residual_norm(h, before, layer.input, block.input_norm, lambda, layer.for_qkv, rows)?;
            self.project(layer.for_qkv.q, &self.qkv_of(block), a.y_qkv, rows)?;
            let rotate = arguments![a.y_qkv, layer.for_qkv.unit, mean(0), a.turn, layer.qkv, rows, positions];
            gpu.launch(&kernels.rotate, by_pairs, 256, rotate)?;
            let attend = arguments![layer.qkv, layer.attended, layer.logs, positions];
            gpu.launch(&kernels.attend, tiles, 128, attend)?;
            let Quantized { q, root, unit } = layer.for_output;
            let norm = arguments![layer.attended, self.at(block.attention_norm), lambda, q, root, unit, rows];
            gpu.launch(&kernels.attention_norm, by_rows, 32 * WARPS, norm)?;
            self.project(q, &self.output_of(block), a.y, rows)?;
            let before_mlp = [a.y, unit, mean(3)];
            self.residual_norm(layer.input, before_mlp, layer.middle, block.mlp_norm, lambda, layer.for_gate_up, rows)?;
            self.project(layer.for_gate_up.q, &self.gate_up_of(block), layer.gate_up, rows)?;
            let Quantized { q, root, unit } = layer.for_down;
            let (y_unit, weight) = (layer.for_gate_up.unit, self.at(block.ffn_norm));
            let norm = arguments![layer.gate_up, y_unit, mean(4), weight, lambda, q, root, unit, rows];
            gpu.launch(&kernels.gate_norm, by_rows, 32 * WARPS, norm)?;
            self.project(q, &self.down_of(block), a.y, rows)?;
            before = [a.y, unit, mean(6)];
            h = layer.middle;
        }
        // The head's product is of the norm itself.
        self.residual_norm(h, before, a.last, self.plan.last_norm, 0.0, a.for_head, rows)
    }

    /// Adds `share` of the losses of all tokens to the loss. With `add`, the gradients of the embedding and of the last norm's
    /// result, too: the former is set or added to.
    pub(super) fn head(&self, batch: &Batch, share: f64, add: Option<bool>) -> Result<()> {
        let (gpu, a) = (&self.gpu, &self.activations);
        let Config { vocab_size, hidden_size, .. } = self.config;
        let head = Linear { at: 0, rows: vocab_size, cols: hidden_size };
        let tokens = batch.ids.len();
        let of_logits = if add.is_some() { a.of_logits } else { Address::NONE };
        for from in (0..tokens).step_by(HEAD_ROWS) {
            let rows = (tokens - from).min(HEAD_ROWS);
            let x = a.for_head.q.element(from * hidden_size, HALF);
            gpu.multiply(&Product { single: true, ..self.product(x, &head, a.logits, rows) })?;
            let (targets, losses) = (a.targets.element(from, SINGLE), a.losses.element(from, SINGLE));
            let loss = arguments![a.logits, targets, share, losses, of_logits];
            gpu.launch(&self.kernels.cross_entropy, [rows, 1, 1], 256, loss)?;
            if let Some(add) = add {
                self.weight_gradient(of_logits, x, &head, rows, add || from > 0)?;
                self.back(of_logits, &head, self.weights.forward, a.dx.element(from * hidden_size, HALF), rows)?;
            }
        }
        let total = arguments![a.losses, tokens, share, self.optimizer.control];
        gpu.launch(&self.kernels.add_up, [1, 1, 1], 1024, total)
    }

    /// Loss and gradients of a batch that went forward; they are set or, with `add`, added to.
    pub(super) fn backward(&self, batch: &Batch, share: f64, add: bool) -> Result<()> {
        let (gpu, kernels, a) = (&self.gpu, &self.kernels, &self.activations);
        let Config { num_attention_heads: heads, num_key_value_heads: kv_heads, .. } = self.config;
        let (rows, positions) = (batch.ids.len(), batch.positions);
        let Weights { means, backward, .. } = self.weights;
        let by_pairs = [(rows * self.qkv() / 4).div_ceil(256), 1, 1];
        let (tiles, sequences) = (positions.div_ceil(TILE), rows / positions);
        let persistent = [gpu.blocks, 1, 1];
        self.head(batch, share, Some(add))?;
        let unit_before = |layer: usize| if layer > 0 { a.layers[layer - 1].for_down.unit } else { Address::NONE };
        let layers = a.layers.len();
        self.residual_backward(a.for_head, a.last, self.plan.last_norm, true, unit_before(layers), rows, add)?;
        for (n, (layer, block)) in a.layers.iter().zip(&self.plan.blocks).enumerate().rev() {
            let down = self.down_of(block);
            self.weight_gradient(a.dy, layer.for_down.q, &down, rows, add)?;
            self.back(a.dy, &down, backward, a.d_wide, rows)?;
            let Quantized { root, unit, .. } = layer.for_down;
            let gate = arguments![
                a.d_wide,
                unit,
                layer.gate_up,
                layer.for_gate_up.unit,
                means.element(n * MATRICES + 4, SINGLE),
                root,
                self.at(block.ffn_norm),
                a.d_gate_up,
                a.partials,
                rows,
            ];
            gpu.launch(&kernels.gate_norm_backward, persistent, 32 * WARPS, gate)?;
            self.norm_gradient(block.ffn_norm, self.config.intermediate_size, add)?;

            let gate_up = self.gate_up_of(block);
            self.weight_gradient(a.d_gate_up, layer.for_gate_up.q, &gate_up, rows, add)?;
            self.back(a.d_gate_up, &gate_up, backward, a.dx, rows)?;
            let unit = layer.for_output.unit;
            self.residual_backward(layer.for_gate_up, layer.middle, block.mlp_norm, false, unit, rows, add)?;

            let output = self.output_of(block);
            self.weight_gradient(a.dy, layer.for_output.q, &output, rows, add)?;
            self.back(a.dy, &output, backward, a.y, rows)?;
            let Quantized { root, unit, .. } = layer.for_output;
            let weight = self.at(block.attention_norm);
            let norm = arguments![a.y, unit, layer.attended, root, weight, a.d_attended, a.along, a.partials, rows];
            gpu.launch(&kernels.attention_norm_backward, persistent, 32 * WARPS, norm)?;
            self.norm_gradient(block.attention_norm, heads * self.config.head_dim, add)?;

            let attend = arguments![layer.qkv, a.d_attended, layer.logs, a.along, a.d_qkv, positions];
            gpu.launch(&kernels.attend_backward_keys, [tiles, kv_heads, sequences], 128, attend)?;
            gpu.launch(&kernels.attend_backward_queries, [tiles, heads, sequences], 128, attend)?;
            let unit = layer.for_qkv.unit;
            let rotate = arguments![a.d_qkv, unit, a.turn, rows, positions];
            gpu.launch(&kernels.rotate_backward, by_pairs, 256, rotate)?;

            let qkv = self.qkv_of(block);
            self.weight_gradient(a.d_qkv, layer.for_qkv.q, &qkv, rows, add)?;
            self.back(a.d_qkv, &qkv, backward, a.dx, rows)?;
            self.residual_backward(layer.for_qkv, layer.input, block.input_norm, false, unit_before(n), rows, add)?;
        }
        let embed = arguments![a.dh, a.order, a.starts, self.gradients];
        gpu.launch(&kernels.embed_backward, [self.config.vocab_size, 1, 1], 128, embed)
    }

    /// Columns of queries, keys and values.
    fn qkv(&self) -> usize {
        let Config { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = self.config;
        (heads + 2 * kv_heads) * head_dim
    }

    fn qkv_of(&self, block: &Block) -> Linear {
        Linear { at: block.qkv, rows: self.qkv(), cols: self.config.hidden_size }
    }

    fn output_of(&self, block: &Block) -> Linear {
        let cols = self.config.num_attention_heads * self.config.head_dim;
        Linear { at: block.output, rows: self.config.hidden_size, cols }
    }

    fn gate_up_of(&self, block: &Block) -> Linear {
        Linear { at: block.gate_up, rows: 2 * self.config.intermediate_size, cols: self.config.hidden_size }
    }

    fn down_of(&self, block: &Block) -> Linear {
        Linear { at: block.down, rows: self.config.hidden_size, cols: self.config.intermediate_size }
    }

    /// The parameter that begins at `offset`.
    fn at(&self, offset: usize) -> Address {
        self.parameters.element(offset, SINGLE)
    }

    /// Adds the product `[y, unit, mean]` to the residual `h`, if there is one, which gives `sum`; norms and quantises it.
    #[expect(clippy::too_many_arguments, reason = "those of the kernel")]
    fn residual_norm(
        &self,
        h: Address,
        [y, y_unit, mean]: [Address; 3],
        sum: Address,
        norm: usize,
        lambda: f64,
        to: Quantized,
        rows: usize,
    ) -> Result<()> {
        let arguments = arguments![h, y, y_unit, mean, sum, self.at(norm), lambda, to.q, to.root, to.unit, rows];
        self.gpu.launch(&self.kernels.residual_norm, [rows.div_ceil(WARPS), 1, 1], 32 * WARPS, arguments)
    }

    /// Backward of that: `dx` is the gradient of what was quantised; `dh` is set if `fresh`.
    #[expect(clippy::too_many_arguments, reason = "those of the kernel")]
    fn residual_backward(
        &self,
        quantized: Quantized,
        h: Address,
        norm: usize,
        fresh: bool,
        unit_before: Address,
        rows: usize,
        add: bool,
    ) -> Result<()> {
        let a = &self.activations;
        let dy = if unit_before == Address::NONE { Address::NONE } else { a.dy };
        let Quantized { root, unit, .. } = quantized;
        let arguments = arguments![a.dx, unit, h, root, self.at(norm), a.dh, fresh, unit_before, dy, a.partials, rows];
        self.gpu.launch(&self.kernels.residual_norm_backward, [self.gpu.blocks, 1, 1], 32 * WARPS, arguments)?;
        self.norm_gradient(norm, self.config.hidden_size, add)
    }

    /// The gradient of a norm's weights, of what the kernel before left.
    fn norm_gradient(&self, norm: usize, cols: usize, add: bool) -> Result<()> {
        let to = self.gradients.element(norm, SINGLE);
        let arguments = arguments![self.activations.partials, to, self.gpu.blocks, cols, add];
        self.gpu.launch(&self.kernels.add_up_partials, [cols.div_ceil(32), 1, 1], 1024, arguments)
    }

    /// The product of `x` `[rows, cols]` with weights.
    fn product(&self, x: Address, linear: &Linear, to: Address, rows: usize) -> Product {
        Product {
            form: Form::Turned,
            shape: [rows, linear.rows, linear.cols],
            a: x,
            b: self.weights.forward.element(linear.at, HALF),
            to,
            single: false,
            factors: [1.0, 0.0],
            count: 1,
        }
    }

    fn project(&self, x: Address, linear: &Linear, to: Address, rows: usize) -> Result<()> {
        self.gpu.multiply(&self.product(x, linear, to, rows))
    }

    /// The gradient of `x` by that of the product, `dy`.
    fn back(&self, dy: Address, linear: &Linear, weights: Address, to: Address, rows: usize) -> Result<()> {
        let (form, shape) = (Form::Plain, [rows, linear.cols, linear.rows]);
        let b = weights.element(linear.at, HALF);
        self.gpu.multiply(&Product { form, shape, a: dy, b, to, single: false, factors: [1.0, 0.0], count: 1 })
    }

    /// The gradient of weights, set or added to.
    fn weight_gradient(&self, dy: Address, x: Address, linear: &Linear, rows: usize, add: bool) -> Result<()> {
        let (form, shape) = (Form::Gradient, [linear.rows, linear.cols, rows]);
        let (to, factors) = (self.gradients.element(linear.at, SINGLE), [1.0, f32::from(u8::from(add))]);
        self.gpu.multiply(&Product { form, shape, a: dy, b: x, to, single: true, factors, count: 1 })
    }
}
