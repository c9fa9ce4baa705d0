//! The forward pass of a batch, as a row of kernels in a stream.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use trion_core::{Activation, CacheType, Config, LayerNorm, Projection};

use crate::error::{Doing, Result};
use crate::fives::{self, Blocks};
use crate::kernels::{Arg, Job, Jobs, Kernel, Kernels, Shape, args, launch};
use crate::layout::{Kind, PIECE_COLS, PIECE_ROWS, Packing};
use crate::memory::{ARGMAX_BLOCKS, ATTENTION_HEADS, Piece};
use crate::model::{DeviceLayer, DeviceLinear, DeviceMatrix, Inner};
use crate::plan::quantized_stride;
use crate::workspace::Workspace;

/// Tokens from which on a product is better made by tiles than token by token.
const GEMM_TOKENS: usize = 17;
/// Rows and tokens of such a tile; as in `kernels/gemm.cu`.
const GEMM_TILE: usize = 64;
/// Tokens that the kernels for few tokens take together; those of `kernels/tokens.cu`, the units that a group of warps makes
/// there at least for more tokens, and the bytes of its sums.
const FEW: usize = 4;
const TOKENS_AT_ONCE: usize = 8;
const TOKENS_ROUNDS: usize = 8;
const UNIT_SUMS: usize = 2 * 16 * TOKENS_AT_ONCE * 4;
/// Bytes of a row of activations that `prepare` keeps in shared memory, which it has 48 KiB of.
const SHARED_ROW: usize = 40 << 10;
/// Threads that prepare a row; as in `kernels/prepare.cu`.
const PREPARE_THREADS: usize = 512;
/// Columns that a block of threads of a token's attention makes at once; `COLUMNS` in `kernels/attention_token.cu`.
const ATTENTION_COLUMNS: usize = 8;
/// Threads of such a block; `THREADS` there.
const ATTENTION_THREADS: usize = 256;
/// Pieces of 256 columns of a row that `kernels/project.cu` takes, and warps of a block of threads there: of the usual
/// kernels and of those for wide rows.
pub(crate) const WIDEST_ROW: usize = 32;
pub(crate) const PROJECT_WARPS: usize = 20;
/// Groups of warps there, and pieces of 8 rows that a group makes at least, by measurement.
const PROJECT_GROUPS: usize = 16;
pub(crate) const PROJECT_ROUNDS: usize = 3;

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
    pub(crate) work: &'a Workspace,
    pub(crate) kernels: &'a Kernels,
    /// Number format of the cache.
    pub(crate) cache: CacheType,
    /// Tokens of the batch.
    pub(crate) batch: usize,
    /// How many want logits: the last ones.
    pub(crate) logits_rows: usize,
    /// Whether they are consecutive tokens of one session, rather than one of each.
    pub(crate) is_prompt: bool,
}

