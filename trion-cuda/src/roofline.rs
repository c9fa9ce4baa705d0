//! How long a token and a prompt take, predicted from what a card can do: `docs/gpu.md` says how well that goes.
//!
//! A kernel is waited for in four parts, one after the other: its launch, the way to its input, its input, and the
//! stream of weights. Where a warp runs alone, what counts is how long instructions wait for one another; where there
//! are many, how many of them a multiprocessor begins in a cycle. Numbers of instructions were counted in the machine
//! code for compute capability 6.1 (`nvdisasm` of what `cargo xtask kernels` leaves in `target/kernels`): what one
//! warp executes, branches not taken left out.

use trion_core::{LayerNorm, Linear, Matrix, Model, Projection, SessionOptions};

use crate::fives::{self, Blocks};
use crate::forward::{PROJECT_ROUNDS, PROJECT_WARPS, WIDEST_ROW, output_shape, project_shape};
use crate::kernels::KernelSet;
use crate::layout::{LAUNCHES, PIECE_BYTES, PIECE_COLS, PIECE_ROWS, Packing, matrix_bytes, share_a_launch};
use crate::memory::{ARGMAX_BLOCKS, Sizes};

/// Cycles of an instruction of a warp that is alone, in those of an addition: the mean over the kernels of a token of
/// the waits that the assembler wrote into the machine code for 6.1 (3.5 to 5.2 cycles, where an addition has 6),
/// exchanges between lanes and reads of shared memory (24 cycles) included.
const ALONE: f64 = 0.75;
/// Threads of a warp, and warps of which a multiprocessor begins an instruction in a cycle, from Maxwell (2014) on.
const WARP: usize = 32;
const SCHEDULERS: f64 = 4.0;

/// What a card can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Their clock, GHz.
    pub clock: f64,
    /// A copy within device memory, GB/s, bytes read and bytes written both counted.
    pub bandwidth: f64,
    /// Lanes of a multiprocessor that begin an integer instruction in a cycle; `dp4a`, four products of bytes and their
    /// sum, is one.
    pub integer_lanes: f64,
    /// From the end of a small kernel to where the next one does something, in a graph, microseconds.
    pub gap: f64,
    /// Cycles of a read that finds its line in the second-level cache.
    pub cache_latency: f64,
    /// Cycles of a read from device memory.
    pub memory_latency: f64,
    /// Cycles until the sum of two floats can be added to something.
    pub add_latency: f64,
    /// Whether a kernel begins while the one before it ends ([`crate::KernelSet::Sm90`]).
    pub overlaps: bool,
}

impl Card {
    /// A GTX 1050 of 2 GB, from what is published.
    ///
    /// - 5 multiprocessors of 128 lanes, 1.455 GHz (boost), 112 GB/s: NVIDIA's specification. Of those 112, 84.4 %
    ///   count: what a Tesla P4 of the same generation reaches (162 of 192 GB/s; Jia et al. 2019, arXiv 1903.07486).
    /// - `dp4a` in every lane: NVIDIA gives the P4, of compute capability 6.1 too, 22 int8 TOPS (2560 lanes, 1.06 GHz).
    /// - 216 cycles to the second-level cache and 6 for an addition: Jia et al. for the P4. 450 to memory: of the 400
    ///   to 500 that are reported for Pascal.
    /// - The gap is nowhere published. 1.5 microseconds are assumed; one more makes a token of 2B4T 0.19 ms slower.
    pub const GTX_1050: Card = Card {
        multiprocessors: 5,
        clock: 1.455,
        bandwidth: 94.5,
        integer_lanes: 128.0,
        gap: 1.5,
        cache_latency: 216.0,
        memory_latency: 450.0,
        add_latency: 6.0,
        overlaps: false,
    };

    /// An H100 80GB HBM3 with the kernels of a GTX 1050.
    ///
    /// All as `trion-gpu-test --speed` measured it on one.
    pub const H100: Card = Card {
        multiprocessors: 132,
        clock: 1.98,
        bandwidth: 2974.0,
        integer_lanes: 63.5,
        gap: 0.96,
        cache_latency: 303.0,
        memory_latency: 689.0,
        add_latency: 4.6,
        overlaps: false,
    };

