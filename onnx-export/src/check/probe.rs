//! An exported graph with probes: inner tensors that become outputs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use trion_core::{Matrix, Projection, TernaryMatrix};
use trion_engine::Model;

use crate::error::{Error, Result};
use crate::export::GRAPH_FILE;
use crate::linear::group;
use crate::names;
use crate::proto::{ModelProto, ValueInfoProto};
use crate::runtime::{Graph, Numbers, Runtime, Tensor};

/// A ternary matrix of the model, as the graph knows it.
pub(super) struct Module<'m> {
    /// `model.layers.3.mlp.up_proj`, or `lm_head`.
    pub(super) name: String,
    /// The module that quantises its input: itself, or one with the same input.
    pub(super) quantizer: String,
    pub(super) matrix: TernaryMatrix<'m>,
}

impl<'m> Module<'m> {
    /// The module of a projection, if it is ternary.
    pub(super) fn of_projection(model: &'m Model, layer: usize, projection: Projection) -> Option<Self> {
        let weights = &model.core().layers()[layer];
        let quantizer = names::projection(layer, names::quantized_by(weights, projection));
        match weights.projection(projection).matrix {
            Matrix::Ternary(matrix) => Some(Module { name: names::projection(layer, projection), quantizer, matrix }),
            Matrix::Float(_) | Matrix::Int6(_) => None,
        }
    }

    /// The module of the head, if it is ternary.
    pub(super) fn of_head(model: &'m Model) -> Option<Self> {
        match *model.core().head() {
            Matrix::Ternary(matrix) => {
                Some(Module { name: names::HEAD.to_owned(), quantizer: names::HEAD.to_owned(), matrix })
            }
            Matrix::Float(_) | Matrix::Int6(_) => None,
        }
    }

    /// Groups of columns with scales of their own, and columns of each in the graph.
    fn groups(&self) -> (usize, usize) {
        group(&self.matrix).map_or((1, self.matrix.cols()), |(size, groups)| (groups, size))
    }
}

/// The graph of an export, loaded twice: with probes, and as it is.
pub(super) struct Probed {
    /// With probes.
    pub(super) graph: Graph,
    /// As it is, for measuring its speed.
    pub(super) plain: Graph,
    /// Whether keys and values go in and out.
    pub(super) cache: bool,
}

impl Probed {
    /// Reads the graph of the export in `directory`, and loads it.
    ///
    /// # Errors
    /// [`Error::Graph`] if it is none, or lacks a tensor that the model asks for; [`Error::Runtime`] if it does not
    /// load.
    pub(super) fn open(model: &Model, directory: &Path, runtime: &Runtime, threads: usize) -> Result<Self> {
        let file = directory.join(GRAPH_FILE);
        let refused = |message: String| Error::Graph { file: file.clone(), message };
        let bytes = fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let mut proto = ModelProto::decode(&*bytes).map_err(|e| refused(format!("is no ONNX model: {e}")))?;
        let Some(graph) = &mut proto.graph else { return Err(refused("has no graph".to_owned())) };
        let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
        let cache = inputs.contains(names::past(0, "key").as_str());
        let known: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let mut probes = Vec::new();
        for name in probes_of(model) {
            if !known.contains(name.as_str()) {
                return Err(refused(format!(
                    "computes no tensor `{name}`, expected one as trion-onnx export names it"
                )));
            }
            probes.push(ValueInfoProto { name: Some(name), ..ValueInfoProto::default() });
        }
        let expected = [names::LOGITS.to_owned()].into_iter().chain(if cache { presents(model) } else { Vec::new() });
        for name in expected {
            if !graph.output.iter().any(|output| output.name() == name) {
                return Err(refused(format!("has no output `{name}`")));
            }
        }
        graph.output.extend(probes);
        let folder = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let plain = runtime.graph(&bytes, &folder, threads)?;
        drop(bytes);
        Ok(Probed { graph: runtime.graph(&proto.encode_to_vec(), &folder, threads)?, plain, cache })
    }
}

