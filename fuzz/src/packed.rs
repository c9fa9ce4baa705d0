//! A file that Trion packed, with changes at places where they matter: the first byte chooses a small file, and each
//! change is a few bytes more. Above the number of small files the bytes are a file themselves.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use trion_engine::Model;

use crate::check::opened;
use crate::small::{PACKED, safetensors_file};

/// Numbers at which programs go wrong.
const SIZES: [u64; 16] = [0, 1, 2, 3, 7, 16, 31, 32, 64, 127, 128, 4096, 1 << 24, (1 << 24) + 1, 1 << 32, u64::MAX];

/// A change to a file.
#[derive(Debug, Arbitrary)]
enum Change {
    /// Another byte of the data.
    Byte { at: u16, to: u8 },
    /// All bytes of a tensor.
    Fill { tensor: u8, to: u8 },
    /// Another number format of a tensor.
    Dtype { tensor: u8, to: u8 },
    /// One size of a shape.
    Size { tensor: u8, axis: u8, to: u8 },
    /// The beginning or the end of a tensor's bytes.
    Offset { tensor: u8, end: bool, by: i16 },
    /// A tensor by another's name, or by one of its own.
    Rename { tensor: u8, to: u8 },
    /// A tensor that is gone.
    Remove { tensor: u8 },
    /// A field of the configuration: a small number, or one of [`SIZES`].
    Field { field: u8, to: u8, small: bool },
    /// A field of the configuration: a float.
    Float { field: u8, to: f32 },
    /// A byte of a text in `__metadata__`.
    Text { key: u8, at: u16, to: u8 },
    /// A `__metadata__` that is gone.
    Forget { key: u8 },
    /// Data that ends early.
    Truncate { by: u16 },
    /// Data that lies otherwise.
    Shift { by: u8 },
}

/// The `n`th key of an object, counted around.
fn key(object: &Value, n: u8) -> Option<String> {
    let keys = object.as_object()?.keys();
    keys.clone().nth(usize::from(n) % keys.len().max(1)).cloned()
}

/// What stands under that key.
fn entry(object: &mut Value, n: u8) -> Option<&mut Value> {
    let key = key(object, n)?;
    object.get_mut(key)
}

fn apply(change: Change, header: &mut Value, data: &mut Vec<u8>) -> Option<()> {
    let number = |to: u8, small: bool| if small { u64::from(to) } else { SIZES[usize::from(to) % SIZES.len()] };
    match change {
        Change::Byte { at, to } => *data.get_mut(usize::from(at))? = to,
        Change::Fill { tensor, to } => {
            let offsets = entry(header, tensor)?["data_offsets"].clone();
            let (from, end) = (offsets[0].as_u64()? as usize, offsets[1].as_u64()? as usize);
            data.get_mut(from..end)?.fill(to);
        }
        Change::Dtype { tensor, to } => {
            let names = ["F32", "F16", "BF16", "I8", "U8", "F64", "I32", "BOOL"];
            entry(header, tensor)?["dtype"] = json!(names[usize::from(to) % names.len()]);
        }
        Change::Size { tensor, axis, to } => {
            *entry(header, tensor)?["shape"].get_mut(usize::from(axis % 4))? = json!(number(to, to % 2 == 0));
        }
        Change::Offset { tensor, end, by } => {
            let offset = entry(header, tensor)?["data_offsets"].get_mut(usize::from(end))?;
            *offset = json!(offset.as_u64()?.wrapping_add_signed(by.into()));
        }
        Change::Rename { tensor, to } => {
            let name = key(header, tensor)?;
            let endings = [".trits", ".fives", ".int6", ".weight", ".scale", ".scale_divisor", ".group_scales.16"];
            let to = match endings.get(usize::from(to)) {
                Some(ending) => format!("{}{ending}", name.rsplit_once('.')?.0),
                None => key(header, to)?,
            };
            let entry = header.as_object_mut()?.remove(&name)?;
            header[to] = entry;
        }
        Change::Remove { tensor } => {
            let name = key(header, tensor)?;
            header.as_object_mut()?.remove(&name);
        }
        Change::Field { field, to, small } => edit_config(header, field, json!(number(to, small)))?,
        Change::Float { field, to } => edit_config(header, field, json!(to))?,
        Change::Text { key: n, at, to } => {
            let metadata = &mut header["__metadata__"];
            let name = key(metadata, n)?;
            let mut text = metadata[&name].as_str()?.as_bytes().to_vec();
            *text.get_mut(usize::from(at))? = to;
            metadata[name] = json!(String::from_utf8_lossy(&text));
        }
        Change::Forget { key: n } => {
            let name = key(&header["__metadata__"], n)?;
            header["__metadata__"].as_object_mut()?.remove(&name);
        }
        Change::Truncate { by } => data.truncate(data.len().saturating_sub(by.into())),
        Change::Shift { by } => drop(data.splice(0..0, std::iter::repeat_n(0, by.into()))),
    }
    Some(())
}

/// Sets a field of the configuration, which is JSON in a text.
fn edit_config(header: &mut Value, field: u8, to: Value) -> Option<()> {
    let text = header["__metadata__"]["config"].as_str()?;
    let mut config: Value = serde_json::from_str(text).ok()?;
    *entry(&mut config, field)? = to;
    header["__metadata__"]["config"] = json!(config.to_string());
    Some(())
}

/// The header and the data of a file.
fn split(file: &[u8]) -> (Value, Vec<u8>) {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (header, data) = rest.split_at(length);
    (serde_json::from_slice(header).expect("a header"), data.to_vec())
}

/// The file that an input stands for.
fn file(bytes: &[u8]) -> Vec<u8> {
    let Some((choice, rest)) = bytes.split_first() else { return Vec::new() };
    let Some(small) = PACKED.get(usize::from(*choice)) else { return rest.to_vec() };
    let (mut header, mut data) = split(small);
    let mut changes = Unstructured::new(rest);
    while let Ok(change) = Change::arbitrary(&mut changes) {
        if changes.is_empty() {
            break;
        }
        // A change to something that is not there any more is none.
        let _ = apply(change, &mut header, &mut data);
    }
    let mut header = header.to_string();
    while !(header.len() + 8).is_multiple_of(64) {
        header.push(' ');
    }
    safetensors_file(&header, &data)
}

/// Opens the file, and runs it if it opens.
///
/// # Panics
/// If what opens does not hold to [`crate::check`], or a small file without changes does not open.
pub fn run(bytes: &[u8]) {
    let file = file(bytes);
    let result = Model::from_bytes(&file);
    if let ([choice], Err(error)) = (bytes, &result) {
        assert!(usize::from(*choice) >= PACKED.len(), "small file {choice}: {error}");
    }
    if let Ok(model) = &result {
        assert!(model.packed().starts_with(&file), "the packed form is the file");
    }
    opened(result);
}
