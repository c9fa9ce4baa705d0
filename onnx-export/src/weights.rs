//! Weights as bytes of ONNX tensors.
//!
//! ONNX multiplies activations `[tokens, cols]` with a matrix `[cols, rows]`, so ternary matrices are turned. Where a
//! matrix has scales for groups of columns it becomes `[groups, group, rows]`, and columns that fill up the last group
//! hold zeros.

use std::io::{self, Write};

use trion_core::numeric::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use trion_core::{FloatData, TernaryMatrix};

use crate::proto::tensor_proto::DataType;

/// Rows that are turned together.
const ROWS: usize = 64;

/// Columns of a block of `MatMulNBits`, one of which is the guard (`docs/onnx.md`).
pub(crate) const NBITS_BLOCK: usize = 128;
/// Columns of a block that hold weights.
pub(crate) const NBITS_COLS: usize = NBITS_BLOCK - 1;

/// Trits, turned: `[cols, rows]`, 2 bits in two's complement each, four a byte, low bits first. The last `cols - matrix.cols()`
/// columns are zeros.
pub(crate) struct Turned {
    bytes: Vec<u8>,
    len: usize,
}

impl Turned {
    /// Turns a matrix.
    pub(crate) fn new(matrix: &TernaryMatrix<'_>, cols: usize) -> Self {
        let rows = matrix.rows();
        let mut bytes = vec![0_u8; (rows * cols).div_ceil(4)];
        let mut trits = vec![0_i8; ROWS * matrix.cols()];
        for first in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - first);
            for (r, trits) in trits.chunks_mut(matrix.cols()).take(count).enumerate() {
                matrix.decode_row(first + r, trits);
            }
            for col in 0..matrix.cols() {
                for r in 0..count {
                    let i = col * rows + first + r;
                    let trit = trits[r * matrix.cols() + col] as u8 & 3;
                    bytes[i / 4] |= trit << (2 * (i % 4));
                }
            }
        }
        Turned { bytes, len: rows * cols }
    }

    /// The packed form.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Trits one by one.
    fn trits(&self) -> impl Iterator<Item = i8> {
        // Two bits at the top of a signed byte, moved down with their sign.
        let four = |byte: &u8| [0, 2, 4, 6].map(|shift| (*byte << (6 - shift)) as i8 >> 6);
        self.bytes.iter().flat_map(four).take(self.len)
    }

    /// Writes a byte for each.
    pub(crate) fn write_i8(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out, |trit| [trit as u8])
    }

    /// Writes a single for each.
    pub(crate) fn write_f32(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out, |trit| f32::from(trit).to_le_bytes())
    }

    fn write<const N: usize>(&self, out: &mut dyn Write, bytes: impl Fn(i8) -> [u8; N]) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(N * 4096);
        let mut trits = self.trits().peekable();
        while trits.peek().is_some() {
            chunk.clear();
            chunk.extend(trits.by_ref().take(4096).flat_map(&bytes));
            out.write_all(&chunk)?;
        }
        Ok(())
    }
}

/// Writes trits as `MatMulNBits` wants them: `[rows, blocks, 32]`, codes t + 2 of 2 bits, low bits first. Each block of 128
/// holds 127 columns and the guard, whose weight is zero.
pub(crate) fn write_nbits(matrix: &TernaryMatrix<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut trits = vec![0_i8; matrix.cols()];
    for row in 0..matrix.rows() {
        matrix.decode_row(row, &mut trits);
        for block in trits.chunks(NBITS_COLS) {
            let mut codes = [2_u8; NBITS_BLOCK];
            for (code, trit) in codes.iter_mut().zip(block) {
                *code = code.wrapping_add_signed(*trit);
            }
            let packed = codes.as_chunks::<4>().0.iter().map(|c| c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
            out.write_all(&packed.collect::<Vec<u8>>())?;
        }
    }
    Ok(())
}

/// Number formats of float tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatFormat {
    F32,
    F16,
    Bf16,
    /// Bytes, with a factor for each row.
    I8,
}

impl FloatFormat {
    /// That of a matrix.
    pub(crate) fn of(data: FloatData<'_>) -> Self {
        match data {
            FloatData::F32(_) => FloatFormat::F32,
            FloatData::F16(_) => FloatFormat::F16,
            FloatData::Bf16(_) => FloatFormat::Bf16,
            FloatData::I8 { .. } => FloatFormat::I8,
        }
    }

    /// As ONNX names it.
    pub(crate) fn dtype(self) -> DataType {
        match self {
            FloatFormat::F32 => DataType::Float,
            FloatFormat::F16 => DataType::Float16,
            FloatFormat::Bf16 => DataType::Bfloat16,
            FloatFormat::I8 => DataType::Int8,
        }
    }

    /// Bytes of an element.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            FloatFormat::F32 => 4,
            FloatFormat::F16 | FloatFormat::Bf16 => 2,
            FloatFormat::I8 => 1,
        }
    }
}

/// Writes a float matrix `[rows, cols]`, its elements as they are or rounded half to even to another format of floats.
/// Bytes with factors can be written as floats too.
pub(crate) fn write_floats(
    data: FloatData<'_>,
    [rows, cols]: [usize; 2],
    format: FloatFormat,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut row = Vec::with_capacity(4 * cols);
    for r in 0..rows {
        row.clear();
        for i in r * cols..(r + 1) * cols {
            let value = match data {
                FloatData::F32(values) => values[i],
                FloatData::F16(bits) => f16_to_f32(bits[i]),
                FloatData::Bf16(bits) => bf16_to_f32(bits[i]),
                FloatData::I8 { values, .. } if format == FloatFormat::I8 => f32::from(values[i]),
                FloatData::I8 { values, scales } => f32::from(values[i]) * scales[r],
            };
            match format {
                FloatFormat::F32 => row.extend(value.to_le_bytes()),
                FloatFormat::F16 => row.extend(f32_to_f16(value).to_le_bytes()),
                FloatFormat::Bf16 => row.extend(f32_to_bf16(value).to_le_bytes()),
                FloatFormat::I8 => row.push(value as i8 as u8),
            }
        }
        out.write_all(&row)?;
    }
    Ok(())
}

/// Writes trits as they lie, `[rows, width]`, 2 bits each as in [`Turned`]; columns beyond the matrix are zeros.
pub(crate) fn write_trits(matrix: &TernaryMatrix<'_>, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut trits = vec![0_i8; width];
    let (mut byte, mut bits) = (0_u8, 0);
    for row in 0..matrix.rows() {
        matrix.decode_row(row, &mut trits[..matrix.cols()]);
        let mut packed = Vec::with_capacity(width / 4 + 1);
        for trit in &trits {
            byte |= (*trit as u8 & 3) << bits;
            bits += 2;
            if bits == 8 {
                packed.push(byte);
                (byte, bits) = (0, 0);
            }
        }
        out.write_all(&packed)?;
    }
    if bits > 0 { out.write_all(&[byte]) } else { Ok(()) }
}
