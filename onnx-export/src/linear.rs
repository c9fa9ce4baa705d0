//! Projections: the exact int8 `BitLinear` in four forms of weights, and plain float ones.
//!
//! All forms give the same sums. Integers below 2^24 are exact in single precision too, which is what the two forms
//! without integer products build on.

use trion_core::{Linear, Matrix, Rescale, TernaryMatrix};

use crate::error::{Error, Result};
use crate::export::WeightFormat;
use crate::graph::{Attribute, Graph};
use crate::names;
use crate::proto::tensor_proto::DataType;
use crate::weights::{FloatFormat, NBITS_BLOCK, NBITS_COLS, Turned, write_floats, write_nbits};

/// Columns up to which sums of 127 each stay below 2^24.
const EXACT_COLS: usize = (1 << 24) / 128;

/// Activations as a ternary matrix reads them.
#[derive(Clone)]
pub(crate) struct Quantized {
    /// What goes into the product.
    values: String,
    /// s `[batch, sequence, 1]`, or `[batch, groups, sequence, 1]`.
    scale: String,
}

/// Writes projections into a graph.
pub(crate) struct Linears {
    pub(crate) weights: WeightFormat,
}

impl Linears {
    /// Quantises `x` `[batch, sequence, cols]` for a matrix, in the module `module`:
    ///
    /// ```text
    /// s = 127 / max(max |x|, 1e-5)        over a token's columns, or over each group of them
    /// q = clip(round(x s), -128, 127)     half to even
    /// ```
    ///
    /// Integers go on as `uint8`, 128 higher: products of those with `int8` are what runtimes are fast at.
    pub(crate) fn quantize(&self, graph: &mut Graph, module: &str, matrix: &TernaryMatrix<'_>, x: &str) -> Quantized {
        let part = |name: &str| format!("{module}/{name}");
        let x = match group(matrix) {
            None => x.to_owned(),
            // [batch, sequence, cols] to [batch, groups, sequence, group], zeros after the last column.
            Some((size, groups)) => {
                let mut x = x.to_owned();
                let missing = groups * size - matrix.cols();
                if missing > 0 {
                    let pads = graph.ints(&[0, 0, 0, 0, 0, missing as i64]);
                    x = graph.node("Pad", &[&x, &pads], &part("padded"));
                }
                let shape = graph.ints(&[0, 0, groups as i64, size as i64]);
                x = graph.node("Reshape", &[&x, &shape], &part("groups"));
                let order = [("perm", Attribute::Ints(vec![0, 2, 1, 3]))];
                graph.node_with("Transpose", &[&x], &part("group_major"), &order)
            }
        };
        let [smallest, top, low, high] = [1e-5, 127.0, -128.0, 127.0].map(|value| graph.float(value));
        let last = graph.ints(&[-1]);
        let magnitude = graph.node("Abs", &[&x], &part("magnitude"));
        let largest =
            graph.node_with("ReduceMax", &[&magnitude, &last], &part("largest"), &[("keepdims", Attribute::Int(1))]);
        let clamped = graph.node("Max", &[&largest, &smallest], &part("clamped"));
        let scale = graph.node("Div", &[&top, &clamped], &names::scale(module));
        let scaled = graph.node("Mul", &[&x, &scale], &part("scaled"));
        let rounded = graph.node("Round", &[&scaled], &part("rounded"));
        let quantized = names::quantized(module);
        let values = match self.weights {
            WeightFormat::Int2 | WeightFormat::Int8 => {
                let clipped = graph.node("Clip", &[&rounded, &low, &high], &part("clipped"));
                let offset = graph.float(128.0);
                let shifted = graph.node("Add", &[&clipped, &offset], &part("shifted"));
                graph.node_with("Cast", &[&shifted], &quantized, &[to(DataType::Uint8)])
            }
            WeightFormat::Float => graph.node("Clip", &[&rounded, &low, &high], &quantized),
            WeightFormat::Matmulnbits => {
                let clipped = graph.node("Clip", &[&rounded, &low, &high], &quantized);
                guard(graph, module, matrix.cols(), &clipped)
            }
        };
        Quantized { values, scale }
    }

