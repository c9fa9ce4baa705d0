//! The whole decoder: ids in, logits out, keys and values in and out.

use trion_core::{Activation, Config, Layer, LayerNorm, Matrix, Model, Projection, Rescale};

use crate::error::{Error, Result};
use crate::export::{ExportOptions, HeadFormat};
use crate::graph::{Attribute, Dim, Graph};
use crate::linear::{
    INT6, Linears, Quantized, float_product, group, group_scales, rms_norm, row_scales, to, to_single,
};
use crate::names;
use crate::proto::tensor_proto::DataType;
use crate::weights::{FloatFormat, write_floats, write_trits};

const BATCH: Dim = Dim::Named("batch_size");
const SEQUENCE: Dim = Dim::Named("sequence_length");
const PAST: Dim = Dim::Named("past_sequence_length");
const TOTAL: Dim = Dim::Named("total_sequence_length");

/// What every block reads beside the residual stream.
struct Inputs {
    /// Which positions a position attends to `[batch, 1, sequence, total]`, as booleans.
    mask: String,
    /// Positions `[batch, sequence]`.
    positions: String,
    /// Tables of the rotary embedding `[max_position_embeddings, head_dim / 2]`.
    cos: String,
    sin: String,
}

/// Writes a model into an empty graph.
pub(crate) fn write_decoder(graph: &mut Graph, model: &Model<'_>, options: &ExportOptions) -> Result<()> {
    let config = model.config();
    let linears = Linears { weights: options.weights };
    let ids = graph.input("input_ids", DataType::Int64, &[BATCH, SEQUENCE]);
    let inputs = inputs(graph, config, options.cache)?;
    let (table, mut hidden) = embedding(graph, model, options.head, &ids)?;
    for (n, layer) in model.layers().iter().enumerate() {
        let block = Block { config, n, layer, linears: &linears, cache: options.cache };
        let attended = block.attention(graph, &inputs, &hidden)?;
        hidden = block.mlp(graph, &attended)?;
    }
    let normed = rms_norm(graph, names::NORM, model.norm(), config.rms_norm_eps, &hidden)?;
    head(graph, model, options, &linears, table, &normed)?;
    let vocab_size = Dim::Fixed(config.vocab_size);
    graph.output(names::LOGITS, DataType::Float, &[BATCH, SEQUENCE, vocab_size]);
    if options.cache {
        for (n, what) in (0..config.num_hidden_layers).flat_map(|n| [(n, "key"), (n, "value")]) {
            graph.output(&names::present(n, what), DataType::Float, &cache_shape(config, TOTAL));
        }
    }
    Ok(())
}

fn cache_shape(config: &Config, length: Dim) -> [Dim; 4] {
    [BATCH, Dim::Fixed(config.num_key_value_heads), length, Dim::Fixed(config.head_dim)]
}

