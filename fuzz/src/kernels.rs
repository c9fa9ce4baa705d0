//! Every kernel against plain Rust: models of any shape, with matrices of every form, whose tokens give the same logits
//! bit for bit; and the sums of ternary matrices against loops.

use arbitrary::{Arbitrary, Unstructured};
use trion_core::quant::int6_row;
use trion_core::{
    Activation, CacheType, Config, FloatData, FloatMatrix, Int6Matrix, Kernel, Layer, LayerNorm, Linear, Logits,
    Matrix, Model, Packing, Projection, Rescale, Serial, Session, SessionOptions, TernaryMatrix,
};

use crate::check::same_bits;
use crate::small::Random;

/// A shape, and what fills it.
#[derive(Debug, Arbitrary)]
struct Input {
    seed: u64,
    /// Small sizes, in units that make a shape valid.
    half_head: u8,
    groups_of_heads: u8,
    key_value_heads: u8,
    hidden: u8,
    intermediate: u8,
    vocabulary: u8,
    forms: [u8; 9],
    silu: bool,
    half_cache: bool,
    norms: u8,
    max_batch: u8,
    tokens: u8,
    /// Bits of floats that occur among the weights, hostile ones too.
    floats: [f32; 4],
}

/// The memory of a matrix.
enum Form {
    Trits { packing: Packing, packed: Vec<u8>, scale: Scale },
    Six { packed: Vec<u8>, row_scales: Vec<f32> },
    Single(Vec<f32>),
    Half(Vec<u16>),
    Brain(Vec<u16>),
    Bytes { values: Vec<i8>, scales: Vec<f32> },
}

enum Scale {
    Multiply(f32),
    Divide(f32),
    Groups(usize, Vec<u16>),
}

struct Owned {
    rows: usize,
    cols: usize,
    form: Form,
}

/// Fills matrices and vectors.
struct Filler {
    random: Random,
    floats: [f32; 4],
}

impl Filler {
    /// Mostly a small number, sometimes one of the input's.
    fn float(&mut self) -> f32 {
        match self.random.below(64) {
            n @ 0..4 => self.floats[n],
            _ => self.random.float(),
        }
    }

    /// A number that a scale or a norm may be.
    fn finite(&mut self) -> f32 {
        let float = self.float();
        if float.is_finite() { float } else { 1.0 }
    }

    fn finites(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.finite()).collect()
    }

    fn halves(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| self.random.bits() as u16).collect()
    }

    fn trits(&mut self, rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
        let mut packed = vec![0; packing.bytes(rows, cols)];
        packing.clear(&mut packed);
        // Of few values in a row, sums are as large as they can be.
        let (least, most) = [(-1, 1), (1, 1), (-1, -1), (0, 1)][self.random.below(4)];
        for row in 0..rows {
            let trits: Vec<i8> =
                (0..cols).map(|_| least + self.random.below((most - least + 1) as usize) as i8).collect();
            packing.pack_row(&mut packed, rows, cols, row, &trits).expect("a row of the matrix");
        }
        packed
    }

    fn matrix(&mut self, form: u8, [rows, cols]: [usize; 2]) -> Owned {
        let form = match form % 9 {
            n @ 0..4 => {
                let packing = if n % 2 == 0 { Packing::Twos } else { Packing::Fives };
                let scale = self.finite();
                let scale = if n < 2 || scale == 0.0 { Scale::Multiply(scale) } else { Scale::Divide(scale) };
                Form::Trits { packing, packed: self.trits(rows, cols, packing), scale }
            }
            4 => {
                let size = 16 << self.random.below(5);
                let scales = self.halves(TernaryMatrix::group_scales(rows, cols, size));
                // Scales are finite: the largest exponent is taken away.
                let scales = scales.iter().map(|bits| bits & 0xbfff).collect();
                let packed = self.trits(rows, cols, Packing::Twos);
                Form::Trits { packing: Packing::Twos, packed, scale: Scale::Groups(size, scales) }
            }
            5 => self.six(rows, cols),
            6 => Form::Single((0..rows * cols).map(|_| self.float()).collect()),
            7 => match self.random.below(2) {
                0 => Form::Half(self.halves(rows * cols)),
                _ => Form::Brain((0..rows * cols).map(|_| (self.float().to_bits() >> 16) as u16).collect()),
            },
            _ => Form::Bytes {
                values: (0..rows * cols).map(|_| self.random.bits() as i8).collect(),
                scales: self.finites(rows),
            },
        };
        Owned { rows, cols, form }
    }

    fn six(&mut self, rows: usize, cols: usize) -> Form {
        let mut packed = vec![0; Int6Matrix::packed_bytes(rows, cols)];
        let (mut codes, mut scales) = (vec![0; cols], vec![0; cols.div_ceil(16)]);
        let mut row_scales = Vec::new();
        for row in 0..rows.next_multiple_of(32) {
            let weights = self.finites(cols);
            let scale = int6_row(&weights, &mut codes, &mut scales);
            if self.random.below(2) == 0 {
                codes.iter_mut().for_each(|code| *code = self.random.below(64) as i8 - 32);
                scales.iter_mut().for_each(|scale| *scale = self.random.bits() as u8);
            }
            Int6Matrix::pack_row(&mut packed, rows, cols, row, &codes, &scales).expect("a row of the matrix");
            row_scales.push(if scale.is_finite() { scale } else { 1.0 });
        }
        row_scales.truncate(rows);
        Form::Six { packed, row_scales }
    }
}

