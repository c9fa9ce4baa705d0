//! The forward pass of a batch, as a row of kernels in a stream.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaStream};
use trion_core::numeric::ATTENTION_BLOCK;
use trion_core::{Activation, CacheType, Config, LayerNorm, Projection, SessionOptions};

use crate::error::Result;
use crate::kernels::{Arg, Job, Jobs, Kernels, Shape, args, launch};
use crate::layout::{Kind, PIECE_COLS, PIECE_ROWS};
use crate::memory::{ARGMAX_BLOCKS, Piece, Sizes};
use crate::model::{DeviceLayer, DeviceLinear, DeviceMatrix, Inner};
use crate::plan::quantized_stride;

/// Tokens from which on a product is better made by tiles than token by token.
const GEMM_TOKENS: usize = 17;
/// Rows and tokens of such a tile; as in `kernels/gemm.cu`.
const GEMM_TILE: usize = 64;
/// Tokens that the kernels for few tokens take together.
const FEW: usize = 4;
/// Bytes of a row of activations that `prepare` keeps in shared memory, which it has 48 KiB of.
const SHARED_ROW: usize = 40 << 10;
/// Threads that prepare a row; as in `kernels/prepare.cu`.
const PREPARE_THREADS: usize = 512;
/// Positions, and the width of a head, up to which one block of threads makes attention of a head; as in
/// `kernels/attention_head.cu`.
pub(crate) const SHORT_CONTEXT: usize = 1024;
const SHORT_HEAD: usize = 256;
/// Vectors of a head that it has in shared memory.
const SHORT_VECTORS: usize = 3 + SHORT_CONTEXT / ATTENTION_BLOCK;
/// Blocks of positions that attention of one token is divided into, at most; more are taken in turns.
const MOST_BLOCKS: usize = 128;

/// What happens to the outputs of a projection; as `SINK_...` in `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Sink {
    Store = 0,
    Add = 1,
    Relu2 = 2,
    Silu = 3,
}

/// A product to be made: a projection, the piece that its outputs go to, and how.
type Product = (Projection, Piece, Sink);

/// A batch on its way through the model.
pub(crate) struct Pass<'a> {
    pub(crate) model: &'a Inner,
    pub(crate) kernels: &'a Kernels,
    pub(crate) stream: &'a Arc<CudaStream>,
    pub(crate) sizes: &'a Sizes,
    /// Address of the session's memory.
    pub(crate) base: u64,
    pub(crate) options: &'a SessionOptions,
    /// Tokens of the batch.
    pub(crate) batch: usize,
    /// How many want logits: the last ones.
    pub(crate) logits_rows: usize,
    /// Whether all positions are below [`SHORT_CONTEXT`].
    pub(crate) is_short: bool,
}