impl Pass<'_> {
    fn model(&self) -> &Inner {
        &self.work.model.0
    }

    fn config(&self) -> &Config {
        &self.model().config
    }

    /// The address of a piece.
    fn at(&self, piece: Piece) -> u64 {
        self.work.at(piece)
    }

    fn launch(&self, kernel: Kernel, grid: [usize; 3], block: [usize; 2], shared: usize, args: &[Arg]) -> Result<()> {
        launch(&self.work.stream, kernel, Shape { grid, block, shared }, args)
    }

    /// Says at which position the session's batch begins; its tokens are there.
    pub(crate) fn begin(&self, first: usize) -> Result<()> {
        self.launch(self.kernels.begin, [1, 1, 1], [1, 1], 0, args![self.at(Piece::Slots), first])
    }

    /// Makes the token with the largest logit the one of the next position, and that the current one, in each session.
    pub(crate) fn choose(&self) -> Result<()> {
        let (best, vocab_size) = (self.at(Piece::Best), self.config().vocab_size);
        let args = args![self.at(Piece::Logits), vocab_size, best];
        self.launch(self.kernels.argmax_parts, [ARGMAX_BLOCKS, self.batch, 1], [256, 1], 0, args)?;
        let args = args![best, ARGMAX_BLOCKS, self.at(Piece::Slots)];
        self.launch(self.kernels.argmax_next, [self.batch, 1, 1], [256, 1], 0, args)
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
        for (n, layer) in self.model().layers.iter().enumerate() {
            let hidden = Piece::Hidden;
            let attention = [
                (P::Query, Piece::Query, Sink::Store),
                (P::Key, Piece::Key, Sink::Store),
                (P::Value, Piece::Value, Sink::Store),
            ];
            self.project(layer, hidden, N::Attention, &attention)?;
            if self.is_prompt {
                self.rotate(n, layer)?;
                self.attend_prompt(n)?;
            } else {
                self.attend(n, layer)?;
            }
            self.project(layer, Piece::Query, N::AttentionSub, &[(P::Output, hidden, Sink::Add)])?;
            let gate = [(P::Gate, Piece::Intermediate, Sink::Store), (P::Up, Piece::Intermediate, gated)];
            self.project(layer, hidden, N::Mlp, &gate)?;
            self.project(layer, Piece::Intermediate, N::MlpSub, &[(P::Down, hidden, Sink::Add)])?;
        }
        if self.logits_rows > 0 {
            let head = DeviceLinear { matrix: self.model().head, norm: 0 };
            let (skip, rows) = (self.batch - self.logits_rows, self.logits_rows);
            self.prepare(&head, Piece::Hidden, self.model().norm, skip, rows)?;
            self.multiply(&head.matrix, self.at(Piece::Logits), Sink::Store, rows)?;
        }
        Ok(())
    }

    fn embed(&self) -> Result<()> {
        let m = &self.model().embedding;
        let args = args![
            self.at(Piece::Slots),
            self.is_prompt,
            m.weights,
            m.scales,
            m.scale,
            m.kind as i32,
            m.span.max(1),
            m.cols,
            self.at(Piece::Hidden),
        ];
        self.launch(self.kernels.embed, [self.batch, m.cols.div_ceil(256), 1], [256, 1], 0, args)
    }

    /// Norms and quantises an input, and makes the products that read it.
    fn project(&self, layer: &DeviceLayer, source: Piece, norm: LayerNorm, products: &[Product]) -> Result<()> {
        let norm = layer.norms[norm as usize];
        let linear = |product: &Product| &layer.projections[product.0 as usize];
        let shared = products.windows(2).all(|pair| same_input(linear(&pair[0]), linear(&pair[1])));
        let plain = products.iter().all(|product| linear(product).matrix.kind.is_plain());
        let first = linear(&products[0]);
        if shared && plain && !self.takes_tiles(&first.matrix, self.batch) {
            let together = Together::new(products.iter().map(|p| (&linear(p).matrix, self.at(p.1), p.2)));
            let fused = together.packing == Packing::Twos && together.tiles <= WIDEST_ROW;
            if self.batch == 1 && fused && first.matrix.cols.is_multiple_of(32) {
                return self.project_token(&together, first, source, norm);
            }
            self.prepare(first, source, norm, 0, self.batch)?;
            return self.multiply_together(&together, self.batch);
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
        // Zeros behind the columns, where weights are read in whole pieces.
        let q_cols = matrix.cols.next_multiple_of(matrix.packing.piece_cols());
        let in_registers = match q_cols.div_ceil(PREPARE_THREADS) {
            0..=2 => Some(kernels.prepare_row_2),
            3..=5 => Some(kernels.prepare_row_5),
            6..=8 => Some(kernels.prepare_row_8),
            9..=14 => Some(kernels.prepare_row_14),
            15..=20 => Some(kernels.prepare_row_20),
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
                q_cols,
                self.at(Piece::Scales),
                self.work.sizes.spans,
            ];
            return self.launch(kernel, [tokens, 1, 1], block, 0, args);
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
            q_cols,
            self.at(Piece::Scales),
            self.work.sizes.spans,
            matrix.span,
            in_shared,
        ];
        let shared = if in_shared { 4 * matrix.cols } else { 0 };
        self.launch(kernels.prepare, [tokens, 1, 1], block, shared, args)
    }

    /// Norms and quantises the input of one token, and makes products, in one kernel.
    fn project_token(&self, together: &Together, linear: &DeviceLinear, source: Piece, norm: u64) -> Result<()> {
        let Together { tiles, pieces, .. } = *together;
        let (config, kernels, cols) = (self.config(), self.kernels, linear.matrix.cols);
        let multiprocessors = self.model().device.multiprocessors();
        // Few blocks of threads, each of which prepares the input anew, leave room for those of the next kernel.
        let (groups, blocks) = project_shape(pieces, tiles, multiprocessors, PROJECT_ROUNDS);
        let kernel = match (together.pair, groups * tiles <= PROJECT_WARPS) {
            (false, true) => kernels.project_rows,
            (false, false) => kernels.project_rows_wide,
            (true, true) => kernels.project_pair,
            (true, false) => kernels.project_pair_wide,
        };
        let args = args![
            together.jobs,
            pieces,
            self.at(source),
            cols,
            norm,
            config.rms_norm_eps,
            linear.norm,
            config.projection_norm_eps,
            tiles,
            groups,
        ];
        let shared = 4 * cols + tiles * PIECE_COLS;
        self.launch(kernel, [blocks, 1, 1], [32, groups * tiles], shared, args)
    }

    /// [`Pass::multiply_together`] with weights of which five lie in a byte, for any number of tokens.
    fn multiply_fives(&self, together: &Together, tokens: usize) -> Result<()> {
        let (kernels, tiles) = (self.kernels, together.tiles);
        let (jobs, units) = together.units();
        let (q, q_stride) = (self.at(Piece::Quantized), quantized_stride(self.config()) / 16);
        let (scales, spans) = (self.at(Piece::Scales), self.work.sizes.spans);
        if tokens >= fives::GEMM_FROM {
            let kernel = if together.pair { kernels.fives_gemm_pair } else { kernels.fives_gemm };
            let args = args![jobs, units, q, q_stride, scales, spans, tiles, tokens];
            let grid = [tokens.div_ceil(fives::GEMM_TOKENS), units.div_ceil(fives::GEMM_UNITS), 1];
            return self.launch(newer(kernel)?, grid, [32, fives::GEMM_UNITS], 0, args);
        }
        let is_one = jobs.job[1].rows == 0;
        let (kernel, at_once) = match (tokens, together.pair) {
            (1, false) if is_one => (kernels.fives_gemv_one, 1),
            (1, false) => (kernels.fives_gemv, 1),
            (1, true) => (kernels.fives_gemv_pair, 1),
            (_, false) => (kernels.fives_tokens, fives::TOKENS),
            (_, true) => (kernels.fives_tokens_pair, fives::TOKENS),
        };
        let multiprocessors = self.model().device.multiprocessors();
        let Blocks { groups, blocks, shared } = Blocks::new(units, tiles, multiprocessors, at_once);
        let args = args![jobs, units, q, q_stride, scales, spans, tiles, groups, tokens];
        let grid = [blocks, tokens.div_ceil(at_once), 1];
        self.launch(newer(kernel)?, grid, [32, groups * tiles], shared, args)
    }

    /// Products of plain ternary matrices that share an input, which is prepared, for few tokens.
    fn multiply_together(&self, together: &Together, tokens: usize) -> Result<()> {
        let Together { jobs, tiles, pieces, pair, packing } = *together;
        if packing == Packing::Fives {
            return self.multiply_fives(together, tokens);
        }
        let (kernels, multiprocessors) = (self.kernels, self.model().device.multiprocessors());
        let (q, q_stride) = (self.at(Piece::Quantized), quantized_stride(self.config()) / 16);
        let (scales, spans) = (self.at(Piece::Scales), self.work.sizes.spans);
        let by_tensor_cores = if pair { kernels.ternary_tokens_pair } else { kernels.ternary_tokens };
        if let Some(kernel) = by_tensor_cores.filter(|_| tokens > 1 && tiles <= WIDEST_ROW) {
            let (jobs, units) = together.units();
            // Many tokens are work enough: then blocks of threads that do more.
            let rounds = if tokens > TOKENS_AT_ONCE { TOKENS_ROUNDS } else { 1 };
            let (groups, blocks) = project_shape(units, tiles, multiprocessors, rounds);
            let args = args![jobs, units, q, q_stride, scales, spans, tiles, groups, tokens];
            let grid = [blocks, tokens.div_ceil(TOKENS_AT_ONCE), 1];
            return self.launch(kernel, grid, [32, groups * tiles], groups * UNIT_SUMS, args);
        }
        let (kernel, few) = match (tokens, pair) {
            (1, false) => (kernels.ternary_gemv, 1),
            (1, true) => (kernels.ternary_gemv_pair, 1),
            (_, false) => (kernels.ternary_gemv_4, FEW),
            (_, true) => (kernels.ternary_gemv_pair_4, FEW),
        };
        let args = args![jobs, q, q_stride, scales, spans, tiles, tokens];
        let warps = warps_for(tiles, pieces * tokens.div_ceil(few), multiprocessors);
        self.launch(kernel, [tokens.div_ceil(few), pieces, 1], [32, warps], 0, args)
    }

    /// Whether a product is made by tiles of rows and tokens: many tokens, where tensor cores do not take them.
    fn takes_tiles(&self, matrix: &DeviceMatrix, tokens: usize) -> bool {
        let by_tensor_cores = matrix.packing == Packing::Fives
            || (self.kernels.ternary_tokens.is_some() && matrix.cols <= WIDEST_ROW * PIECE_COLS);
        tokens >= GEMM_TOKENS && !by_tensor_cores
    }

    /// The product of a matrix with `tokens` rows of the input that was prepared for it.
    fn multiply(&self, matrix: &DeviceMatrix, out: u64, sink: Sink, tokens: usize) -> Result<()> {
        let (config, kernels) = (self.config(), self.kernels);
        let (quantized, scales) = (self.at(Piece::Quantized), self.at(Piece::Scales));
        let (q_stride, spans, tiles) =
            (quantized_stride(config) / 16, self.work.sizes.spans, matrix.cols.div_ceil(PIECE_COLS));
        let (weights, rows, pieces) = (matrix.weights, matrix.rows, matrix.rows.div_ceil(PIECE_ROWS));
        let divide = matrix.kind == Kind::Divide;
        let by_tokens = match matrix.kind {
            Kind::Multiply | Kind::Divide if self.takes_tiles(matrix, tokens) => {
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
                let grid = [tokens.div_ceil(GEMM_TILE), rows.div_ceil(GEMM_TILE), 1];
                return self.launch(kernels.ternary_gemm, grid, [128, 1], 0, args);
            }
            Kind::Multiply | Kind::Divide => {
                return self.multiply_together(&Together::new([(matrix, out, sink)].into_iter()), tokens);
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
                return self.launch(kernels.ternary_groups, [pieces, tokens, 1], [128, 1], 0, args);
            }
            Kind::F32 => [kernels.float_product_f32, kernels.float_product_f32_4, kernels.float_product_f32_8],
            Kind::F16 => [kernels.float_product_f16, kernels.float_product_f16_4, kernels.float_product_f16_8],
            Kind::Bf16 => [kernels.float_product_bf16, kernels.float_product_bf16_4, kernels.float_product_bf16_8],
            Kind::I8 => [kernels.float_product_i8, kernels.float_product_i8_4, kernels.float_product_i8_8],
        };
        let (kernel, at_once) = match tokens {
            1 => (by_tokens[0], 1),
            2..=4 => (by_tokens[1], 4),
            _ => (by_tokens[2], 8),
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
        self.launch(kernel, [tokens.div_ceil(at_once), rows.div_ceil(32), 1], [256, 1], 0, args)
    }

    /// The kernel for the cache's number format.
    fn by_cache(&self, f32: Kernel, f16: Kernel) -> Kernel {
        match self.cache {
            CacheType::F32 => f32,
            CacheType::F16 => f16,
        }
    }

    /// The first arguments of the kernels that rotate queries and keys.
    fn rotation_args(&self, n: usize, layer: &DeviceLayer) -> [Arg; 11] {
        let config = self.config();
        [
            self.at(Piece::Slots).into(),
            n.into(),
            self.at(Piece::Query).into(),
            self.at(Piece::Key).into(),
            self.at(Piece::Value).into(),
            layer.norms[LayerNorm::Query as usize].into(),
            layer.norms[LayerNorm::Key as usize].into(),
            config.rms_norm_eps.into(),
            config.num_attention_heads.into(),
            config.num_key_value_heads.into(),
            config.head_dim.into(),
        ]
    }

    /// What scores are multiplied by.
    fn score_scale(&self) -> f32 {
        1.0 / (self.config().head_dim as f32).sqrt()
    }

    /// Rotation, the write to the cache, and attention of one token of each session.
    fn attend(&self, n: usize, layer: &DeviceLayer) -> Result<()> {
        let (config, kernels, rows) = (self.config(), self.kernels, self.batch);
        let (stride, [parts, pieces]) = (self.work.sizes.score_stride, self.work.sizes.score_grid);
        let (scores, largest) = (self.at(Piece::Scores), self.at(Piece::Largest));
        let own = args![self.score_scale(), scores, stride, largest];
        let args = &[&self.rotation_args(n, layer)[..], own].concat();
        let kernel = self.by_cache(kernels.attention_scores_f32, kernels.attention_scores_f16);
        let vectors = 4 * 5 * config.head_dim;
        self.launch(kernel, [parts, pieces, rows], [ATTENTION_THREADS, 1], vectors, args)?;
        let args = args![
            self.at(Piece::Slots),
            n,
            scores,
            stride,
            largest,
            pieces,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            self.at(Piece::Query),
        ];
        let kernel = self.by_cache(kernels.attention_outputs_f32, kernels.attention_outputs_f16);
        let (blocks, each) = output_shape(config.head_dim, parts * rows, self.model().device.multiprocessors());
        let sums = 4 * each * ATTENTION_HEADS * ATTENTION_COLUMNS;
        self.launch(kernel, [parts, blocks, rows], [ATTENTION_THREADS, 1], sums, args)
    }

    fn rotate(&self, n: usize, layer: &DeviceLayer) -> Result<()> {
        let units = self.config().num_attention_heads + 2 * self.config().num_key_value_heads;
        let kernel = self.by_cache(self.kernels.rotate_f32, self.kernels.rotate_f16);
        self.launch(kernel, [units.div_ceil(4), self.batch, 1], [32, 4], 0, &self.rotation_args(n, layer))
    }

    fn attend_prompt(&self, n: usize) -> Result<()> {
        let config = self.config();
        let args = args![
            self.at(Piece::Slots),
            n,
            self.at(Piece::Query),
            self.at(Piece::Scores),
            self.work.sizes.score_stride,
            self.batch,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            self.score_scale(),
        ];
        let kernel = self.by_cache(self.kernels.attention_prompt_f32, self.kernels.attention_prompt_f16);
        self.launch(kernel, [self.work.sizes.prompt_blocks, 1, 1], [128, 1], 4 * 8 * config.head_dim, args)
    }
}