/// Inputs, mask, positions and rotary tables.
fn inputs(graph: &mut Graph, config: &Config, cache: bool) -> Result<Inputs> {
    let total = if cache { TOTAL } else { SEQUENCE };
    let attention_mask = graph.input("attention_mask", DataType::Int64, &[BATCH, total]);
    let positions = if cache {
        let positions = graph.input("position_ids", DataType::Int64, &[BATCH, SEQUENCE]);
        for (n, what) in (0..config.num_hidden_layers).flat_map(|n| [(n, "key"), (n, "value")]) {
            graph.input(&names::past(n, what), DataType::Float, &cache_shape(config, PAST));
        }
        positions
    } else {
        // A position is the number of tokens before it; padding counts none.
        let [axis, one, zero] = [1, 1, 0].map(|value| graph.int(value));
        let count = graph.node("CumSum", &[&attention_mask, &axis], "positions/count");
        let before = graph.node("Sub", &[&count, &one], "positions/before");
        graph.node("Max", &[&before, &zero], "positions")
    };

    // A position sees those up to its own, without padding. Padding sees itself: a row of a softmax must not be empty.
    let length = |graph: &mut Graph, tensor: &str, name: &str| {
        let axes = [("start", Attribute::Int(1)), ("end", Attribute::Int(2))];
        let shape = graph.node_with("Shape", &[tensor], &format!("mask/{name}_shape"), &axes);
        graph.node("Squeeze", &[&shape], &format!("mask/{name}"))
    };
    let total = length(graph, &attention_mask, "total_length");
    let sequence = length(graph, "input_ids", "sequence_length");
    let [zero, one] = [0, 1].map(|value| graph.int(value));
    let past = graph.node("Sub", &[&total, &sequence], "mask/past_length");
    let seen = graph.node("Range", &[&zero, &total, &one], "mask/keys");
    let queries = graph.node("Range", &[&past, &total, &one], "mask/query_list");
    let [column, heads] = [&[1][..], &[1, 2]].map(|axes| graph.ints(axes));
    let seeing = graph.node("Unsqueeze", &[&queries, &column], "mask/queries");
    let causal = graph.node("LessOrEqual", &[&seen, &seeing], "mask/causal");
    let own = graph.node("Equal", &[&seen, &seeing], "mask/own");
    let is_token = graph.node_with("Cast", &[&attention_mask], "mask/is_token", &[to(DataType::Bool)]);
    let tokens = graph.node("Unsqueeze", &[&is_token, &heads], "mask/tokens");
    let some = graph.node("Or", &[&tokens, &own], "mask/tokens_or_own");
    let mask = graph.node("And", &[&some, &causal], "mask");

    let half = config.head_dim / 2;
    let shape = [config.max_position_embeddings, half];
    let bytes = 4 * shape.iter().product::<usize>() as u64;
    let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
    let mut table = |name: &str, is_cos: bool| {
        graph.tensor(name, DataType::Float, &shape, bytes, |out| {
            for position in 0..shape[0] {
                trion_core::numeric::rotary_tables(config.rope_theta, config.head_dim, position, &mut cos, &mut sin);
                let row = if is_cos { &cos } else { &sin };
                out.write_all(&row.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
            }
            Ok(())
        })
    };
    let (cos, sin) = (table("rotary_embedding.cos", true)?, table("rotary_embedding.sin", false)?);
    Ok(Inputs { mask, positions, cos, sin })
}

/// The float table of an embedding, which a tied head reads too.
struct Table {
    weight: String,
    format: FloatFormat,
    scales: Option<String>,
}

/// Writes a float embedding or head `[vocab_size, hidden_size]`; `None` for a ternary one.
fn table(graph: &mut Graph, module: &str, matrix: &Matrix<'_>, head: HeadFormat) -> Result<Option<Table>> {
    let format = match (matrix, head) {
        (Matrix::Ternary(_), HeadFormat::Keep) => return Ok(None),
        (Matrix::Ternary(_), _) => {
            return Err(Error::unsupported(module, "is ternary, and has no other number format than to keep it"));
        }
        (Matrix::Int6(_), _) => return Err(Error::unsupported(module, INT6)),
        (Matrix::Float(matrix), HeadFormat::Keep) => FloatFormat::of(matrix.data()),
        (_, HeadFormat::F32) => FloatFormat::F32,
        (_, HeadFormat::F16) => FloatFormat::F16,
        (_, HeadFormat::Bf16) => FloatFormat::Bf16,
    };
    let Matrix::Float(floats) = matrix else { return Ok(None) };
    let (weight, shape) = (format!("{module}.weight"), matrix.shape());
    let bytes = format.bytes() * (shape[0] * shape[1]) as u64;
    graph.tensor(&weight, format.dtype(), &shape, bytes, |out| write_floats(floats.data(), shape, format, out))?;
    let scales = if format == FloatFormat::I8 { row_scales(graph, module, matrix)? } else { None };
    Ok(Some(Table { weight, format, scales }))
}

/// Rows of the embedding for `ids`, and its table if it is one of floats.
fn embedding(graph: &mut Graph, model: &Model<'_>, head: HeadFormat, ids: &str) -> Result<(Option<Table>, String)> {
    let module = names::EMBEDDING;
    let (part, output) = (|name: &str| format!("{module}/{name}"), names::output(module));
    if let Some(table) = table(graph, module, model.embedding(), head)? {
        match (&table.scales, table.format) {
            (None, FloatFormat::F32) => graph.node("Gather", &[&table.weight, ids], &output),
            (None, format) => {
                let rows = graph.node("Gather", &[&table.weight, ids], &part("rows"));
                to_single(graph, &rows, format, &output)
            }
            (Some(scales), format) => {
                let rows = graph.node("Gather", &[&table.weight, ids], &part("rows"));
                let singles = to_single(graph, &rows, format, &part("singles"));
                let axis = graph.ints(&[-1]);
                let column = graph.node("Unsqueeze", &[scales, &axis], &part("scale_column"));
                let factors = graph.node("Gather", &[&column, ids], &part("row_scales"));
                graph.node("Mul", &[&singles, &factors], &output)
            }
        };
        return Ok((Some(table), output));
    }
    let Matrix::Ternary(matrix) = model.embedding() else { return Ok((None, output)) };
    // [vocab_size, hidden_size], or [vocab_size, groups, group] with zeros after the last column.
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (shape, width) = match group(matrix) {
        None => (vec![rows, cols], cols),
        Some((size, groups)) => (vec![rows, groups, size], groups * size),
    };
    let bytes = (rows * width).div_ceil(4) as u64;
    let weight = format!("{module}.weight");
    graph.tensor(&weight, DataType::Int2, &shape, bytes, |out| write_trits(matrix, width, out))?;
    let int8 = graph.node_with("Cast", &[&weight], &part("weight"), &[to(DataType::Int8)]);
    let trits = graph.node("Gather", &[&int8, ids], &part("rows"));
    let singles = graph.node_with("Cast", &[&trits], &part("singles"), &[to(DataType::Float)]);
    let scale = format!("{module}.weight_scale");
    match matrix.rescale() {
        Rescale::Groups { size, .. } => {
            let groups = cols.div_ceil(size);
            let halves = group_scales(matrix);
            let bytes = 2 * halves.len() as u64;
            graph.tensor(&scale, DataType::Float16, &[rows, groups, 1], bytes, |out| {
                halves.iter().try_for_each(|bits| out.write_all(&bits.to_le_bytes()))
            })?;
            let factors = graph.node("Gather", &[&scale, ids], &part("row_scales"));
            let factors = graph.node_with("Cast", &[&factors], &part("scales"), &[to(DataType::Float)]);
            let scaled = graph.node("Mul", &[&singles, &factors], &part("scaled"));
            let shape = graph.ints(&[0, 0, -1]);
            let row = graph.node("Reshape", &[&scaled, &shape], &part("padded"));
            let [from, to, axis] = [0, cols as i64, 2].map(|value| graph.ints(&[value]));
            graph.node("Slice", &[&row, &from, &to, &axis], &output);
        }
        Rescale::Divide(d) => {
            let m = graph.floats(&scale, &[], &[1.0 / d])?;
            graph.node("Mul", &[&singles, &m], &output);
        }
        Rescale::Multiply(m) => {
            let m = graph.floats(&scale, &[], &[m])?;
            graph.node("Mul", &[&singles, &m], &output);
        }
    }
    Ok((None, output))
}

/// The output head; a tied one of floats reads the embedding's table.
fn head(
    graph: &mut Graph,
    model: &Model<'_>,
    options: &ExportOptions,
    linears: &Linears,
    embedding: Option<Table>,
    x: &str,
) -> Result<()> {
    let module = names::HEAD;
    let table = match embedding {
        Some(table) if model.is_tied() => Some(table),
        _ => table(graph, module, model.head(), options.head)?,
    };
    match (table, model.head()) {
        (Some(table), _) => {
            float_product(graph, module, &table.weight, table.format, table.scales.as_deref(), x);
        }
        (None, Matrix::Ternary(matrix)) => {
            let quantized = linears.quantize(graph, module, matrix, x);
            linears.ternary(graph, module, matrix, &quantized)?;
        }
        (None, Matrix::Float(_) | Matrix::Int6(_)) => {}
    }
    Ok(())
}

/// One block.
struct Block<'a> {
    config: &'a Config,
    n: usize,
    layer: &'a Layer<'a>,
    linears: &'a Linears,
    cache: bool,
}