    /// The same card with its own kernels.
    pub const H100_OVERLAPPING: Card = Card { gap: 0.52, overlaps: true, ..Card::H100 };

    /// Which kernels it takes.
    const fn kernel_set(&self) -> KernelSet {
        if self.overlaps { KernelSet::Sm90 } else { KernelSet::Sm61 }
    }

    /// Cycles of a part of a kernel: of instructions of each of a multiprocessor's warps, or of one that is alone and
    /// waits for so many reads of the second-level cache, whichever is more. `integers` is the share of integer ones.
    fn cycles(&self, warps: usize, instructions: f64, integers: f64, reads: f64) -> f64 {
        let each = (1.0 / SCHEDULERS).max(integers * WARP as f64 / self.integer_lanes);
        let alone = instructions * ALONE * self.add_latency + reads * self.cache_latency;
        alone.max(instructions * warps as f64 * each)
    }
}

/// A kernel, as it is launched, and how long it is waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// What it does.
    pub name: &'static str,
    /// How many there are in a token, or in a prompt.
    pub count: usize,
    /// Blocks of threads, and threads of a block.
    pub shape: [usize; 2],
    /// Bytes of device memory that it reads and writes.
    pub bytes: usize,
    /// `dp4a` of its lanes.
    pub dp4a: usize,
    /// Microseconds of one, gap included.
    pub micros: f64,
}

/// Milliseconds of all of them.
pub fn total_ms(launches: &[Launch]) -> f64 {
    launches.iter().map(|launch| launch.count as f64 * launch.micros).sum::<f64>() / 1e3
}

/// What decides how long a kernel takes. Instructions are those of one warp.
#[derive(Default)]
struct Work {
    shape: [usize; 2],
    bytes: usize,
    /// Of these, what is on its way before the kernel waits for its input.
    ahead: usize,
    dp4a: usize,
    /// Instructions until then.
    first: f64,
    /// Instructions that make something of the input; reads of it that wait for one another; additions in a row of one
    /// warp, while the others wait, and instructions of that warp.
    input: f64,
    reads: f64,
    in_turn: f64,
    /// Instructions that go with the stream of weights, the share of integer ones, where it is more than a half, and
    /// reads that wait for one another there.
    stream: f64,
    stream_integers: f64,
    stream_reads: f64,
    /// Instructions behind it.
    last: f64,
}

impl Work {
    fn launch(&self, name: &'static str, card: &Card) -> Launch {
        let [blocks, threads] = self.shape;
        let blocks_each = blocks.div_ceil(card.multiprocessors);
        let warps = blocks_each * threads.div_ceil(WARP);
        let seconds = |bytes: usize| bytes as f64 / card.bandwidth / 1e9;
        let cycles = |cycles: f64| cycles / card.clock / 1e9;
        let latency = if self.bytes == 0 { 0.0 } else { cycles(card.memory_latency) };
        let in_turn = self.in_turn * card.add_latency;
        let input = cycles(card.cycles(warps, self.input, 0.5, self.reads) + in_turn);
        let stream = cycles(card.cycles(warps, self.stream, self.stream_integers, self.stream_reads));
        let last = cycles(card.cycles(warps, self.last, 0.5, 0.0));
        // A kernel that begins early has the way to its input, and the latency, behind it when it may go on.
        let (first, latency) =
            if card.overlaps { (0.0, 0.0) } else { (cycles(card.cycles(warps, self.first, 0.8, 0.0)), latency) };
        let waited =
            first + input.max(latency + seconds(self.ahead)) + stream.max(seconds(self.bytes - self.ahead)) + last;
        Launch {
            name,
            count: 1,
            shape: self.shape,
            bytes: self.bytes,
            dp4a: self.dp4a,
            micros: card.gap + waited * 1e6,
        }
    }
}

/// Launches, in the order of the first of their kind.
struct Launches<'a> {
    card: &'a Card,
    all: Vec<Launch>,
}

