//! `trion inspect`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use trion_core::{FloatData, LayerNorm, Matrix, Projection, Rescale};
use trion_engine::{Activation, Model, SessionOptions};

use crate::common::{ModelArgument, Outcome, open};

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
}

/// One matrix of the model.
struct Row {
    name: String,
    kind: String,
    shape: [usize; 2],
    bytes: usize,
}

/// How many trits are -1, 0 and +1.
#[derive(Default)]
struct Trits([u64; 3]);

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let model = open(arguments.model.model.as_deref())?;
    let mut trits = Trits::default();
    let rows = rows(&model, &mut trits);
    let weights: usize = rows.iter().map(|row| row.shape[0] * row.shape[1]).sum();
    let bytes: usize = rows.iter().map(|row| row.bytes).sum();
    let config = model.config();
    let context = config.max_position_embeddings;
    let options = SessionOptions { max_batch: 64.min(context), ..SessionOptions::new(context) };
    let session = trion_core::Session::bytes(config, &options);
    let total = trits.0.iter().sum::<u64>().max(1) as f64;
    let shares = trits.0.map(|count| count as f64 / total);
    let bits = 8.0 * bytes as f64 / weights as f64;

    if arguments.json {
        let tensors: Vec<_> = rows
            .iter()
            .map(|row| json!({ "name": row.name, "kind": row.kind, "shape": row.shape, "bytes": row.bytes }))
            .collect();
        let object = json!({
            "name": model.name(),
            "weights": weights,
            "bytes": bytes,
            "bits_per_weight": bits,
            "fp16_bytes": 2 * weights,
            "shares": { "-1": shares[0], "0": shares[1], "+1": shares[2] },
            "context": context,
            "session_bytes": session,
            "tensors": tensors,
        });
        println!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", model.name());
    println!(
        "  {} layers, hidden {}, intermediate {}, heads {} of {} with {} for keys and values",
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.head_dim,
        config.num_key_value_heads
    );
    let activation = match config.hidden_act {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
    };
    println!("  vocabulary {}, context {context}, {activation}, rope theta {}", config.vocab_size, config.rope_theta);
    println!("  {weights} weights in {bytes} bytes: {bits:.2} bits a weight, fp16 would take {} bytes", 2 * weights);
    println!("  a session at full context takes {session} bytes");
    if trits.0.iter().sum::<u64>() > 0 {
        println!("trits");
        for (name, share) in ["-1", " 0", "+1"].iter().zip(shares) {
            println!("  {name} {:5.1} % {}", 100.0 * share, "#".repeat((share * BAR as f64).round() as usize));
        }
    }
    if arguments.tensors {
        println!("tensors");
        for row in &rows {
            println!(
                "  {:<48} {:<22} {:>7} x {:<7} {:>12} bytes",
                row.name, row.kind, row.shape[0], row.shape[1], row.bytes
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(model: &Model, trits: &mut Trits) -> Vec<Row> {
    let core = model.core();
    let mut rows = vec![row("model.embed_tokens".to_owned(), core.embedding(), trits)];
    let mut vectors = core.norm().len();
    for (n, layer) in core.layers().iter().enumerate() {
        for projection in Projection::ALL {
            let linear = layer.projection(projection);
            rows.push(row(format!("model.layers.{n}.{}", projection.name()), &linear.matrix, trits));
            vectors += linear.norm.map_or(0, <[f32]>::len);
        }
        vectors += LayerNorm::ALL.iter().filter_map(|norm| layer.norm(*norm)).map(<[f32]>::len).sum::<usize>();
    }
    let tied = match (core.head(), core.embedding()) {
        (Matrix::Float(head), Matrix::Float(embedding)) => same_place(head.data(), embedding.data()),
        (Matrix::Ternary(head), Matrix::Ternary(embedding)) => std::ptr::eq(head.packed(), embedding.packed()),
        _ => false,
    };
    if !tied {
        rows.push(row("lm_head".to_owned(), core.head(), trits));
    }
    rows.push(Row { name: "norms".to_owned(), kind: "F32".to_owned(), shape: [1, vectors], bytes: 4 * vectors });
    rows
}

fn same_place(a: FloatData<'_>, b: FloatData<'_>) -> bool {
    match (a, b) {
        (FloatData::F32(a), FloatData::F32(b)) => std::ptr::eq(a, b),
        (FloatData::F16(a), FloatData::F16(b)) | (FloatData::Bf16(a), FloatData::Bf16(b)) => std::ptr::eq(a, b),
        (FloatData::I8 { values: a, .. }, FloatData::I8 { values: b, .. }) => std::ptr::eq(a, b),
        _ => false,
    }
}

fn row(name: String, matrix: &Matrix<'_>, trits: &mut Trits) -> Row {
    let shape = matrix.shape();
    let count = shape[0] * shape[1];
    let (kind, bytes) = match matrix {
        Matrix::Ternary(m) => {
            let mut row = vec![0; m.cols()];
            for r in 0..m.rows() {
                m.decode_row(r, &mut row);
                for trit in &row {
                    trits.0[(trit + 1) as usize] += 1;
                }
            }
            match m.rescale() {
                Rescale::Multiply(scale) => (format!("trits * {scale:.5}"), m.packed().len() + 4),
                Rescale::Divide(scale) => (format!("trits / {scale:.5}"), m.packed().len() + 4),
                Rescale::Groups { size, scales } => {
                    (format!("trits in groups of {size}"), m.packed().len() + 2 * scales.len())
                }
            }
        }
        Matrix::Float(m) => match m.data() {
            FloatData::F32(_) => ("F32".to_owned(), 4 * count),
            FloatData::F16(_) => ("F16".to_owned(), 2 * count),
            FloatData::Bf16(_) => ("BF16".to_owned(), 2 * count),
            FloatData::I8 { .. } => ("I8 by row".to_owned(), count + 4 * shape[0]),
        },
    };
    Row { name, kind, shape, bytes }
}
