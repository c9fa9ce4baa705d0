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

/// Trits, turned: `[cols, rows]`, 2 bits in two's complement each, four a byte, low bits first. The last `cols -
/// matrix.cols()` columns are zeros.
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

/// Writes trits as `MatMulNBits` wants them: `[rows, blocks, 32]`, codes t + 2 of 2 bits, low bits first. Each block of
/// 128 holds 127 columns and the guard, whose weight is zero.
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

#[cfg(test)]
mod tests {
    use trion_core::{Packing, Rescale};

    use super::*;

    /// A matrix of trits that follow no short rule.
    fn packed(rows: usize, cols: usize) -> (Vec<i8>, Vec<u8>) {
        let trits: Vec<i8> = (0..rows * cols).map(|i| ((i * i + i / 7) % 3) as i8 - 1).collect();
        let mut packed = vec![0; Packing::Twos.bytes(rows, cols)];
        Packing::Twos.clear(&mut packed);
        for (row, trits) in trits.chunks(cols).enumerate() {
            Packing::Twos.pack_row(&mut packed, rows, cols, row, trits).unwrap();
        }
        (trits, packed)
    }

    /// Element i of packed 2-bit integers, as the format defines them.
    fn int2(bytes: &[u8], i: usize) -> i8 {
        match (bytes[i / 4] >> (2 * (i % 4))) & 3 {
            0 => 0,
            1 => 1,
            3 => -1,
            code => panic!("code {code}"),
        }
    }

    #[test]
    fn turned_matrices_hold_every_trit_and_zeros_beyond() {
        for (rows, cols, width) in [(1, 16, 16), (3, 5, 8), (64, 33, 33), (70, 130, 256), (129, 48, 48)] {
            let (trits, packed) = packed(rows, cols);
            let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, &packed, Rescale::Multiply(1.0)).unwrap();
            let turned = Turned::new(&matrix, width);
            assert_eq!(turned.bytes().len(), (rows * width).div_ceil(4));
            let (mut bytes, mut singles) = (Vec::new(), Vec::new());
            turned.write_i8(&mut bytes).unwrap();
            turned.write_f32(&mut singles).unwrap();
            assert_eq!((bytes.len(), singles.len()), (rows * width, 4 * rows * width));
            for (i, single) in singles.as_chunks::<4>().0.iter().enumerate() {
                let (col, row) = (i / rows, i % rows);
                let expected = if col < cols { trits[row * cols + col] } else { 0 };
                assert_eq!(int2(turned.bytes(), i), expected, "{rows} x {cols}: row {row}, column {col}");
                assert_eq!(bytes[i] as i8, expected);
                assert_eq!(f32::from_le_bytes(*single), f32::from(expected));
            }
        }
    }

    #[test]
    fn trits_as_they_lie_are_padded_by_row_and_packed_across_rows() {
        let (rows, cols, width) = (5, 13, 15);
        let (trits, packed) = packed(rows, cols);
        let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, &packed, Rescale::Multiply(1.0)).unwrap();
        let mut bytes = Vec::new();
        write_trits(&matrix, width, &mut bytes).unwrap();
        assert_eq!(bytes.len(), (rows * width).div_ceil(4));
        for i in 0..rows * width {
            let (row, col) = (i / width, i % width);
            assert_eq!(int2(&bytes, i), if col < cols { trits[row * cols + col] } else { 0 });
        }
    }

    #[test]
    fn blocks_of_127_have_a_guard_of_weight_zero() {
        let (rows, cols) = (3, 130);
        let (trits, packed) = packed(rows, cols);
        let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, &packed, Rescale::Multiply(1.0)).unwrap();
        let mut bytes = Vec::new();
        write_nbits(&matrix, &mut bytes).unwrap();
        assert_eq!(bytes.len(), rows * 2 * 32);
        for i in 0..rows * 2 * 128 {
            let (row, block, lane) = (i / 256, i / 128 % 2, i % 128);
            let col = block * 127 + lane;
            let expected = if lane < 127 && col < cols { trits[row * cols + col] } else { 0 };
            assert_eq!(
                (bytes[i / 4] >> (2 * (i % 4)) & 3) as i8 - 2,
                expected,
                "row {row}, block {block}, lane {lane}"
            );
        }
    }

    #[test]
    fn floats_keep_their_bits_or_round_half_to_even() {
        let written = |data, format| {
            let mut bytes = Vec::new();
            write_floats(data, [2, 2], format, &mut bytes).unwrap();
            bytes
        };
        let halves = [0x3c00_u16, 0x0001, 0xfbff, 0x8000];
        assert_eq!(written(FloatData::F16(&halves), FloatFormat::F16), halves.map(u16::to_le_bytes).concat());
        assert_eq!(written(FloatData::Bf16(&halves), FloatFormat::Bf16), halves.map(u16::to_le_bytes).concat());
        let bytes = FloatData::I8 { values: &[-128, 127, 1, 0], scales: &[0.5, 3.0] };
        assert_eq!(written(bytes, FloatFormat::I8), [0x80, 127, 1, 0]);
        assert_eq!(written(bytes, FloatFormat::F32), [-64.0_f32, 63.5, 3.0, 0.0].map(f32::to_le_bytes).concat());
        // Each lies between two neighbours in bfloat16, of which one is even.
        let singles = FloatData::F32(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.0, 0.0]);
        assert_eq!(written(singles, FloatFormat::Bf16), [0x3f80_u16, 0x3f82, 0xc000, 0].map(u16::to_le_bytes).concat());
    }
}