impl Launches<'_> {
    fn add(&mut self, name: &'static str, work: &Work) {
        let launch = work.launch(name, self.card);
        let same = |other: &&mut Launch| Launch { count: 1, ..(**other).clone() } == launch;
        match self.all.iter_mut().find(same) {
            Some(other) => other.count += 1,
            None => self.all.push(launch),
        }
    }

    /// `prepare` of `kernels/prepare.cu`, of so many tokens.
    fn prepare(&mut self, cols: usize, tokens: usize) {
        let (in_turn, input) = ((cols / WARP) as f64, 600.0);
        let bytes = if tokens > 1 { 5 * cols * tokens } else { 0 };
        let work = Work { shape: [tokens, 512], bytes, input, reads: 2.0, in_turn, ..Work::default() };
        self.add("norm and quantisation", &work);
    }

    /// A product of one token with a matrix that is no plain ternary one: `kernels/float_matrix.cu` and its like.
    fn product(&mut self, name: &'static str, matrix: &Matrix<'_>, packing: Packing) {
        let [rows, cols] = matrix.shape();
        let bytes = matrix_bytes(matrix, packing).iter().sum();
        // Of 512 bytes: as for int8, the largest number of them; ternary ones as in `project`.
        let (per_warp, each) = if matches!(matrix, Matrix::Float(_)) { (4, 290.0 / 4.0) } else { (8, PIECE) };
        let stream = each * (bytes / PIECE_BYTES) as f64 / rows.div_ceil(per_warp) as f64 + 450.0;
        let (dp4a, stream_integers) =
            if matches!(matrix, Matrix::Float(_)) { (0, 0.33) } else { (rows * cols / 4, 0.8) };
        let shape = [rows.div_ceil(8 * per_warp), 256];
        self.add(name, &Work { shape, bytes, dp4a, stream, stream_integers, ..Work::default() });
    }

    /// A projection of one token, and those that share its input, each stored in its way: `project` of `src/forward.rs`.
    fn project(&mut self, name: &'static str, linears: &[&Linear<'_>], packings: &[Packing], has_norm: bool) {
        let [_, cols] = linears[0].matrix.shape();
        let shared = share_a_launch(linears);
        if shared && packings[0] == Packing::Fives {
            self.prepare(cols, 1);
            self.fives(name, linears);
            return;
        }
        if !(shared && cols.is_multiple_of(WARP) && cols <= WIDEST_ROW * PIECE_COLS) {
            for (linear, packing) in linears.iter().zip(packings) {
                self.prepare(linear.matrix.shape()[1], 1);
                self.product(name, &linear.matrix, *packing);
            }
            return;
        }
        let is_pair = name == GATE_UP;
        let rows: usize = linears.iter().map(|linear| linear.matrix.shape()[0].div_ceil(PIECE_ROWS)).sum();
        let (tiles, pieces, each) =
            (cols.div_ceil(PIECE_COLS), if is_pair { rows / 2 } else { rows }, if is_pair { 2 } else { 1 });
        let (groups, blocks) = project_shape(pieces, tiles, self.card.multiprocessors, PROJECT_ROUNDS);
        let (warps, rounds) = (groups * tiles, pieces.div_ceil(groups * blocks));
        let depth = match (warps <= PROJECT_WARPS, is_pair) {
            (true, _) => 4,
            (false, false) => 3,
            (false, true) => 2,
        };
        let bytes = rows * tiles * PIECE_BYTES;
        let norms = f64::from(u8::from(has_norm) + u8::from(linears[0].norm.is_some()));
        let work = Work {
            shape: [blocks, WARP * warps],
            bytes,
            ahead: bytes.min(blocks * warps * depth * each * PIECE_BYTES),
            dp4a: rows * PIECE_ROWS * tiles * PIECE_COLS / 4,
            first: 250.0,
            input: 290.0,
            reads: norms.max(1.0),
            // Its square root and divisions, besides.
            in_turn: norms * ((cols / WARP) as f64 + 75.0 * ALONE),
            stream: rounds as f64 * if is_pair { 116.0 } else { PIECE },
            stream_integers: 0.8,
            stream_reads: 0.0,
            last: 110.0,
        };
        self.add(name, &work);
    }

    /// Products of one token with matrices of which five weights lie in a byte: `kernels/fives.cu`.
    fn fives(&mut self, name: &'static str, linears: &[&Linear<'_>]) {
        let (counted, unit_rows) = if name == GATE_UP { (1, PIECE_ROWS) } else { (linears.len(), fives::UNIT_ROWS) };
        let units = linears[..counted].iter().map(|linear| linear.matrix.shape()[0].div_ceil(unit_rows)).sum();
        let tiles = linears[0].matrix.shape()[1].div_ceil(Packing::Fives.piece_cols());
        let Blocks { groups, blocks, .. } = Blocks::new(units, tiles, self.card.multiprocessors, 1);
        let bytes = linears.iter().map(|linear| matrix_bytes(&linear.matrix, Packing::Fives)[0]).sum();
        let warps = groups * tiles;
        let work = Work {
            shape: [blocks, WARP * warps],
            bytes,
            ahead: bytes.min(blocks * warps * fives::DEPTH * 2 * PIECE_BYTES),
            input: 80.0,
            reads: 1.0,
            stream: units.div_ceil(groups * blocks) as f64 * FIVES_UNIT,
            stream_integers: 0.8,
            last: 150.0,
            ..Work::default()
        };
        self.add(name, &work);
    }

    /// Attention of one token at a position: `kernels/attention_token.cu`.
    fn attend(&mut self, model: &Model<'_>, options: &SessionOptions, position: usize) {
        let (config, positions) = (model.config(), position + 1);
        let [parts, pieces] = Sizes::session(config, options, self.card.multiprocessors).score_grid;
        let pieces = pieces.min(positions.div_ceil(32));
        let bytes = positions * config.key_value_size() * options.cache.bytes();
        let wide = config.head_dim.div_ceil(128) as f64;
        let rounds = positions.div_ceil(32 * pieces) as f64;
        let scores = Work {
            shape: [parts * pieces, 256],
            bytes,
            ahead: bytes,
            first: 220.0,
            input: 180.0 * wide,
            reads: 2.0,
            // Four positions of a warp.
            stream: rounds * (150.0 + 256.0 * wide),
            stream_reads: rounds,
            last: 82.0,
            ..Work::default()
        };
        self.add("attention scores", &scores);
        // 1024 positions at a time; of their 16 blocks of 64, some of four warps load and multiply four each, and all
        // eight make the exponentials of one in turn.
        let blocks = positions.div_ceil(64) as f64;
        let (thousands, quarters) = (positions.div_ceil(1024) as f64, (blocks / 4.0).ceil() / 4.0);
        let (blocks_each, each) = output_shape(config.head_dim, parts, self.card.multiprocessors);
        let outputs = Work {
            shape: [parts * blocks_each, 256],
            bytes,
            ahead: bytes,
            first: 200.0,
            input: 100.0,
            reads: 2.0,
            stream: thousands * 130.0 + each as f64 * (quarters * 1310.0 + blocks * 6.0) + blocks / 8.0 * 274.0,
            stream_reads: thousands * each as f64,
            last: 60.0,
            ..Work::default()
        };
        self.add("attention outputs", &outputs);
    }
}