/// Plain ternary matrices that share an input, all stored in the same way.
struct Together {
    jobs: Jobs,
    packing: Packing,
    /// Pieces of columns in a row.
    tiles: usize,
    /// Pieces of 8 rows in all of them; of a pair, in one.
    pieces: usize,
    /// Whether they are gate and up, of which `act(gate) * up` is stored.
    pair: bool,
}

impl Together {
    /// Up to three matrices, where the outputs go, and how; a pair, if the second has an activation.
    fn new<'m>(products: impl Iterator<Item = (&'m DeviceMatrix, u64, Sink)>) -> Self {
        let (jobs, packing) = (Jobs::default(), Packing::Twos);
        let mut together = Together { jobs, packing, tiles: 0, pieces: 0, pair: false };
        together.jobs.begin = [i32::MAX; 2];
        for (i, (matrix, out, sink)) in products.enumerate() {
            let jobs = &mut together.jobs;
            (together.packing, together.tiles) = (matrix.packing, matrix.tiles());
            together.pair = i == 1 && matches!(sink, Sink::Relu2 | Sink::Silu);
            if together.pair {
                jobs.job[0].sink = sink as i32;
            } else {
                if let Some(begin) = i.checked_sub(1).and_then(|before| jobs.begin.get_mut(before)) {
                    *begin = together.pieces as i32;
                }
                together.pieces += matrix.rows.div_ceil(PIECE_ROWS);
            }
            jobs.job[i] = Job {
                weights: matrix.weights,
                out,
                scale: matrix.scale,
                divide: i32::from(matrix.kind == Kind::Divide),
                rows: matrix.rows as i32,
                sink: sink as i32,
            };
        }
        together
    }

    /// The same for `kernels/tokens.cu` and `kernels/fives.cuh`, and the number of units: two pieces of 8 rows of a
    /// matrix, or one of a pair.
    fn units(&self) -> (Jobs, usize) {
        let mut jobs = self.jobs;
        if self.pair {
            return (jobs, self.pieces);
        }
        let mut units = 0;
        for (i, job) in self.jobs.job.iter().enumerate() {
            if let Some(begin) = i.checked_sub(1).and_then(|before| jobs.begin.get_mut(before)) {
                *begin = if job.rows > 0 { units as i32 } else { i32::MAX };
            }
            units += (job.rows as usize).div_ceil(2 * PIECE_ROWS);
        }
        (jobs, units)
    }
}