    /// The product of a ternary matrix `[rows, cols]` with quantised activations, as floats `[batch, sequence, rows]`.
    pub(crate) fn ternary(
        &self,
        graph: &mut Graph,
        module: &str,
        matrix: &TernaryMatrix<'_>,
        x: &Quantized,
    ) -> Result<String> {
        let accumulators = names::accumulators(module);
        let sums = match self.weights {
            WeightFormat::Int2 | WeightFormat::Int8 => {
                let (shape, turned) = turned(matrix);
                let weight = format!("{module}.weight");
                let int8 = if self.weights == WeightFormat::Int2 {
                    let bytes = turned.bytes();
                    let int2 = graph
                        .tensor(&weight, DataType::Int2, &shape, bytes.len() as u64, |out| out.write_all(bytes))?;
                    graph.node_with("Cast", &[&int2], &format!("{module}/weight"), &[to(DataType::Int8)])
                } else {
                    let bytes = shape.iter().product::<usize>() as u64;
                    graph.tensor(&weight, DataType::Int8, &shape, bytes, |out| turned.write_i8(out))?
                };
                let zero = graph.byte(128);
                graph.node("MatMulInteger", &[&x.values, &int8, &zero], &accumulators);
                let sums = format!("{module}/sums");
                graph.node_with("Cast", &[&accumulators], &sums, &[to(DataType::Float)])
            }
            WeightFormat::Float => {
                exact_in_floats(module, matrix)?;
                let (shape, turned) = turned(matrix);
                let bytes = 4 * shape.iter().product::<usize>() as u64;
                let weight = graph
                    .tensor(&format!("{module}.weight"), DataType::Float, &shape, bytes, |out| turned.write_f32(out))?;
                graph.node("MatMul", &[&x.values, &weight], &accumulators)
            }
            WeightFormat::Matmulnbits => nbits(graph, module, matrix, &x.values)?,
        };
        rescale(graph, module, matrix, &sums, &x.scale)
    }

    /// A projection of `x` `[batch, sequence, cols]`, quantised before if it is ternary; or of `quantized`, which
    /// another projection made of the same input. Gives the output `[batch, sequence, rows]`, and what it read.
    pub(crate) fn linear(
        &self,
        graph: &mut Graph,
        module: &str,
        linear: &Linear<'_>,
        norm_eps: f32,
        x: &str,
        quantized: Option<&Quantized>,
    ) -> Result<(String, Option<Quantized>)> {
        let mut x = x.to_owned();
        if let Some(weights) = linear.norm {
            x = rms_norm(graph, &format!("{module}.rms_norm"), weights, norm_eps, &x)?;
        }
        match &linear.matrix {
            Matrix::Ternary(matrix) => {
                let quantized = match quantized {
                    Some(quantized) => quantized.clone(),
                    None => self.quantize(graph, module, matrix, &x),
                };
                Ok((self.ternary(graph, module, matrix, &quantized)?, Some(quantized)))
            }
            Matrix::Float(matrix) => {
                let (data, shape) = (matrix.data(), linear.matrix.shape());
                let format = FloatFormat::of(data);
                let weight = format!("{module}.weight");
                let bytes = format.bytes() * (shape[0] * shape[1]) as u64;
                graph.tensor(&weight, format.dtype(), &shape, bytes, |out| write_floats(data, shape, format, out))?;
                let scales = row_scales(graph, module, &linear.matrix)?;
                Ok((float_product(graph, module, &weight, format, scales.as_deref(), &x), None))
            }
            Matrix::Int6(_) => Err(Error::unsupported(module, INT6)),
        }
    }
}

/// Why a matrix of six bits a weight is not exported.
pub(crate) const INT6: &str =
    "has six bits a weight, which no operator of ONNX computes with; pack the model with int8";

/// `x / sqrt(mean(x^2) + eps) * weights` over the last axis.
pub(crate) fn rms_norm(graph: &mut Graph, module: &str, weights: &[f32], eps: f32, x: &str) -> Result<String> {
    let weight = graph.floats(&format!("{module}.weight"), &[weights.len()], weights)?;
    let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(eps))];
    Ok(graph.node_with("RMSNormalization", &[x, &weight], &names::output(module), &attributes))
}

