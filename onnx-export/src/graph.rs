//! A graph under construction: nodes one after another, and tensors that go to a file as they come.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::proto::tensor_proto::{DataLocation, DataType};
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{
    AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, type_proto,
};

/// Tensors begin at multiples of this in the data file.
const ALIGNMENT: u64 = 64;

/// A dimension of an input or output: a number, or a name for what a run decides.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim {
    Fixed(usize),
    Named(&'static str),
}

/// An attribute of a node.
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
}

/// Nodes, initializers, inputs and outputs, each in order.
pub(crate) struct Graph {
    graph: GraphProto,
    /// Constants that are there: they are named by their value.
    constants: HashSet<String>,
    data: DataFile,
}

/// The file that tensors go to.
struct DataFile {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
}

impl Graph {
    /// An empty graph, with its tensors in a new file `data`.
    pub(crate) fn new(name: &str, data: &Path) -> Result<Self> {
        let file = File::create_new(data).map_err(|e| Error::io(data, e))?;
        Ok(Graph {
            graph: GraphProto { name: Some(name.to_owned()), ..GraphProto::default() },
            constants: HashSet::new(),
            data: DataFile { path: data.to_owned(), file: BufWriter::new(file), length: 0 },
        })
    }

    /// An input of the graph; gives its name.
    pub(crate) fn input(&mut self, name: &str, dtype: DataType, shape: &[Dim]) -> String {
        self.graph.input.push(value_info(name, dtype, Some(shape)));
        name.to_owned()
    }

    /// Makes a tensor an output of the graph.
    pub(crate) fn output(&mut self, name: &str, dtype: DataType, shape: &[Dim]) {
        self.graph.output.push(value_info(name, dtype, Some(shape)));
    }

    /// A node with one output, which it is named after; gives that name.
    pub(crate) fn node(&mut self, operator: &str, inputs: &[&str], output: &str) -> String {
        self.node_with(operator, inputs, output, &[])
    }

    /// [`Graph::node`] with attributes.
    pub(crate) fn node_with(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, Attribute)],
    ) -> String {
        self.push_node("", operator, inputs, &[output], attributes);
        output.to_owned()
    }

    /// A node of any domain, with any number of outputs.
    pub(crate) fn push_node(
        &mut self,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.graph.node.push(NodeProto {
            name: Some(format!("{}:{operator}", outputs[0])),
            op_type: Some(operator.to_owned()),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
            input: strings(inputs),
            output: strings(outputs),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..NodeProto::default()
        });
    }

    /// A constant number; gives its name.
    pub(crate) fn float(&mut self, value: f32) -> String {
        self.constant(format!("constants/{value:?}"), DataType::Float, &[], &value.to_le_bytes())
    }

    /// A constant byte.
    pub(crate) fn byte(&mut self, value: u8) -> String {
        self.constant(format!("constants/uint8_{value}"), DataType::Uint8, &[], &[value])
    }

    /// A constant integer.
    pub(crate) fn int(&mut self, value: i64) -> String {
        self.constant(format!("constants/{value}"), DataType::Int64, &[], &value.to_le_bytes())
    }

    /// A constant list of integers: axes, shapes.
    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(format!("constants/{values:?}"), DataType::Int64, &[values.len()], &bytes)
    }

    /// A constant in the graph itself, unless one of that name is there.
    fn constant(&mut self, name: String, dtype: DataType, shape: &[usize], bytes: &[u8]) -> String {
        if self.constants.insert(name.clone()) {
            let raw_data = Some(bytes.to_vec());
            self.graph.initializer.push(TensorProto { raw_data, ..tensor(&name, dtype, shape) });
        }
        name
    }

    /// A tensor whose bytes `write` gives, of which there must be `bytes`; gives its name.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dtype: DataType,
        shape: &[usize],
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<String> {
        let offset = self.data.append(bytes, write)?;
        let entry = |key: &str, value: u64| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value.to_string()),
        };
        self.graph.initializer.push(TensorProto {
            data_location: Some(DataLocation::External.into()),
            external_data: vec![entry("offset", offset), entry("length", bytes)],
            ..tensor(name, dtype, shape)
        });
        Ok(name.to_owned())
    }

    /// A vector or table of singles.
    pub(crate) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<String> {
        let bytes = 4 * values.len() as u64;
        self.tensor(name, DataType::Float, shape, bytes, |out| {
            values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
        })
    }

    /// The graph. Tensors of together up to `inline` bytes move from the data file, which is removed then, into it.
    pub(crate) fn finish(mut self, inline: u64) -> Result<GraphProto> {
        let path = self.data.path;
        self.data.file.flush().map_err(|e| Error::io(&path, e))?;
        let bytes =
            if self.data.length <= inline { Some(fs::read(&path).map_err(|e| Error::io(&path, e))?) } else { None };
        let location = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for tensor in &mut self.graph.initializer {
            if tensor.external_data.is_empty() {
                continue;
            }
            if let Some(bytes) = &bytes {
                let [offset, length] = [0, 1].map(|i| number(&tensor.external_data[i]));
                tensor.raw_data = Some(bytes[offset..offset + length].to_vec());
                tensor.external_data.clear();
                tensor.data_location = None;
            } else {
                let location =
                    StringStringEntryProto { key: Some("location".to_owned()), value: Some(location.clone()) };
                tensor.external_data.insert(0, location);
            }
        }
        if bytes.is_some() {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(self.graph)
    }
}

impl DataFile {
    /// Appends `bytes` bytes at a multiple of [`ALIGNMENT`]; gives where they begin.
    fn append(&mut self, bytes: u64, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<u64> {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        let mut counted = Counted { file: &mut self.file, length: self.length };
        counted
            .write_all(&vec![0; (offset - self.length) as usize])
            .and_then(|()| write(&mut counted))
            .map_err(|e| Error::io(&self.path, e))?;
        assert_eq!(counted.length, offset + bytes, "a tensor has the size of its shape");
        self.length = counted.length;
        Ok(offset)
    }
}

/// A writer that counts.
struct Counted<'a> {
    file: &'a mut BufWriter<File>,
    length: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The number of an entry that [`Graph::tensor`] made.
fn number(entry: &StringStringEntryProto) -> usize {
    entry.value().parse().expect("a number was written")
}

fn tensor(name: &str, dtype: DataType, shape: &[usize]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(dtype.into()),
        dims: shape.iter().map(|size| *size as i64).collect(),
        ..TensorProto::default()
    }
}

/// The type of a tensor, with or without its shape.
pub(crate) fn value_info(name: &str, dtype: DataType, shape: Option<&[Dim]>) -> ValueInfoProto {
    let dimension = |dim: &Dim| Dimension {
        value: Some(match dim {
            Dim::Fixed(size) => dimension::Value::DimValue(*size as i64),
            Dim::Named(name) => dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = shape.map(|shape| TensorShapeProto { dim: shape.iter().map(dimension).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype.into()), shape };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    use attribute_proto::AttributeType;
    let mut attribute = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(value) => {
            attribute.i = Some(*value);
            AttributeType::Int
        }
        Attribute::Float(value) => {
            attribute.f = Some(*value);
            AttributeType::Float
        }
        Attribute::Ints(values) => {
            attribute.ints.clone_from(values);
            AttributeType::Ints
        }
    };
    attribute.r#type = Some(kind.into());
    attribute
}