impl Block<'_> {
    /// `h + Wo . subnorm(attention(Wq x, Wk x, Wv x))`, x = norm(h).
    fn attention(&self, graph: &mut Graph, inputs: &Inputs, hidden: &str) -> Result<String> {
        let (n, config) = (self.n, self.config);
        let x = self.norm(graph, LayerNorm::Attention, hidden)?;
        let mut shared = None;
        let mut project = |graph: &mut Graph, projection| self.project(graph, projection, &x, &mut shared);
        let query = project(graph, Projection::Query)?;
        let key = project(graph, Projection::Key)?;
        let value = project(graph, Projection::Value)?;
        let query = self.rotate(graph, inputs, &query, LayerNorm::Query, config.num_attention_heads)?;
        let key = self.rotate(graph, inputs, &key, LayerNorm::Key, config.num_key_value_heads)?;
        let attended = format!("{}.self_attn/attended", names::layer(n));
        let heads = [
            ("q_num_heads", Attribute::Int(config.num_attention_heads as i64)),
            ("kv_num_heads", Attribute::Int(config.num_key_value_heads as i64)),
        ];
        let [past_key, past_value] = ["key", "value"].map(|what| names::past(n, what));
        let [present_key, present_value] = ["key", "value"].map(|what| names::present(n, what));
        if self.cache {
            let inputs = [&query, &key, &value, &inputs.mask, &past_key, &past_value].map(String::as_str);
            graph.push_node("", "Attention", &inputs, &[&attended, &present_key, &present_value], &heads);
        } else {
            graph.push_node("", "Attention", &[&query, &key, &value, &inputs.mask], &[&attended], &heads);
        }
        let attended = self.norm(graph, LayerNorm::AttentionSub, &attended)?;
        let output = self.project(graph, Projection::Output, &attended, &mut None)?;
        Ok(graph.node("Add", &[hidden, &output], &format!("{}.self_attn/residual", names::layer(n))))
    }

    /// `h + Wd . subnorm(act(Wg x) * (Wu x))`, x = norm(h).
    fn mlp(&self, graph: &mut Graph, hidden: &str) -> Result<String> {
        let module = format!("{}.mlp", names::layer(self.n));
        let part = |name: &str| format!("{module}/{name}");
        let x = self.norm(graph, LayerNorm::Mlp, hidden)?;
        let mut shared = None;
        let gate = self.project(graph, Projection::Gate, &x, &mut shared)?;
        let up = self.project(graph, Projection::Up, &x, &mut shared)?;
        let activated = match self.config.hidden_act {
            Activation::Relu2 => {
                let positive = graph.node("Relu", &[&gate], &part("positive"));
                graph.node("Mul", &[&positive, &positive], &part("activated"))
            }
            Activation::Silu => {
                let sigmoid = graph.node("Sigmoid", &[&gate], &part("sigmoid"));
                graph.node("Mul", &[&gate, &sigmoid], &part("activated"))
            }
        };
        let product = graph.node("Mul", &[&activated, &up], &part("product"));
        let product = self.norm(graph, LayerNorm::MlpSub, &product)?;
        let down = self.project(graph, Projection::Down, &product, &mut None)?;
        Ok(graph.node("Add", &[hidden, &down], &names::output(&names::layer(self.n))))
    }

    /// A norm of the block over the whole row; `x` itself where the model has none.
    fn norm(&self, graph: &mut Graph, norm: LayerNorm, x: &str) -> Result<String> {
        match self.layer.norm(norm) {
            None => Ok(x.to_owned()),
            Some(weights) => rms_norm(graph, &names::norm(self.n, norm), weights, self.config.rms_norm_eps, x),
        }
    }

    /// A projection of `x`, or of what a projection before it made of the same `x`.
    fn project(
        &self,
        graph: &mut Graph,
        projection: Projection,
        x: &str,
        shared: &mut Option<Quantized>,
    ) -> Result<String> {
        let known = if names::quantized_by(self.layer, projection) == projection { None } else { shared.as_ref() };
        let module = names::projection(self.n, projection);
        let linear = self.layer.projection(projection);
        let (output, quantized) =
            self.linears.linear(graph, &module, linear, self.config.projection_norm_eps, x, known)?;
        if projection == Projection::Query || projection == Projection::Gate {
            *shared = quantized;
        }
        Ok(output)
    }

    /// Queries or keys `[batch, sequence, heads * head_dim]`, normed head by head where the model does that, and
    /// rotated.
    fn rotate(&self, graph: &mut Graph, inputs: &Inputs, x: &str, norm: LayerNorm, heads: usize) -> Result<String> {
        let module = names::norm(self.n, norm);
        let mut x = x.to_owned();
        if self.layer.norm(norm).is_some() {
            let split = graph.ints(&[0, 0, heads as i64, self.config.head_dim as i64]);
            let row = graph.ints(&[0, 0, (heads * self.config.head_dim) as i64]);
            let by_head = graph.node("Reshape", &[&x, &split], &format!("{module}/heads"));
            let normed = self.norm(graph, norm, &by_head)?;
            x = graph.node("Reshape", &[&normed, &row], &format!("{module}/row"));
        }
        let rotated = match norm {
            LayerNorm::Query => "query",
            _ => "key",
        };
        let output = format!("{}.self_attn/rotated_{rotated}", names::layer(self.n));
        let tables = [&x, &inputs.cos, &inputs.sin, &inputs.positions].map(String::as_str);
        let heads = [("num_heads", Attribute::Int(heads as i64))];
        Ok(graph.node_with("RotaryEmbedding", &tables, &output, &heads))
    }
}