/// The tensors that are compared, beside the logits.
fn probes_of(model: &Model) -> Vec<String> {
    let mut probes = vec![names::output(names::EMBEDDING)];
    let layers = 0..model.config().num_hidden_layers;
    probes.extend(layers.clone().map(|layer| names::output(&names::layer(layer))));
    let projections = layers.flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)));
    let modules = projections.filter_map(|(layer, projection)| Module::of_projection(model, layer, projection));
    for module in modules.chain(Module::of_head(model)) {
        probes.push(names::accumulators(&module.name));
        // The head's output is the logits, which go out as it is.
        if module.name != names::HEAD {
            probes.push(names::output(&module.name));
        }
        if module.quantizer == module.name {
            probes.push(names::quantized(&module.name));
            probes.push(names::scale(&module.name));
        }
    }
    probes
}

/// Names of the keys and values that go out, in pairs.
fn presents(model: &Model) -> Vec<String> {
    let layers = 0..model.config().num_hidden_layers;
    layers.flat_map(|layer| [names::present(layer, "key"), names::present(layer, "value")]).collect()
}

/// Several sequences on their way through a graph, padded on the left to one length.
pub(super) struct Sequences<'a> {
    model: &'a Model,
    cache: bool,
    /// Padding before each sequence.
    pub(super) padding: Vec<usize>,
    /// Positions that the cache holds, padding included.
    past: usize,
    /// Keys and values, by name of the output.
    state: Vec<(String, Tensor)>,
}

impl<'a> Sequences<'a> {
    /// Sequences whose first pass has these lengths.
    pub(super) fn new(model: &'a Model, cache: bool, lengths: &[usize]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let padding = lengths.iter().map(|length| longest - length).collect();
        Sequences { model, cache, padding, past: 0, state: Vec::new() }
    }

    /// The inputs of the next pass over `tokens`, one row for each sequence; those of the first pass are as long as was
    /// said, and all of a later one are of one length.
    pub(super) fn inputs(&mut self, tokens: &[&[u32]]) -> Result<Vec<(String, Tensor)>> {
        let batch = tokens.len();
        let sequence = tokens.iter().map(|row| row.len()).max().unwrap_or(0);
        let total = self.past + sequence;
        let (mut ids, mut mask, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (row, padding) in tokens.iter().zip(&self.padding) {
            ids.extend(std::iter::repeat_n(0, sequence - row.len()));
            ids.extend(row.iter().map(|token| i64::from(*token)));
            mask.extend((0..total).map(|at| i64::from(at >= *padding)));
            positions.extend((self.past..total).map(|at| at.saturating_sub(*padding) as i64));
        }
        let mut inputs = vec![
            ("input_ids".to_owned(), Tensor::i64(&[batch, sequence], ids)?),
            ("attention_mask".to_owned(), Tensor::i64(&[batch, total], mask)?),
        ];
        if self.cache {
            inputs.push(("position_ids".to_owned(), Tensor::i64(&[batch, sequence], positions)?));
            let config = self.model.config();
            let empty = [batch, config.num_key_value_heads, 0, config.head_dim];
            let mut state = std::mem::take(&mut self.state).into_iter();
            for layer in 0..config.num_hidden_layers {
                for what in ["key", "value"] {
                    let tensor = match state.next() {
                        Some((_, tensor)) => tensor,
                        None => Tensor::f32(&empty, Vec::new())?,
                    };
                    inputs.push((names::past(layer, what), tensor));
                }
            }
        }
        self.past = total;
        Ok(inputs)
    }

    /// Keeps the keys and values of a pass for the next one.
    pub(super) fn keep(&mut self, outputs: &mut HashMap<String, Tensor>) -> Result<()> {
        if self.cache {
            for name in presents(self.model) {
                self.state.push((name.clone(), take(outputs, &name)?));
            }
        }
        Ok(())
    }
}

/// An output that the graph was found to have.
fn take(outputs: &mut HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    outputs.remove(name).ok_or_else(|| Error::Runtime(format!("ONNX Runtime gave no output `{name}`")))
}

/// The outputs of a pass over `[batch, sequence]` tokens.
pub(super) struct Pass {
    pub(super) batch: usize,
    pub(super) sequence: usize,
    pub(super) outputs: HashMap<String, Tensor>,
}

impl Pass {
    /// All logits `[batch, sequence, vocab_size]`.
    pub(super) fn logits(&self) -> Result<&[f32]> {
        let logits = self.outputs.get(names::LOGITS).map(Tensor::singles).transpose()?;
        logits.ok_or_else(|| Error::Runtime(format!("ONNX Runtime gave no output `{}`", names::LOGITS)))
    }