/// A kernel that only newer cards have, as those do that have what it is for.
pub(crate) fn newer(kernel: Option<Kernel>) -> Result<Kernel> {
    kernel.ok_or(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)).doing("looking for a kernel")
}

/// Groups of warps in a block of threads, and blocks, for so many pieces of rows of `tiles` pieces of columns, of which a
/// group makes `least_rounds` at least.
pub(crate) fn project_shape(
    pieces: usize,
    tiles: usize,
    multiprocessors: usize,
    least_rounds: usize,
) -> (usize, usize) {
    let groups = (PROJECT_WARPS / tiles).clamp(1, PROJECT_GROUPS);
    let rounds = pieces.div_ceil(groups * multiprocessors).max(least_rounds);
    (groups, pieces.div_ceil(groups * rounds))
}

/// Blocks of threads that share the columns of a head's outputs, and pieces of columns of each, where the rest of the grid
/// has so many: several pieces where there are enough blocks, as each makes all weights.
pub(crate) fn output_shape(head_dim: usize, parts: usize, multiprocessors: usize) -> (usize, usize) {
    let all = head_dim.div_ceil(ATTENTION_COLUMNS);
    let each = all.div_ceil((2 * multiprocessors).div_ceil(parts));
    (all.div_ceil(each), each)
}

/// Whether two projections read the same prepared input.
fn same_input(a: &DeviceLinear, b: &DeviceLinear) -> bool {
    let (m, n) = (&a.matrix, &b.matrix);
    a.norm == 0 && b.norm == 0 && m.span == n.span && m.cols == n.cols && m.packing == n.packing
}

/// Warps that share the columns of a row of `tiles` pieces: so many that all of them run at once, of those the number
/// that divides the columns best.
pub(crate) fn warps_for(tiles: usize, pieces: usize, multiprocessors: usize) -> usize {
    // What one multiprocessor runs at once of this kernel, by measurement rather than by registers alone.
    let most = (multiprocessors * 40 / pieces.max(1)).clamp(2, 10).min(tiles.max(1));
    let slots = |warps: usize| tiles.div_ceil(warps) * warps;
    (1..=most).rev().min_by_key(|warps| slots(*warps) + usize::from(*warps == 1)).unwrap_or(1)
}