/// Instructions for 8 rows by 256 columns in `kernels/project.cu`, and for 16 by 320 in `kernels/fives.cu`.
const PIECE: f64 = 81.0;
const FIVES_UNIT: f64 = 205.0;
const GATE_UP: &str = "gate, up";

/// What is projected from one input, as [`LAUNCHES`] has it: names, and the norm before.
const PROJECTIONS: [(&str, LayerNorm); LAUNCHES.len()] = [
    ("query, key, value", LayerNorm::Attention),
    ("output", LayerNorm::AttentionSub),
    (GATE_UP, LayerNorm::Mlp),
    ("down", LayerNorm::MlpSub),
];

/// The kernels of a token at a position that is computed and chosen on the GPU, as `src/forward.rs` launches them.
pub fn token(model: &Model<'_>, options: &SessionOptions, position: usize, card: &Card) -> Vec<Launch> {
    let config = model.config();
    let mut launches = Launches { card, all: Vec::new() };
    let shape = [config.hidden_size.div_ceil(256), 256];
    // The position, the token, its row.
    let row = matrix_bytes(model.embedding(), Packing::Twos).iter().sum::<usize>() / config.vocab_size;
    launches.add("embedding", &Work { shape, bytes: row, input: 120.0, reads: 2.0, ..Work::default() });
    for layer in model.layers() {
        let packings = Packing::of_layer(card.kernel_set(), layer);
        for (i, ((name, norm), projections)) in PROJECTIONS.into_iter().zip(LAUNCHES).enumerate() {
            let linears: Vec<&Linear<'_>> = projections.iter().map(|p| layer.projection(*p)).collect();
            let packings: Vec<Packing> = projections.iter().map(|p| packings[*p as usize]).collect();
            launches.project(name, &linears, &packings, layer.norm(norm).is_some());
            if i == 0 {
                launches.attend(model, options, position);
            }
        }
    }
    launches.prepare(config.hidden_size, 1);
    launches.product("head", model.head(), Packing::Twos);
    let each = config.vocab_size.div_ceil(ARGMAX_BLOCKS * 256) as f64;
    let parts = Work { shape: [ARGMAX_BLOCKS, 256], input: 170.0 + 12.0 * each, reads: each, ..Work::default() };
    launches.add("largest logits", &parts);
    launches.add("largest of them", &Work { shape: [1, 256], input: 180.0, reads: 3.0, ..Work::default() });
    launches.all
}