/// The product of `x` `[batch, sequence, cols]` with a float tensor `[rows, cols]` of the graph, and a factor for each
/// row if there are `scales`.
pub(crate) fn float_product(
    graph: &mut Graph,
    module: &str,
    weight: &str,
    format: FloatFormat,
    scales: Option<&str>,
    x: &str,
) -> String {
    let part = |name: &str| format!("{module}/{name}");
    let single = to_single(graph, weight, format, &part("weight"));
    let order = [("perm", Attribute::Ints(vec![1, 0]))];
    let turned = graph.node_with("Transpose", &[&single], &part("turned"), &order);
    match scales {
        None => graph.node("MatMul", &[x, &turned], &names::output(module)),
        Some(scales) => {
            let sums = graph.node("MatMul", &[x, &turned], &part("sums"));
            graph.node("Mul", &[&sums, scales], &names::output(module))
        }
    }
}

/// A tensor as singles.
pub(crate) fn to_single(graph: &mut Graph, tensor: &str, format: FloatFormat, output: &str) -> String {
    match format {
        FloatFormat::F32 => tensor.to_owned(),
        _ => graph.node_with("Cast", &[tensor], output, &[to(DataType::Float)]),
    }
}

/// The factors of the rows of a matrix of bytes, as a tensor `[rows]`.
pub(crate) fn row_scales(graph: &mut Graph, module: &str, matrix: &Matrix<'_>) -> Result<Option<String>> {
    match matrix {
        Matrix::Float(matrix) => match matrix.data() {
            trion_core::FloatData::I8 { scales, .. } => {
                graph.floats(&format!("{module}.weight_scale"), &[scales.len()], scales).map(Some)
            }
            _ => Ok(None),
        },
        Matrix::Ternary(_) | Matrix::Int6(_) => Ok(None),
    }
}

/// The attribute of a Cast.
pub(crate) fn to(dtype: DataType) -> (&'static str, Attribute) {
    ("to", Attribute::Int(i64::from(i32::from(dtype))))
}

/// Columns of a group, and the number of groups.
pub(crate) fn group(matrix: &TernaryMatrix<'_>) -> Option<(usize, usize)> {
    match matrix.rescale() {
        Rescale::Groups { size, .. } => Some((size, matrix.cols().div_ceil(size))),
        Rescale::Multiply(_) | Rescale::Divide(_) => None,
    }
}

/// The scales of a matrix with groups, a row's side by side: `scales[row * groups + group]`, as half-precision bits.
pub(crate) fn group_scales(matrix: &TernaryMatrix<'_>) -> Vec<u16> {
    let groups = group(matrix).map_or(0, |(_, groups)| groups);
    (0..matrix.rows()).flat_map(|row| (0..groups).filter_map(move |group| matrix.group_scale(row, group))).collect()
}

/// Trits as the product wants them: `[cols, rows]`, or `[groups, group, rows]`.
fn turned(matrix: &TernaryMatrix<'_>) -> (Vec<usize>, Turned) {
    match group(matrix) {
        None => (vec![matrix.cols(), matrix.rows()], Turned::new(matrix, matrix.cols())),
        Some((size, groups)) => (vec![groups, size, matrix.rows()], Turned::new(matrix, groups * size)),
    }
}

/// From sums to floats: the same operations in the same order as Trion's (docs/numerics.md, Rescaling).
fn rescale(graph: &mut Graph, module: &str, matrix: &TernaryMatrix<'_>, sums: &str, s: &str) -> Result<String> {
    let part = |name: &str| format!("{module}/{name}");
    let (scale, output) = (format!("{module}.weight_scale"), names::output(module));
    Ok(match matrix.rescale() {
        Rescale::Multiply(m) => {
            let m = graph.floats(&scale, &[], &[m])?;
            let divided = graph.node("Div", &[sums, s], &part("divided"));
            graph.node("Mul", &[&divided, &m], &output)
        }
        Rescale::Divide(d) => {
            let d = graph.floats(&scale, &[], &[d])?;
            let divisor = graph.node("Mul", &[&d, s], &part("divisor"));
            graph.node("Div", &[sums, &divisor], &output)
        }
        Rescale::Groups { size, .. } => {
            let groups = matrix.cols().div_ceil(size);
            let by_row = group_scales(matrix);
            let bytes = 2 * by_row.len() as u64;
            let halves = graph.tensor(&scale, DataType::Float16, &[groups, 1, matrix.rows()], bytes, |out| {
                (0..groups).try_for_each(|group| {
                    by_row.iter().skip(group).step_by(groups).try_for_each(|bits| out.write_all(&bits.to_le_bytes()))
                })
            })?;
            let singles = graph.node_with("Cast", &[&halves], &part("weight_scale"), &[to(DataType::Float)]);
            let divided = graph.node("Div", &[sums, s], &part("divided"));
            let scaled = graph.node("Mul", &[&divided, &singles], &part("scaled_sums"));
            let axis = graph.ints(&[1]);
            graph.node_with("ReduceSum", &[&scaled, &axis], &output, &[("keepdims", Attribute::Int(0))])
        }
    })
}

