//! The header of a GGUF file, read in place. Every count and offset is checked against what is there before use.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};

/// A metadata value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// Any integer type.
    Integer(i128),
    /// Either float type.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// Text.
    Text(&'a str),
    // Only the tokenizer has lists.
    #[cfg_attr(not(feature = "text"), allow(dead_code))]
    /// A list of one type, checked but left where it is: a list of bytes would grow many times when taken apart.
    List {
        /// Number of the elements' type.
        kind: u32,
        /// Number of elements.
        count: usize,
        /// The elements.
        bytes: &'a [u8],
    },
}

/// A tensor's entry in the header.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo<'a> {
    pub(super) name: &'a str,
    /// GGUF stores the fastest dimension first; here it is last: `[rows, cols]`.
    pub(super) shape: Vec<usize>,
    /// Number of the type.
    pub(super) kind: u32,
    /// From the tensor's first byte to the next tensor's, or to the end of the file.
    pub(super) room: &'a [u8],
}

/// A file whose header was read.
pub(super) struct Gguf<'a> {
    pub(super) file: &'a Path,
    metadata: HashMap<&'a str, Value<'a>>,
    pub(super) tensors: Vec<TensorInfo<'a>>,
    /// Places in `tensors` by name.
    index: HashMap<&'a str, usize>,
    /// `general.alignment`: offsets are multiples of it.
    pub(super) alignment: usize,
}

/// Reads little-endian numbers off the front.
struct Cursor<'a> {
    file: &'a Path,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, place: &str, count: u64) -> Result<&'a [u8]> {
        let left = self.rest.len();
        let taken = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = taken.ok_or_else(|| {
            Error::malformed(self.file, place, format!("needs {count} bytes, but only {left} are left"))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        let mut le = [0; N];
        le.copy_from_slice(self.take(place, N as u64)?);
        Ok(le)
    }

    fn u32(&mut self, place: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number(place)?))
    }

    fn text(&mut self, place: &str) -> Result<&'a str> {
        let length = self.u64(place)?;
        let bytes = self.take(place, length)?;
        std::str::from_utf8(bytes).map_err(|e| Error::malformed(self.file, place, format!("is not UTF-8: {e}")))
    }

    /// A count of things of at least `size` bytes each, which must be there.
    fn count(&mut self, place: &str, size: u64) -> Result<usize> {
        let count = self.u64(place)?;
        let left = self.rest.len() as u64;
        if count.checked_mul(size).is_none_or(|bytes| bytes > left) {
            let message = format!("counts {count} entries, but only {left} bytes are left");
            return Err(Error::malformed(self.file, place, message));
        }
        Ok(count as usize)
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.number(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.number(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.number(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.number(key)?).into()),
            4 => Value::Integer(self.u32(key)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.number(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.number(key)?).into()),
            7 => Value::Bool(self.number::<1>(key)?[0] != 0),
            8 => Value::Text(self.text(key)?),
            9 if depth < 2 => {
                let kind = self.u32(key)?;
                let size = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                let count = self.count(key, size)?;
                let list = self.rest;
                for _ in 0..count {
                    self.value(key, kind, depth + 1)?;
                }
                Value::List { kind, count, bytes: &list[..list.len() - self.rest.len()] }
            }
            9 => return Err(Error::malformed(self.file, key, "nests lists more than twice")),
            10 => Value::Integer(self.u64(key)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.number(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.number(key)?)),
            other => return Err(Error::malformed(self.file, key, format!("has value type {other}, expected 0 to 12"))),
        })
    }
}