impl Pass<'_> {
    fn config(&self) -> &Config {
        &self.model.config
    }

    /// The address of a piece of the session's memory.
    fn at(&self, piece: Piece) -> u64 {
        self.base + self.sizes.offset(piece) as u64
    }

    fn launch(
        &self,
        kernel: &CudaFunction,
        grid: [usize; 2],
        block: [usize; 2],
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        launch(self.stream, kernel, Shape { grid, block, shared }, args)
    }

    /// Says at which position the batch begins; its tokens are there.
    pub(crate) fn begin(&self, first: usize) -> Result<()> {
        self.launch(&self.kernels.begin, [1, 1], [1, 1], 0, args![self.at(Piece::Position), first])
    }

    /// Makes the token with the largest logit the one of the next position, and that the current one.
    pub(crate) fn choose(&self) -> Result<()> {
        let best = self.at(Piece::Best);
        let args = args![self.at(Piece::Logits), self.config().vocab_size, best];
        self.launch(&self.kernels.argmax_parts, [ARGMAX_BLOCKS, 1], [256, 1], 0, args)?;
        let args = args![best, ARGMAX_BLOCKS, self.at(Piece::Position), self.at(Piece::Tokens)];
        self.launch(&self.kernels.argmax_next, [1, 1], [256, 1], 0, args)
    }

    /// The whole pass.
    pub(crate) fn run(&self) -> Result<()> {
        use LayerNorm as N;
        use Projection as P;
        let gated = match self.config().hidden_act {
            Activation::Relu2 => Sink::Relu2,
            Activation::Silu => Sink::Silu,
        };
        self.embed()?;
        for (n, layer) in self.model.layers.iter().enumerate() {
            let hidden = Piece::Hidden;
            let attention = [
                (P::Query, Piece::Query, Sink::Store),
                (P::Key, Piece::Key, Sink::Store),
                (P::Value, Piece::Value, Sink::Store),
            ];
            self.project(layer, hidden, N::Attention, &attention)?;
            if self.is_short && self.batch == 1 && self.config().head_dim <= SHORT_HEAD {
                self.attend_short(n, layer)?;
            } else {
                self.rotate(n, layer)?;
                self.attend(n)?;
            }
            self.project(layer, Piece::Query, N::AttentionSub, &[(P::Output, hidden, Sink::Add)])?;
            let gate = [(P::Gate, Piece::Intermediate, Sink::Store), (P::Up, Piece::Intermediate, gated)];
            self.project(layer, hidden, N::Mlp, &gate)?;
            self.project(layer, Piece::Intermediate, N::MlpSub, &[(P::Down, hidden, Sink::Add)])?;
        }
        if self.logits_rows > 0 {
            let head = DeviceLinear { matrix: self.model.head, norm: 0 };
            let (skip, rows) = (self.batch - self.logits_rows, self.logits_rows);
            self.prepare(&head, Piece::Hidden, self.model.norm, skip, rows)?;
            self.multiply(&head.matrix, self.at(Piece::Logits), Sink::Store, rows)?;
        }
        Ok(())
    }

    fn embed(&self) -> Result<()> {
        let m = &self.model.embedding;
        let args = args![
            self.at(Piece::Position),
            self.at(Piece::Tokens),
            m.weights,
            m.scales,
            m.scale,
            m.kind as i32,
            m.span.max(1),
            m.cols,
            self.at(Piece::Hidden),
        ];
        self.launch(&self.kernels.embed, [self.batch, m.cols.div_ceil(256)], [256, 1], 0, args)
    }

    /// Norms and quantises an input, and makes the products that read it.
    fn project(&self, layer: &DeviceLayer, source: Piece, norm: LayerNorm, products: &[Product]) -> Result<()> {
        let norm = layer.norms[norm as usize];
        let linear = |product: &Product| &layer.projections[product.0 as usize];
        let shared = products.windows(2).all(|pair| same_input(linear(&pair[0]), linear(&pair[1])));
        let plain = products.iter().all(|product| linear(product).matrix.is_plain());
        if shared && plain && self.batch < GEMM_TOKENS {
            self.prepare(linear(&products[0]), source, norm, 0, self.batch)?;
            return self.multiply_together(products.iter().map(|p| (&linear(p).matrix, self.at(p.1), p.2)));
        }
        for (i, product) in products.iter().enumerate() {
            if i == 0 || !same_input(linear(&products[i - 1]), linear(product)) {
                self.prepare(linear(product), source, norm, 0, self.batch)?;
            }
            self.multiply(&linear(product).matrix, self.at(product.1), product.2, self.batch)?;
        }
        Ok(())
    }

    /// Puts `tokens` rows of `source`, from row `skip` on, through `norm` and the projection's own, and quantises them.
    fn prepare(&self, linear: &DeviceLinear, source: Piece, norm: u64, skip: usize, tokens: usize) -> Result<()> {
        let (config, matrix) = (self.config(), &linear.matrix);
        let kernels = self.kernels;
        let in_registers = match matrix.cols.div_ceil(PREPARE_THREADS) {
            0..=2 => Some(&kernels.prepare_row_2),
            3..=5 => Some(&kernels.prepare_row_5),
            6..=8 => Some(&kernels.prepare_row_8),
            9..=14 => Some(&kernels.prepare_row_14),
            15..=20 => Some(&kernels.prepare_row_20),
            _ => None,
        };
        let block = [PREPARE_THREADS, 1];
        if let Some(kernel) = in_registers.filter(|_| matrix.span == matrix.cols) {
            let args = args![
                self.at(source),
                skip,
                matrix.cols,
                norm,
                config.rms_norm_eps,
                linear.norm,
                config.projection_norm_eps,
                self.at(Piece::Quantized),
                quantized_stride(config),
                matrix.cols.next_multiple_of(PIECE_COLS),
                self.at(Piece::Scales),
                self.sizes.spans,
            ];
            return self.launch(kernel, [tokens, 1], block, 0, args);
        }
        let in_shared = 4 * matrix.cols <= SHARED_ROW;
        let args = args![
            self.at(source),
            skip,
            matrix.cols,
            norm,
            config.rms_norm_eps,
            linear.norm,
            config.projection_norm_eps,
            self.at(Piece::Input),
            config.widest_input(),
            self.at(Piece::Quantized),
            quantized_stride(config),
            matrix.cols.next_multiple_of(PIECE_COLS),
            self.at(Piece::Scales),
            self.sizes.spans,
            matrix.span,
            in_shared,
        ];
        let shared = if in_shared { 4 * matrix.cols } else { 0 };
        self.launch(&kernels.prepare, [tokens, 1], block, shared, args)
    }

    /// Products of plain ternary matrices that share an input, for few tokens; of gate and up, if the second has an
    /// activation.
    fn multiply_together<'m>(&self, products: impl Iterator<Item = (&'m DeviceMatrix, u64, Sink)>) -> Result<()> {
        let mut jobs = Jobs::default();
        let (mut cols, mut pieces, mut pair) = (0, 0, None);
        jobs.begin = [i32::MAX; 2];
        for (i, (job, (matrix, out, sink))) in jobs.job.iter_mut().zip(products).enumerate() {
            if let Some(begin) = i.checked_sub(1).and_then(|before| jobs.begin.get_mut(before)) {
                *begin = pieces as i32;
            }
            *job = Job {
                weights: matrix.weights,
                out,
                scale: matrix.scale,
                divide: i32::from(matrix.kind == Kind::Divide),
                rows: matrix.rows as i32,
                sink: sink as i32,
            };
            cols = matrix.cols;
            if matches!(sink, Sink::Relu2 | Sink::Silu) {
                pair = Some(sink);
            } else {
                pieces += matrix.rows.div_ceil(PIECE_ROWS);
            }
        }
        if let Some(sink) = pair {
            jobs.job[0].sink = sink as i32;
        }
        let kernels = self.kernels;
        let (kernel, few) = match (self.batch, pair) {
            (1, None) => (&kernels.ternary_gemv, 1),
            (1, Some(_)) => (&kernels.ternary_gemv_pair, 1),
            (_, None) => (&kernels.ternary_gemv_4, FEW),
            (_, Some(_)) => (&kernels.ternary_gemv_pair_4, FEW),
        };
        self.gemv(kernel, jobs, cols, pieces, self.batch, few)
    }

    fn gemv(
        &self,
        kernel: &CudaFunction,
        jobs: Jobs,
        cols: usize,
        pieces: usize,
        tokens: usize,
        few: usize,
    ) -> Result<()> {
        let tiles = cols.div_ceil(PIECE_COLS);
        let args = args![
            jobs,
            self.at(Piece::Quantized),
            quantized_stride(self.config()) / 16,
            self.at(Piece::Scales),
            self.sizes.spans,
            tiles,
            tokens,
        ];
        let warps = warps_for(tiles, pieces * tokens.div_ceil(few), self.model.device.multiprocessors());
        self.launch(kernel, [pieces, tokens.div_ceil(few)], [32, warps], 0, args)
    }

    /// The product of a matrix with `tokens` rows of the input that was prepared for it.
    fn multiply(&self, matrix: &DeviceMatrix, out: u64, sink: Sink, tokens: usize) -> Result<()> {
        let (config, kernels) = (self.config(), self.kernels);
        let (quantized, scales) = (self.at(Piece::Quantized), self.at(Piece::Scales));
        let (q_stride, spans, tiles) =
            (quantized_stride(config) / 16, self.sizes.spans, matrix.cols.div_ceil(PIECE_COLS));
        let (weights, rows, pieces) = (matrix.weights, matrix.rows, matrix.rows.div_ceil(PIECE_ROWS));
        let divide = matrix.kind == Kind::Divide;
        let few = if tokens == 1 { 1 } else { FEW };
        let float = |one, some| if tokens == 1 { one } else { some };
        let kernel = match matrix.kind {
            Kind::Multiply | Kind::Divide if tokens >= GEMM_TOKENS => {
                let args = args![
                    weights,
                    out,
                    matrix.scale,
                    divide,
                    rows,
                    sink as i32,
                    quantized,
                    q_stride,
                    scales,
                    spans,
                    tiles,
                    tokens
                ];
                let grid = [tokens.div_ceil(GEMM_TILE), rows.div_ceil(GEMM_TILE)];
                return self.launch(&kernels.ternary_gemm, grid, [128, 1], 0, args);
            }
            Kind::Multiply | Kind::Divide => {
                let kernel = if tokens == 1 { &kernels.ternary_gemv } else { &kernels.ternary_gemv_4 };
                let (scale, rows, sink) = (matrix.scale, rows as i32, sink as i32);
                let job = Job { weights, out, scale, divide: i32::from(divide), rows, sink };
                let jobs = Jobs::one(job);
                return self.gemv(kernel, jobs, matrix.cols, pieces, tokens, few);
            }
            Kind::Groups => {
                let args = args![
                    weights,
                    matrix.scales,
                    out,
                    rows,
                    sink as i32,
                    quantized,
                    q_stride,
                    scales,
                    spans,
                    tiles,
                    matrix.cols,
                    matrix.span
                ];
                return self.launch(&kernels.ternary_groups, [pieces, tokens], [128, 1], 0, args);
            }
            Kind::F32 => float(&kernels.float_product_f32, &kernels.float_product_f32_4),
            Kind::F16 => float(&kernels.float_product_f16, &kernels.float_product_f16_4),
            Kind::Bf16 => float(&kernels.float_product_bf16, &kernels.float_product_bf16_4),
            Kind::I8 => float(&kernels.float_product_i8, &kernels.float_product_i8_4),
        };
        let args = args![
            weights,
            matrix.scales,
            self.at(Piece::Input),
            config.widest_input(),
            out,
            rows,
            matrix.cols,
            sink as i32,
            tokens,
        ];
        self.launch(kernel, [rows.div_ceil(32), tokens.div_ceil(few)], [256, 1], 0, args)
    }

    /// The address of a layer's keys and values.
    fn cache(&self, layer: usize) -> u64 {
        let config = self.config();
        let numbers = layer * config.key_value_size() * 2 * self.options.context;
        self.at(Piece::Cache) + (numbers * self.options.cache.bytes()) as u64
    }

    /// The kernel for the cache's number format.
    fn by_cache<'k>(&self, f32: &'k CudaFunction, f16: &'k CudaFunction) -> &'k CudaFunction {
        match self.options.cache {
            CacheType::F32 => f32,
            CacheType::F16 => f16,
        }
    }

    /// The first arguments of the kernels that rotate queries and keys.
    fn rotation_args(&self, n: usize, layer: &DeviceLayer) -> [Arg; 9] {
        [
            self.at(Piece::Position).into(),
            self.at(Piece::Query).into(),
            self.at(Piece::Key).into(),
            self.at(Piece::Value).into(),
            self.cache(n).into(),
            self.at(Piece::Rotation).into(),
            layer.norms[LayerNorm::Query as usize].into(),
            layer.norms[LayerNorm::Key as usize].into(),
            self.config().rms_norm_eps.into(),
        ]
    }

    fn rotate(&self, n: usize, layer: &DeviceLayer) -> Result<()> {
        let config = self.config();
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let own = args![heads, kv_heads, config.head_dim, self.options.context];
        let args = &[&self.rotation_args(n, layer)[..], own].concat();
        let kernel = self.by_cache(&self.kernels.rotate_f32, &self.kernels.rotate_f16);
        self.launch(kernel, [(heads + 2 * kv_heads).div_ceil(4), self.batch], [32, 4], 0, args)
    }

    /// Rotation, the write to the cache, and attention of one token.
    fn attend_short(&self, n: usize, layer: &DeviceLayer) -> Result<()> {
        let config = self.config();
        let (heads, head_dim) = (config.num_attention_heads, config.head_dim);
        let group = heads / config.num_key_value_heads;
        let own = args![group, head_dim, self.options.context, 1.0 / (head_dim as f32).sqrt()];
        let args = &[&self.rotation_args(n, layer)[..], own].concat();
        let kernel = self.by_cache(&self.kernels.attention_head_f32, &self.kernels.attention_head_f16);
        self.launch(kernel, [heads, 1], [1024, 1], 4 * SHORT_VECTORS * head_dim, args)
    }

    fn attend(&self, n: usize) -> Result<()> {
        let (config, kernels) = (self.config(), self.kernels);
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (stride, context, cache) = (self.sizes.score_stride, self.options.context, self.cache(n));
        let c = 1.0 / (head_dim as f32).sqrt();
        let (position, query, scores) = (self.at(Piece::Position), self.at(Piece::Query), self.at(Piece::Scores));
        if self.batch > 1 {
            let kernel = self.by_cache(&kernels.attention_prompt_f32, &kernels.attention_prompt_f16);
            let args = args![position, query, cache, scores, stride, self.batch, heads, kv_heads, head_dim, context, c];
            return self.launch(kernel, [self.sizes.prompt_blocks, 1], [128, 1], 4 * 8 * head_dim, args);
        }
        let (largest, group) = (self.at(Piece::Largest), heads / kv_heads);
        let grid = [heads, (stride / ATTENTION_BLOCK).min(MOST_BLOCKS)];
        let kernel = self.by_cache(&kernels.attention_scores_f32, &kernels.attention_scores_f16);
        let args = args![position, query, cache, scores, largest, stride, group, head_dim, context, c];
        self.launch(kernel, grid, [512, 1], 0, args)?;
        let sums = self.at(Piece::Parts);
        let parts = sums + (4 * heads * (stride / ATTENTION_BLOCK)) as u64;
        let kernel = self.by_cache(&kernels.attention_weights_f32, &kernels.attention_weights_f16);
        let args = args![position, cache, scores, largest, sums, parts, stride, group, head_dim, context];
        self.launch(kernel, grid, [128, 1], 0, args)?;
        let args = args![position, sums, parts, query, stride, head_dim];
        self.launch(&kernels.attention_combine, [heads, 1], [128, 1], 0, args)
    }
}

/// Whether two projections read the same prepared input.
fn same_input(a: &DeviceLinear, b: &DeviceLinear) -> bool {
    a.norm == 0 && b.norm == 0 && a.matrix.span == b.matrix.span && a.matrix.cols == b.matrix.cols
}

/// Warps that share the columns of a row of `tiles` pieces: so many that all of them run at once, of those the number
/// that divides the columns best.
pub(crate) fn warps_for(tiles: usize, pieces: usize, multiprocessors: usize) -> usize {
    // What one multiprocessor runs at once of this kernel, by measurement rather than by registers alone.
    let most = (multiprocessors * 40 / pieces.max(1)).clamp(2, 10).min(tiles.max(1));
    let slots = |warps: usize| tiles.div_ceil(warps) * warps;
    (1..=most).rev().min_by_key(|warps| slots(*warps) + usize::from(*warps == 1)).unwrap_or(1)
}