    /// A tensor, which has `count` numbers.
    fn numbers(&self, name: &str, count: usize) -> Result<Numbers<'_>> {
        let tensor = self.outputs.get(name).ok_or_else(|| Error::Runtime(format!("there is no output `{name}`")))?;
        let numbers = tensor.numbers()?;
        if numbers.len() != count {
            return Err(Error::Runtime(format!(
                "`{name}` has shape {:?}, {} numbers; expected {count} for {} x {} tokens",
                tensor.shape(),
                numbers.len(),
                self.batch,
                self.sequence
            )));
        }
        Ok(numbers)
    }

    /// The `width` singles of one token of a tensor `[batch, sequence, width]`.
    pub(super) fn row(&self, name: &str, width: usize, row: usize, at: usize) -> Result<&[f32]> {
        match self.numbers(name, self.batch * self.sequence * width)? {
            Numbers::F32(values) => Ok(&values[(row * self.sequence + at) * width..][..width]),
            other => Err(Error::Runtime(format!("`{name}` has {other:.0?}, expected singles"))),
        }
    }

    /// Numbers of one token of a tensor `[batch, sequence, width]` or `[batch, groups, sequence, width]`, group after
    /// group.
    fn token(&self, name: &str, groups: usize, width: usize, row: usize, at: usize) -> Result<Vec<f64>> {
        let numbers = self.numbers(name, self.batch * groups * self.sequence * width)?;
        let mut token = Vec::with_capacity(groups * width);
        for group in 0..groups {
            let range = ((row * groups + group) * self.sequence + at) * width..;
            match numbers {
                Numbers::F32(values) => token.extend(values[range][..width].iter().map(|v| f64::from(*v))),
                Numbers::I32(values) => token.extend(values[range][..width].iter().map(|v| f64::from(*v))),
                Numbers::I8(values) => token.extend(values[range][..width].iter().map(|v| f64::from(*v))),
                Numbers::U8(values) => token.extend(values[range][..width].iter().map(|v| f64::from(*v) - 128.0)),
            }
        }
        Ok(token)
    }

    /// Quantised activations of one token, `[cols]`.
    pub(super) fn quantized(&self, module: &Module<'_>, row: usize, at: usize) -> Result<Vec<i8>> {
        let (groups, width) = module.groups();
        let name = names::quantized(&module.quantizer);
        let mut values = self.token(&name, groups, width, row, at)?;
        values.truncate(module.matrix.cols());
        let integer = |value: f64| {
            let integer = value as i8;
            if f64::from(integer) == value {
                Ok(integer)
            } else {
                Err(Error::Runtime(format!("`{name}` has the number {value}, expected integers from -128 to 127")))
            }
        };
        values.into_iter().map(integer).collect()
    }

    /// The scales that they were quantised with, one for each group.
    pub(super) fn scales(&self, module: &Module<'_>, row: usize, at: usize) -> Result<Vec<f64>> {
        self.token(&names::scale(&module.quantizer), module.groups().0, 1, row, at)
    }

    /// Accumulators of one token, `[groups, rows]`.
    pub(super) fn accumulators(&self, module: &Module<'_>, row: usize, at: usize) -> Result<Vec<f64>> {
        self.token(&names::accumulators(&module.name), module.groups().0, module.matrix.rows(), row, at)
    }
}

/// Runs the next pass over some tokens of each sequence.
pub(super) fn pass(graph: &mut Graph, sequences: &mut Sequences<'_>, tokens: &[&[u32]]) -> Result<Pass> {
    let inputs = sequences.inputs(tokens)?;
    let sequence = tokens.iter().map(|row| row.len()).max().unwrap_or(0);
    let mut outputs = graph.run(inputs)?;
    sequences.keep(&mut outputs)?;
    Ok(Pass { batch: tokens.len(), sequence, outputs })
}