impl<'a> Gguf<'a> {
    /// Reads the header of `bytes`.
    pub(super) fn parse(file: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { file, rest: bytes };
        if cursor.take("header", 4)? != b"GGUF" {
            return Err(Error::malformed(file, "header", "does not begin with GGUF"));
        }
        let version = cursor.u32("header")?;
        if !(2..=3).contains(&version) {
            let hint = if (1..=3).contains(&version.swap_bytes()) { "; the file is big-endian" } else { "" };
            let message = format!("is {version}, supported are 2 and 3{hint}");
            return Err(Error::unsupported(file, "version", message));
        }
        // A tensor takes 24 bytes at least, a key 12.
        let tensors = cursor.count("tensor count", 24)?;
        let keys = cursor.count("metadata count", 12)?;
        let mut metadata = HashMap::new();
        for _ in 0..keys {
            let key = cursor.text("metadata key")?;
            let kind = cursor.u32(key)?;
            let value = cursor.value(key, kind, 0)?;
            if metadata.insert(key, value).is_some() {
                return Err(Error::malformed(file, key, "occurs twice"));
            }
        }
        let mut gguf =
            Gguf { file, metadata, tensors: Vec::with_capacity(tensors), index: HashMap::new(), alignment: 32 };
        let mut offsets = Vec::with_capacity(tensors);
        for _ in 0..tensors {
            let name = cursor.text("tensor name")?;
            let dimensions = cursor.u32(name)?;
            if !(1..=4).contains(&dimensions) {
                return Err(Error::malformed(file, name, format!("has {dimensions} dimensions, expected 1 to 4")));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                shape.push(usize::try_from(cursor.u64(name)?).unwrap_or(usize::MAX));
            }
            shape.reverse();
            if shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).is_none() {
                return Err(Error::malformed(file, name, format!("has dimensions {shape:?}, whose product overflows")));
            }
            let kind = cursor.u32(name)?;
            offsets.push(cursor.u64(name)?);
            if gguf.index.insert(name, gguf.tensors.len()).is_some() {
                return Err(Error::malformed(file, name, "occurs twice"));
            }
            gguf.tensors.push(TensorInfo { name, shape, kind, room: &[] });
        }
        gguf.place(bytes, bytes.len() - cursor.rest.len(), &offsets)?;
        Ok(gguf)
    }

    /// Gives each tensor the bytes from its offset to the next one's.
    fn place(&mut self, bytes: &'a [u8], header: usize, offsets: &[u64]) -> Result<()> {
        const ALIGNMENT: &str = "general.alignment";
        let alignment = self.size_or(ALIGNMENT, Some(self.alignment))?;
        if !alignment.is_power_of_two() || alignment > 65_536 {
            let message = format!("is {alignment}, expected a power of two up to 65536");
            return Err(Error::malformed(self.file, ALIGNMENT, message));
        }
        self.alignment = alignment;
        let data = bytes.get(header.next_multiple_of(alignment)..).unwrap_or(&[]);
        let mut ends = offsets.to_vec();
        ends.sort_unstable();
        ends.push(data.len() as u64);
        for (tensor, offset) in self.tensors.iter_mut().zip(offsets) {
            let next = ends.partition_point(|end| end <= offset);
            let end = ends.get(next).copied().unwrap_or(0);
            let same = ends[..next].iter().rev().take_while(|end| *end == offset).count();
            let room = usize::try_from(*offset).ok().zip(usize::try_from(end).ok());
            let room = room.and_then(|(from, to)| data.get(from..to));
            let Some(room) = room.filter(|_| same == 1 && offset.is_multiple_of(alignment as u64)) else {
                let message = format!(
                    "has offset {offset}, expected a multiple of {alignment} below {} that no other tensor has",
                    data.len()
                );
                return Err(Error::malformed(self.file, tensor.name, message));
            };
            tensor.room = room;
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match self.get(key) {
            None => "missing",
            Some(Value::Integer(_)) => "an integer outside the range",
            Some(Value::Float(_)) => "a float",
            Some(Value::Bool(_)) => "a flag",
            Some(Value::Text(_)) => "text",
            Some(Value::List { .. }) => "a list",
        };
        Error::malformed(self.file, key, format!("is {found}, expected {expected}"))
    }

    pub(super) fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (Some(Value::Integer(n)), _) if usize::try_from(*n).is_ok() => Ok(*n as usize),
            (None, Some(default)) => Ok(default),
            _ => Err(self.wrong(key, "a whole number")),
        }
    }

    pub(super) fn float_or(&self, key: &str, default: f32) -> Result<f32> {
        match self.get(key) {
            Some(Value::Float(n)) => Ok(*n as f32),
            None => Ok(default),
            _ => Err(self.wrong(key, "a float")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(Some(text)),
            None => Ok(None),
            _ => Err(self.wrong(key, "text")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            None => Ok(None),
            _ => Err(self.wrong(key, "a flag")),
        }
    }

    pub(super) fn token(&self, key: &str) -> Result<Option<u32>> {
        match self.get(key) {
            Some(Value::Integer(id)) if u32::try_from(*id).is_ok() => Ok(Some(*id as u32)),
            None => Ok(None),
            _ => Err(self.wrong(key, "a token id")),
        }
    }

    /// A list whose every element `convert` accepts; empty if absent.
    #[cfg(feature = "text")]
    pub(super) fn list<T>(&self, key: &str, what: &str, convert: fn(Value<'a>) -> Option<T>) -> Result<Vec<T>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(&Value::List { kind, count, bytes }) => {
                let mut list = Cursor { file: self.file, rest: bytes };
                let element = |_| convert(list.value(key, kind, 1)?).ok_or_else(|| self.wrong(key, what));
                (0..count).map(element).collect()
            }
            _ => Err(self.wrong(key, what)),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.index.get(name).and_then(|at| self.tensors.get(*at))
    }
}