/// The kernels of a prompt of more than 16 tokens in one batch, of which the last one's logits are wanted; of ternary
/// matrices with one scale.
pub fn prompt(model: &Model<'_>, options: &SessionOptions, tokens: usize, card: &Card) -> Vec<Launch> {
    let config = model.config();
    let mut launches = Launches { card, all: Vec::new() };
    for layer in model.layers() {
        for (i, ((name, _), projections)) in PROJECTIONS.into_iter().zip(LAUNCHES).enumerate() {
            for (j, projection) in projections.iter().enumerate() {
                let matrix = &layer.projection(*projection).matrix;
                let [rows, cols] = matrix.shape();
                if j == 0 {
                    launches.prepare(cols, tokens);
                }
                let (blocks, tiles) = (tokens.div_ceil(64) * rows.div_ceil(64), cols.div_ceil(PIECE_COLS));
                // 64 columns at a time: 512 `dp4a` of a lane, and 158 instructions that bring what they take. Each
                // float is written; where something is added to it, or it is a gate, it is read as well.
                let reads =
                    if matches!(projection, Projection::Output | Projection::Down | Projection::Up) { 2 } else { 1 };
                let work = Work {
                    shape: [blocks, 128],
                    bytes: matrix_bytes(matrix, Packing::Twos)[0] + tokens * (cols + 4 * rows * reads),
                    dp4a: blocks * 64 * 64 * tiles * PIECE_COLS / 4,
                    stream: 4.0 * tiles as f64 * (512.0 + 158.0) + 600.0,
                    stream_integers: 0.9,
                    ..Work::default()
                };
                launches.add(name, &work);
            }
            if i == 0 {
                let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
                let bytes = 2 * 4 * heads * config.head_dim * tokens;
                let shape = [heads.div_ceil(4) * tokens, 128];
                launches.add("rotation", &Work { shape, bytes, stream: 300.0, stream_reads: 2.0, ..Work::default() });
                launches.add("attention", &prompt_attention(model, options, tokens, card));
            }
        }
    }
    launches.prepare(config.hidden_size, 1);
    launches.product("head", model.head(), Packing::Twos);
    launches.all
}

/// `kernels/attention_prompt.cu`: eight queries at a time, of all positions before them.
fn prompt_attention(model: &Model<'_>, options: &SessionOptions, tokens: usize, card: &Card) -> Work {
    let config = model.config();
    let blocks = Sizes::session(config, options, card.multiprocessors).prompt_blocks.max(1);
    let group = config.num_attention_heads / config.num_key_value_heads;
    let pieces = (tokens * group).div_ceil(8) * config.num_key_value_heads;
    let (positions, wide) = (tokens as f64 / 2.0, config.head_dim.div_ceil(128) as f64);
    // Scores, a position for each of four warps; outputs, all positions in each; exponentials, two queries in each.
    let piece = positions * (120.0 + 310.0 * wide) / 4.0
        + positions * 26.0 * wide
        + positions / 64.0 * (2.0 * 93.0 + 290.0)
        + 1500.0;
    let bytes = 8 * config.query_size() * tokens + 2 * config.key_value_size() * options.cache.bytes() * tokens;
    // Keys of a position and its values, one position after the other.
    let stream_reads = positions / 4.0 * pieces as f64 / blocks as f64;
    let stream = piece * pieces as f64 / blocks as f64;
    Work { shape: [blocks, 128], bytes, stream, stream_reads, ..Work::default() }
}