impl Owned {
    fn borrow(&self) -> Matrix<'_> {
        let (rows, cols) = (self.rows, self.cols);
        let float = |data| FloatMatrix::new(rows, cols, data).expect("a float matrix").into();
        match &self.form {
            Form::Trits { packing, packed, scale } => {
                let rescale = match scale {
                    Scale::Multiply(scale) => Rescale::Multiply(*scale),
                    Scale::Divide(scale) => Rescale::Divide(*scale),
                    Scale::Groups(size, scales) => Rescale::Groups { size: *size, scales },
                };
                TernaryMatrix::new(rows, cols, *packing, packed, rescale).expect("a ternary matrix").into()
            }
            Form::Six { packed, row_scales } => {
                Int6Matrix::new(rows, cols, packed, row_scales).expect("a matrix of six bits").into()
            }
            Form::Single(values) => float(FloatData::F32(values)),
            Form::Half(bits) => float(FloatData::F16(bits)),
            Form::Brain(bits) => float(FloatData::Bf16(bits)),
            Form::Bytes { values, scales } => float(FloatData::I8 { values, scales }),
        }
    }

    /// Columns that share an activation scale; 0 for all.
    fn group(&self) -> usize {
        match &self.form {
            Form::Trits { scale: Scale::Groups(size, _), .. } => *size,
            Form::Six { .. } => trion_core::int6::GROUP_COLS,
            _ => 0,
        }
    }
}

fn config(input: &Input) -> Config {
    let head_dim = 2 * (1 + usize::from(input.half_head % 20));
    let key_value_heads = 1 + usize::from(input.key_value_heads % 3);
    Config {
        vocab_size: 1 + usize::from(input.vocabulary % 80),
        hidden_size: 1 + usize::from(input.hidden % 144),
        intermediate_size: 1 + usize::from(input.intermediate % 144),
        num_hidden_layers: 1,
        num_attention_heads: key_value_heads * (1 + usize::from(input.groups_of_heads % 3)),
        num_key_value_heads: key_value_heads,
        head_dim,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        projection_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        hidden_act: if input.silu { Activation::Silu } else { Activation::Relu2 },
        activation_group: 0,
    }
}