/// `MatMulNBits` quantises its input by blocks of its own accord, and so rounds what is integer already. A guard of 127
/// in every block makes its factor 1, so that this changes nothing: `[batch, sequence, cols]` to `[batch, sequence,
/// blocks * 128]`.
fn guard(graph: &mut Graph, module: &str, cols: usize, x: &str) -> String {
    let part = |name: &str| format!("{module}/{name}");
    let blocks = cols.div_ceil(NBITS_COLS);
    let missing = blocks * NBITS_COLS - cols;
    let mut x = x.to_owned();
    if missing > 0 {
        let pads = graph.ints(&[0, 0, 0, 0, 0, missing as i64]);
        x = graph.node("Pad", &[&x, &pads], &part("padded"));
    }
    let shape = graph.ints(&[0, 0, blocks as i64, NBITS_COLS as i64]);
    let split = graph.node("Reshape", &[&x, &shape], &part("blocks"));
    let (pads, value) = (graph.ints(&[0, 0, 0, 0, 0, 0, 0, 1]), graph.float(127.0));
    let guarded = graph.node("Pad", &[&split, &pads, &value], &part("guarded"));
    let shape = graph.ints(&[0, 0, (blocks * NBITS_BLOCK) as i64]);
    graph.node("Reshape", &[&guarded, &shape], &part("guarded_row"))
}

/// Sums by ONNX Runtime's own operator for weights of few bits.
fn nbits(graph: &mut Graph, module: &str, matrix: &TernaryMatrix<'_>, x: &str) -> Result<String> {
    if group(matrix).is_some() {
        let message =
            "has scales for groups of columns, for which MatMulNBits has no exact form; int2 and int8 have one";
        return Err(Error::unsupported(module, message));
    }
    exact_in_floats(module, matrix)?;
    let (rows, blocks) = (matrix.rows(), matrix.cols().div_ceil(NBITS_COLS));
    let shape = [rows, blocks, NBITS_BLOCK / 4];
    let bytes = shape.iter().product::<usize>() as u64;
    let weight =
        graph.tensor(&format!("{module}.weight"), DataType::Uint8, &shape, bytes, |out| write_nbits(matrix, out))?;
    let ones = graph.floats(&format!("{module}.block_scale"), &[rows, blocks], &vec![1.0; rows * blocks])?;
    let accumulators = names::accumulators(module);
    let attributes = [
        ("K", Attribute::Int((blocks * NBITS_BLOCK) as i64)),
        ("N", Attribute::Int(rows as i64)),
        ("bits", Attribute::Int(2)),
        ("block_size", Attribute::Int(NBITS_BLOCK as i64)),
        ("accuracy_level", Attribute::Int(4)),
    ];
    graph.push_node("com.microsoft", "MatMulNBits", &[x, &weight, &ones], &[&accumulators], &attributes);
    Ok(accumulators)
}

/// Sums of a matrix with too many columns are not exact in single precision.
fn exact_in_floats(module: &str, matrix: &TernaryMatrix<'_>) -> Result<()> {
    if matrix.cols() <= EXACT_COLS {
        return Ok(());
    }
    let message =
        format!("has {} columns; sums of over {EXACT_COLS} are not exact in floats, use int2 or int8", matrix.cols());
    Err(Error::unsupported(module, message))
}
