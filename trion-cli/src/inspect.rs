//! `trion inspect`.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use trion_core::{FloatData, Matrix, Projection, Rescale};
use trion_engine::{Activation, Config, Model, SessionOptions};

use crate::common::{ModelArgument, Outcome, matrix_bytes, open, print_line};
#[cfg(feature = "cuda")]
use crate::gpu_plan;

/// Characters of a whole bar.
const BAR: usize = 40;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArgument,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    #[command(flatten)]
    #[cfg(feature = "cuda")]
    gpu: gpu_plan::PlanArguments,
}

/// One matrix of the model, or all its vectors.
struct Row {
    name: String,
    kind: String,
    /// How integers become floats, for trits.
    scale: Option<String>,
    shape: [usize; 2],
    bytes: usize,
}

impl Row {
    fn weights(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// Weights, and the bytes they take.
pub(crate) struct Size {
    weights: usize,
    bytes: usize,
}

impl Size {
    /// Of a whole model.
    pub(crate) fn of(model: &Model) -> Self {
        Self::of_rows(&rows(model))
    }

    fn of_rows(rows: &[Row]) -> Self {
        Size { weights: rows.iter().map(Row::weights).sum(), bytes: rows.iter().map(|row| row.bytes).sum() }
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights.max(1) as f64
    }

    fn fp16_bytes(&self) -> usize {
        2 * self.weights
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size { weights, bytes } = self;
        let (bits, fp16) = (self.bits_per_weight(), self.fp16_bytes());
        write!(f, "{weights} weights in {bytes} bytes: {bits:.2} bits a weight, fp16 would take {fp16} bytes")
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let model = open(arguments.model.model.as_deref())?;
    #[cfg(feature = "cuda")]
    if arguments.gpu.is_asked_for() {
        return gpu_plan::run(&model, &arguments.gpu, arguments.json);
    }
    let rows = rows(&model);
    let size = Size::of_rows(&rows);
    let config = model.config();
    let context = config.max_position_embeddings;
    let options = SessionOptions { max_batch: 64.min(context), ..SessionOptions::new(context) };
    let session = trion_core::Session::bytes(config, &options);
    let trits = count_trits(&model);
    let total: u64 = trits.iter().sum();
    let shares = trits.map(|count| count as f64 / total.max(1) as f64);

    if arguments.json {
        print_line(json!({
            "name": model.name(),
            "config": model.config_json(),
            "weights": size.weights,
            "bytes": size.bytes,
            "bits_per_weight": size.bits_per_weight(),
            "fp16_bytes": size.fp16_bytes(),
            "shares": { "-1": shares[0], "0": shares[1], "+1": shares[2] },
            "context": context,
            "session_bytes": session,
            "tensors": rows.iter().map(row_json).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", model.name())?;
    writeln!(
        out,
        "  {} layers, hidden {}, intermediate {}, heads {} of {} with {} for keys and values",
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.head_dim,
        config.num_key_value_heads
    )?;
    let (vocabulary, theta) = (config.vocab_size, config.rope_theta);
    let activation = activation(config);
    writeln!(out, "  vocabulary {vocabulary}, context {context}, {activation}, rope theta {theta}")?;
    writeln!(out, "  {size}")?;
    writeln!(out, "  a session at full context takes {session} bytes")?;
    if total > 0 {
        writeln!(out, "trits")?;
        for (name, share) in ["-1", " 0", "+1"].iter().zip(shares) {
            let bar = "#".repeat((share * BAR as f64).round() as usize);
            writeln!(out, "  {name} {:5.1} % {bar}", 100.0 * share)?;
        }
    }
    writeln!(out, "tensors")?;
    if arguments.tensors {
        for row in &rows {
            let kind = row.scale.as_ref().map_or_else(|| row.kind.clone(), |scale| format!("{} {scale}", row.kind));
            let ([height, width], bytes) = (row.shape, row.bytes);
            writeln!(out, "  {:<48} {kind:<22} {height:>7} x {width:<7} {bytes:>12} bytes", row.name)?;
        }
    } else {
        for (kind, size, count) in kinds(&rows) {
            let Size { weights, bytes } = size;
            writeln!(out, "  {kind:<24} {count:>5} with {weights:>12} weights {bytes:>12} bytes")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn activation(config: &Config) -> &'static str {
    match config.hidden_act {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
    }
}

fn row_json(row: &Row) -> Value {
    json!({ "name": row.name, "kind": row.kind, "scale": row.scale, "shape": row.shape, "bytes": row.bytes })
}

/// What each kind of tensor takes together, and how many there are, in the order that they come.
fn kinds(rows: &[Row]) -> Vec<(&str, Size, usize)> {
    let mut kinds: Vec<(&str, Size, usize)> = Vec::new();
    for row in rows {
        let at = kinds.iter().position(|(kind, ..)| *kind == row.kind).unwrap_or_else(|| {
            kinds.push((&row.kind, Size { weights: 0, bytes: 0 }, 0));
            kinds.len() - 1
        });
        let (_, size, count) = &mut kinds[at];
        size.weights += row.weights();
        size.bytes += row.bytes;
        *count += 1;
    }
    kinds
}

/// How many trits of the model are -1, 0 and +1.
fn count_trits(model: &Model) -> [u64; 3] {
    let mut counts = [0; 3];
    for (_, matrix) in matrices(model) {
        let Matrix::Ternary(matrix) = matrix else { continue };
        let mut trits = vec![0; matrix.cols()];
        for row in 0..matrix.rows() {
            matrix.decode_row(row, &mut trits);
            for trit in &trits {
                counts[(trit + 1) as usize] += 1;
            }
        }
    }
    counts
}

/// Every matrix with its name; a tied head is the embedding.
fn matrices(model: &Model) -> Vec<(String, &Matrix<'_>)> {
    let core = model.core();
    let mut matrices = vec![("model.embed_tokens".to_owned(), core.embedding())];
    for (n, layer) in core.layers().iter().enumerate() {
        matrices.extend(Projection::ALL.map(|projection| {
            let name = format!("model.layers.{n}.{}", projection.name());
            (name, &layer.projection(projection).matrix)
        }));
    }
    if !core.is_tied() {
        matrices.push(("lm_head".to_owned(), core.head()));
    }
    matrices
}

fn rows(model: &Model) -> Vec<Row> {
    let core = model.core();
    let mut rows: Vec<Row> = matrices(model).into_iter().map(|(name, matrix)| row(name, matrix)).collect();
    let mut vectors = core.norm().len();
    for layer in core.layers() {
        vectors += layer.projections.iter().filter_map(|linear| linear.norm).map(<[f32]>::len).sum::<usize>();
        vectors += layer.norms.iter().flatten().map(|norm| norm.len()).sum::<usize>();
    }
    rows.push(Row {
        name: "norms".to_owned(),
        kind: "F32".to_owned(),
        scale: None,
        shape: [1, vectors],
        bytes: 4 * vectors,
    });
    rows
}

fn row(name: String, matrix: &Matrix<'_>) -> Row {
    let (kind, scale) = match matrix {
        Matrix::Ternary(m) => match m.rescale() {
            Rescale::Multiply(scale) => ("trits".to_owned(), Some(format!("* {scale:.5}"))),
            Rescale::Divide(scale) => ("trits".to_owned(), Some(format!("/ {scale:.5}"))),
            Rescale::Groups { size, .. } => (format!("trits in groups of {size}"), None),
        },
        Matrix::Int6(_) => ("six bits in groups of 16".to_owned(), None),
        Matrix::Float(m) => {
            let kind = match m.data() {
                FloatData::F32(_) => "F32",
                FloatData::F16(_) => "F16",
                FloatData::Bf16(_) => "BF16",
                FloatData::I8 { .. } => "I8 by row",
            };
            (kind.to_owned(), None)
        }
    };
    Row { name, kind, scale, shape: matrix.shape(), bytes: matrix_bytes(matrix) }
}