/// Computes with every kernel.
///
/// # Panics
/// If two of them differ.
pub fn run(bytes: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let mut config = config(&input);
    let mut filler = Filler { random: Random::new(input.seed), floats: input.floats };
    let table = [config.vocab_size, config.hidden_size];
    let [embedding, head, projections @ ..] = input.forms;
    let (embedding, head) = (filler.matrix(embedding, table), filler.matrix(head, table));
    let shapes = Projection::ALL.map(|projection| projection.shape(&config));
    let matrices: Vec<Owned> =
        shapes.iter().zip(projections).map(|(shape, form)| filler.matrix(form, *shape)).collect();
    let groups = matrices.iter().chain([&embedding, &head]).map(Owned::group).filter(|group| *group > 0);
    config.activation_group = groups.min().unwrap_or(0);
    let norms: Vec<Vec<f32>> = LayerNorm::ALL.iter().map(|norm| filler.finites(norm.length(&config))).collect();
    let inner: Vec<Vec<f32>> = shapes.iter().map(|[_, cols]| filler.finites(*cols)).collect();
    let last = filler.finites(config.hidden_size);

    let linear = |n: usize| Linear {
        matrix: matrices[n].borrow(),
        norm: (input.norms >> n & 1 == 1).then_some(inner[n].as_slice()),
    };
    let mut layer = Layer { projections: std::array::from_fn(linear), norms: [None; LayerNorm::ALL.len()] };
    for (norm, weights) in LayerNorm::ALL.iter().zip(&norms) {
        if norm.required() || input.norms >> 7 == 1 {
            layer.norms[*norm as usize] = Some(weights);
        }
    }
    let layers = [layer];
    let head = (input.norms & 64 == 0).then(|| head.borrow());
    let model = Model::new(config, embedding.borrow(), &layers, &last, head).expect("a model");

    // Mostly few, since plain Rust takes its time; sometimes more than any kernel takes together.
    let count = 1 + usize::from(if input.tokens < 240 { input.tokens % 9 } else { input.tokens - 210 });
    let tokens: Vec<u32> = (0..count).map(|_| filler.random.below(config.vocab_size) as u32).collect();
    let options = SessionOptions {
        max_batch: 1 + usize::from(input.max_batch) % count,
        cache: if input.half_cache { CacheType::F16 } else { CacheType::F32 },
        logits: Logits::Last,
        ..SessionOptions::new(count)
    };
    let mut expected: Option<Vec<f32>> = None;
    for kernel in Kernel::available() {
        let logits = logits(&model, options, kernel, &tokens);
        let expected = expected.get_or_insert_with(|| logits.clone());
        let name = kernel.isa().name();
        assert!(same_bits(&logits, expected), "{name} gives {logits:?}, plain Rust {expected:?}");
    }
    for matrix in &layers[0].projections {
        if let Matrix::Ternary(matrix) = &matrix.matrix {
            sums(matrix, &mut filler.random);
        }
    }
}

fn logits(model: &Model<'_>, options: SessionOptions, kernel: Kernel, tokens: &[u32]) -> Vec<f32> {
    let mut memory = vec![0; Session::bytes(model.config(), &options)];
    let mut session = Session::new(model, options, kernel, &mut memory).expect("a session");
    session.push(tokens).expect("tokens");
    let _ = session.advance(usize::MAX, &Serial).expect("progress");
    session.logits().expect("logits").to_vec()
}

/// Compares the sums of a matrix with a loop over its trits.
fn sums(matrix: &TernaryMatrix<'_>, random: &mut Random) {
    let (rows, cols, tokens) = (matrix.rows(), matrix.cols(), 1 + random.below(3));
    let q: Vec<i8> = (0..tokens * cols).map(|_| [random.bits() as i8, -128, 127][random.below(3)]).collect();
    let span = matrix.activation_span();
    let groups = cols.div_ceil(span);
    let mut expected = vec![0_i32; tokens * groups * rows];
    let mut trits = vec![0; cols];
    for row in 0..rows {
        matrix.decode_row(row, &mut trits);
        for (at, q) in q.iter().enumerate() {
            let (token, col) = (at / cols, at % cols);
            expected[(token * groups + col / span) * rows + row] += i32::from(trits[col]) * i32::from(*q);
        }
    }
    for kernel in Kernel::available() {
        let mut found = vec![0; expected.len()];
        matrix.sums(kernel, &q, &mut found).expect("sums");
        assert_eq!(found, expected, "{}", kernel.isa().name());
    }
}
