//! Weights as the kernels read them; the orders are described in `kernels/common.cuh`.

use trion_core::{FloatData, Matrix, Rescale, TernaryMatrix};

/// Pieces of memory begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 256;
/// Rows of a piece of ternary weights.
pub(crate) const PIECE_ROWS: usize = 8;
/// Columns of a piece of ternary weights.
pub(crate) const PIECE_COLS: usize = 256;
/// Bytes of a piece of ternary weights, and of a chunk of a row of floats: 16 for each lane.
pub(crate) const PIECE_BYTES: usize = 512;

const LANES: usize = 32;

/// How a matrix is stored; as `KIND_...` in `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Kind {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
    I8 = 3,
    Multiply = 4,
    Divide = 5,
    Groups = 6,
}

impl Kind {
    pub(crate) fn of(matrix: &Matrix<'_>) -> Self {
        match matrix {
            Matrix::Ternary(m) => match m.rescale() {
                Rescale::Multiply(_) => Kind::Multiply,
                Rescale::Divide(_) => Kind::Divide,
                Rescale::Groups { .. } => Kind::Groups,
            },
            Matrix::Float(m) => match m.data() {
                FloatData::F32(_) => Kind::F32,
                FloatData::F16(_) => Kind::F16,
                FloatData::Bf16(_) => Kind::Bf16,
                FloatData::I8 { .. } => Kind::I8,
            },
        }
    }
}

/// A size, rounded up to where the next piece may begin.
pub(crate) const fn aligned(bytes: usize) -> usize {
    bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Bytes of the weights of a matrix and of its scales, without padding behind them.
pub(crate) fn matrix_bytes(matrix: &Matrix<'_>) -> [usize; 2] {
    let [rows, cols] = matrix.shape();
    let chunks = |size: usize| rows.saturating_mul((cols * size).div_ceil(PIECE_BYTES)).saturating_mul(PIECE_BYTES);
    match matrix {
        Matrix::Ternary(m) => {
            let pieces = rows.div_ceil(PIECE_ROWS).saturating_mul(cols.div_ceil(PIECE_COLS));
            let scales = if let Rescale::Groups { scales, .. } = m.rescale() { scales.len() * 2 } else { 0 };
            [pieces.saturating_mul(PIECE_BYTES), scales]
        }
        Matrix::Float(m) => match m.data() {
            FloatData::F32(_) => [chunks(4), 0],
            FloatData::F16(_) | FloatData::Bf16(_) => [chunks(2), 0],
            FloatData::I8 { scales, .. } => [chunks(1), scales.len() * 4],
        },
    }
}

/// The weights of a matrix in the kernels' order, and its scales.
pub(crate) fn matrix_image(matrix: &Matrix<'_>) -> (Vec<u8>, Vec<u8>) {
    match matrix {
        Matrix::Ternary(m) => {
            let scales = if let Rescale::Groups { scales, .. } = m.rescale() { scales } else { &[] };
            (trits_image(m), bytemuck::cast_slice(scales).to_vec())
        }
        Matrix::Float(m) => {
            let [rows, cols] = matrix.shape();
            match m.data() {
                FloatData::F32(w) => (rows_image(w, rows, cols, |w| w), Vec::new()),
                FloatData::F16(w) | FloatData::Bf16(w) => (rows_image(w, rows, cols, |w| w), Vec::new()),
                FloatData::I8 { values, scales } => {
                    // Numbers plus 128: the kernels put them under a float's exponent.
                    let image = rows_image(values, rows, cols, |w| w ^ i8::MIN);
                    (image, bytemuck::cast_slice(scales).to_vec())
                }
            }
        }
    }
}

/// Words of 16 columns, moved from trion-core's tiles of 32 rows to pieces of 8 rows by 256 columns.
fn trits_image(matrix: &TernaryMatrix<'_>) -> Vec<u8> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (blocks, tiles) = (cols.div_ceil(16), cols.div_ceil(PIECE_COLS));
    let mut image = vec![0b01_01_01_01_u8; rows.div_ceil(PIECE_ROWS) * tiles * PIECE_BYTES];
    let (words, _) = image.as_chunks_mut::<4>();
    let (from, _) = matrix.packed().as_chunks::<4>();
    for row in 0..rows {
        let tile = &from[row / 32 * blocks * 32..];
        for block in 0..blocks {
            let piece = row / PIECE_ROWS * tiles + block / 16;
            let lane = row % PIECE_ROWS * 4 + block % 4;
            words[(piece * LANES + lane) * 4 + block / 4 % 4] = tile[block * 32 + row % 32];
        }
    }
    image
}

/// Rows of numbers, cut into chunks of 512 bytes in which each lane's numbers are contiguous.
fn rows_image<T: bytemuck::Pod + Default>(values: &[T], rows: usize, cols: usize, store: impl Fn(T) -> T) -> Vec<u8> {
    let each = 16 / size_of::<T>();
    let width = LANES * each;
    let row_len = cols.div_ceil(width) * width;
    let mut image = vec![store(T::default()); rows * row_len];
    for (to, from) in image.chunks_exact_mut(row_len.max(1)).zip(values.chunks_exact(cols.max(1))) {
        for (chunk_to, chunk) in to.chunks_exact_mut(width).zip(from.chunks(width)) {
            for (i, value) in chunk.iter().enumerate() {
                chunk_to[i % LANES * each + i / LANES] = store(*value);
            }
        }
    }
    bytemuck::cast_slice(&image).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trion_core::FloatMatrix;

    #[test]
    fn images_have_the_planned_length_and_every_number() {
        let (rows, cols) = (3, 300);
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
        let matrix = Matrix::from(FloatMatrix::new(rows, cols, FloatData::F32(&values)).unwrap());
        let (image, scales) = matrix_image(&matrix);
        assert_eq!([image.len(), scales.len()], matrix_bytes(&matrix));
        let image: &[f32] = bytemuck::cast_slice(&image);
        // Column 130 of row 1: chunk 1, lane 2, element 0.
        assert_eq!(image[(3 + 1) * 128 + 2 * 4], values[300 + 130]);
        assert_eq!(image.iter().filter(|v| **v != 0.0).count(), values.len());

        let mut packed = vec![0b01_01_01_01; TernaryMatrix::packed_bytes(rows, cols)];
        for row in 0..rows {
            let trits: Vec<i8> = (0..cols).map(|c| ((row + c) % 3) as i8 - 1).collect();
            TernaryMatrix::pack_row(&mut packed, rows, cols, row, &trits).unwrap();
        }
        let matrix = Matrix::from(TernaryMatrix::new(rows, cols, &packed, Rescale::Multiply(1.0)).unwrap());
        let (image, scales) = matrix_image(&matrix);
        assert_eq!([image.len(), scales.len()], matrix_bytes(&matrix));
        // Column 277 of row 2: piece 1, block 1 of it (lane 9, word 0), byte 1, slot 1.
        let word = image[512 + (9 * 4) * 4 + 1];
        assert_eq!(i32::from((word >> 2) & 3) - 1, (2 + 277) % 3 - 1);
    }
}
