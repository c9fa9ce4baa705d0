//! Weights as the kernels read them; the orders are described in `kernels/common.cuh` and `kernels/fives.cuh`.

use trion_core::{FloatData, Layer, Linear, Matrix, Projection, Rescale, TernaryMatrix};

use crate::kernels::KernelSet;

/// Pieces of memory begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 256;
/// Rows of a piece of ternary weights.
pub(crate) const PIECE_ROWS: usize = 8;
/// Columns of a piece of ternary weights at two bits.
pub(crate) const PIECE_COLS: usize = 256;
/// Columns of a piece of ternary weights of which five lie in a byte.
pub(crate) const FIVES_COLS: usize = 320;
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
    /// Whether it is ternary with one scale, which is what the fast kernels take.
    pub(crate) const fn is_plain(self) -> bool {
        matches!(self, Kind::Multiply | Kind::Divide)
    }

    /// The kind of a matrix; `None` for six bits a weight, which the kernels do not read.
    pub(crate) fn of(matrix: &Matrix<'_>) -> Option<Self> {
        Some(match matrix {
            Matrix::Int6(_) => return None,
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
        })
    }
}

/// How plain ternary weights, those with one scale, are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Four in a byte, two bits each: pieces of 8 rows by 256 columns.
    Twos,
    /// Five in a byte, 1.6 bits each: pieces of 8 rows by 320 columns. Tensor cores make their products.
    Fives,
}

/// Bytes that a launch would read at two bits from which on five in a byte are worth it. By measurement on an H100 the
/// product alone takes less time from 8 MB on; but the kernel that prepares its input itself (`kernels/project.cu`) is
/// there for two bits alone, and another kernel for a token costs 1 to 2 µs, as long as a fifth of 20 MB takes.
const FIVES_BYTES: usize = 20_000_000;
/// Pieces of columns of a row that the kernels for them take: warps of a block of threads.
pub(crate) const WIDEST_FIVES: usize = 32;
/// The projections of a block that read the same input, and are made by one launch where they can be.
pub(crate) const LAUNCHES: [&[Projection]; 4] = [
    &[Projection::Query, Projection::Key, Projection::Value],
    &[Projection::Output],
    &[Projection::Gate, Projection::Up],
    &[Projection::Down],
];

impl Packing {
    /// Of all matrices of a launch, which have so many rows together.
    pub(crate) fn of_launch(set: KernelSet, rows: usize, cols: usize) -> Self {
        let is_large = rows.saturating_mul(cols) / 4 >= FIVES_BYTES && cols <= WIDEST_FIVES * FIVES_COLS;
        if is_large && set == KernelSet::Sm90 { Packing::Fives } else { Packing::Twos }
    }

    /// Of the projections of a block, indexed by [`Projection`].
    pub(crate) fn of_layer(set: KernelSet, layer: &Layer<'_>) -> [Self; Projection::ALL.len()] {
        let mut all = [Packing::Twos; Projection::ALL.len()];
        for projections in LAUNCHES {
            let linears: Vec<&Linear<'_>> = projections.iter().map(|p| layer.projection(*p)).collect();
            let together: usize = linears.iter().map(|linear| linear.matrix.shape()[0]).sum();
            let share = share_a_launch(&linears);
            for (projection, linear) in projections.iter().zip(linears) {
                let [own, cols] = linear.matrix.shape();
                if Kind::of(&linear.matrix).is_some_and(Kind::is_plain) {
                    all[*projection as usize] = Packing::of_launch(set, if share { together } else { own }, cols);
                }
            }
        }
        all
    }

    /// Pieces that so many rows take: an even number where two are multiplied at once.
    pub(crate) const fn pieces(self, rows: usize) -> usize {
        match self {
            Packing::Twos => rows.div_ceil(PIECE_ROWS),
            Packing::Fives => rows.div_ceil(2 * PIECE_ROWS) * 2,
        }
    }

    /// Columns of a piece.
    pub(crate) const fn piece_cols(self) -> usize {
        match self {
            Packing::Twos => PIECE_COLS,
            Packing::Fives => FIVES_COLS,
        }
    }
}

/// Whether projections that read the same input are made by one launch: plain ternary matrices, for which the input is
/// prepared in the same way.
pub(crate) fn share_a_launch(linears: &[&Linear<'_>]) -> bool {
    let cols = |linear: &Linear<'_>| linear.matrix.shape()[1];
    let is_alone = linears.len() == 1;
    linears.iter().all(|linear| {
        Kind::of(&linear.matrix).is_some_and(Kind::is_plain)
            && (is_alone || linear.norm.is_none())
            && linears.first().is_some_and(|first| cols(first) == cols(linear))
    })
}

/// A size, rounded up to where the next piece may begin.
pub(crate) const fn aligned(bytes: usize) -> usize {
    bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Bytes of the weights of a matrix and of its scales, without padding behind them. `packing` is of plain ternary ones.
pub(crate) fn matrix_bytes(matrix: &Matrix<'_>, packing: Packing) -> [usize; 2] {
    let [rows, cols] = matrix.shape();
    let chunks = |size: usize| rows.saturating_mul((cols * size).div_ceil(PIECE_BYTES)).saturating_mul(PIECE_BYTES);
    match matrix {
        Matrix::Ternary(m) => {
            let pieces = packing.pieces(rows).saturating_mul(cols.div_ceil(packing.piece_cols()));
            let scales = if let Rescale::Groups { scales, .. } = m.rescale() { scales.len() * 2 } else { 0 };
            [pieces.saturating_mul(PIECE_BYTES), scales]
        }
        // Refused when a model is placed.
        Matrix::Int6(_) => [0, 0],
        Matrix::Float(m) => match m.data() {
            FloatData::F32(_) => [chunks(4), 0],
            FloatData::F16(_) | FloatData::Bf16(_) => [chunks(2), 0],
            FloatData::I8 { scales, .. } => [chunks(1), scales.len() * 4],
        },
    }
}

/// The weights of a matrix in the kernels' order, and its scales. `packing` is of plain ternary ones.
pub(crate) fn matrix_image(matrix: &Matrix<'_>, packing: Packing) -> (Vec<u8>, Vec<u8>) {
    match matrix {
        Matrix::Ternary(m) => {
            let scales = if let Rescale::Groups { scales, .. } = m.rescale() { scales } else { &[] };
            let image = match packing {
                Packing::Twos => twos_image(m),
                Packing::Fives => fives_image(m),
            };
            (image, bytemuck::cast_slice(scales).to_vec())
        }
        Matrix::Int6(_) => (Vec::new(), Vec::new()),
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
fn twos_image(matrix: &TernaryMatrix<'_>) -> Vec<u8> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (blocks, tiles) = (cols.div_ceil(16), cols.div_ceil(PIECE_COLS));
    let mut image = vec![0b01_01_01_01_u8; rows.div_ceil(PIECE_ROWS) * tiles * PIECE_BYTES];
    let (words, _) = image.as_chunks_mut::<4>();
    let from: Vec<_> = matrix.blocks_of_twos().collect();
    let from = from.as_flattened().as_chunks::<4>().0;
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

/// The digit 1 in each of four bytes.
const ONES: u32 = 0x0101_0101;

/// Pieces of 8 rows by 320 columns, five trits in a byte.
fn fives_image(matrix: &TernaryMatrix<'_>) -> Vec<u8> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (blocks, tiles) = (cols.div_ceil(16), cols.div_ceil(FIVES_COLS));
    let from: Vec<_> = matrix.blocks_of_twos().collect();
    let from = from.as_flattened().as_chunks::<4>().0;
    // Below 243, the number that a byte's digits write in base 3, to the byte.
    let bytes: [u8; 256] = std::array::from_fn(|v| (v * 256).div_ceil(243).min(255) as u8);
    let zeros = [bytes[121]; 4];
    let mut image = zeros.repeat(Packing::Fives.pieces(rows) * tiles * PIECE_BYTES / 4);
    let (words, _) = image.as_chunks_mut::<4>();
    // A digit of each of four columns, for the 80 columns of each lane: 1, the trit 0, where there are no more.
    let mut digits = vec![ONES; cols.div_ceil(80) * 20];
    for row in 0..rows {
        let tile = &from[row / 32 * blocks * 32..];
        let (fours, _) = digits.as_chunks_mut::<4>();
        for (block, fours) in fours.iter_mut().take(blocks).enumerate() {
            let word = u32::from_le_bytes(tile[block * 32 + row % 32]);
            *fours = [0, 2, 4, 6].map(|shift| word >> shift & (3 * ONES));
        }
        for (n, five) in digits.as_chunks::<5>().0.iter().enumerate() {
            // Four numbers at once, each of which is below 243.
            let numbers = five.iter().fold(0, |v, digit| v * 3 + digit).to_le_bytes();
            let piece = row / PIECE_ROWS * tiles + n / 16;
            let lane = row % PIECE_ROWS * 4 + n / 4 % 4;
            words[(piece * LANES + lane) * 4 + n % 4] = numbers.map(|v| bytes[usize::from(v)]);
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

    const TWOS: trion_core::Packing = trion_core::Packing::Twos;

    #[test]
    fn images_have_the_planned_length_and_every_number() {
        let (rows, cols) = (3, 300);
        let values: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
        let matrix = Matrix::from(FloatMatrix::new(rows, cols, FloatData::F32(&values)).unwrap());
        let (image, scales) = matrix_image(&matrix, Packing::Twos);
        assert_eq!([image.len(), scales.len()], matrix_bytes(&matrix, Packing::Twos));
        let image: &[f32] = bytemuck::cast_slice(&image);
        // Column 130 of row 1: chunk 1, lane 2, element 0.
        assert_eq!(image[(3 + 1) * 128 + 2 * 4], values[300 + 130]);
        assert_eq!(image.iter().filter(|v| **v != 0.0).count(), values.len());

        let mut packed = vec![0; TWOS.bytes(rows, cols)];
        TWOS.clear(&mut packed);
        for row in 0..rows {
            let trits: Vec<i8> = (0..cols).map(|c| ((row + c) % 3) as i8 - 1).collect();
            TWOS.pack_row(&mut packed, rows, cols, row, &trits).unwrap();
        }
        let matrix = Matrix::from(TernaryMatrix::new(rows, cols, TWOS, &packed, Rescale::Multiply(1.0)).unwrap());
        let (image, scales) = matrix_image(&matrix, Packing::Twos);
        assert_eq!([image.len(), scales.len()], matrix_bytes(&matrix, Packing::Twos));
        // Column 277 of row 2: piece 1, block 1 of it (lane 9, word 0), byte 1, slot 1.
        let word = image[512 + (9 * 4) * 4 + 1];
        assert_eq!(i32::from((word >> 2) & 3) - 1, (2 + 277) % 3 - 1);
    }

    #[test]
    fn a_byte_has_five_trits() {
        for (rows, cols) in [(1, 1), (9, 17), (8, 80), (3, 81), (17, 320), (2, 321), (1, 1000)] {
            let mut packed = vec![0; TWOS.bytes(rows, cols)];
            TWOS.clear(&mut packed);
            let trit = |row: usize, col: usize| ((row * 7 + col * col + col / 5) % 3) as i8 - 1;
            for row in 0..rows {
                let trits: Vec<i8> = (0..cols).map(|col| trit(row, col)).collect();
                TWOS.pack_row(&mut packed, rows, cols, row, &trits).unwrap();
            }
            let matrix = Matrix::from(TernaryMatrix::new(rows, cols, TWOS, &packed, Rescale::Multiply(1.0)).unwrap());
            let (image, scales) = matrix_image(&matrix, Packing::Fives);
            assert_eq!([image.len(), scales.len()], matrix_bytes(&matrix, Packing::Fives));
            let tiles = cols.div_ceil(320);
            for row in 0..rows.div_ceil(16) * 16 {
                for col in 0..tiles * 320 {
                    let piece = row / 8 * tiles + col / 320;
                    let (lane, word) = (row % 8 * 4 + col % 320 / 80, col % 80 / 20);
                    let byte = u32::from(image[piece * 512 + lane * 16 + word * 4 + col % 4]);
                    // The digits up to this one, and those before it, as numbers.
                    let digit = col % 20 / 4;
                    let [with, before] =
                        [3_u32.pow(digit as u32 + 1), 3_u32.pow(digit as u32)].map(|n| (byte * n) >> 8);
                    let expected = if row < rows && col < cols { trit(row, col) } else { 0 };
                    assert_eq!(with as i32 - 3 * before as i32 - 1, i32::from(expected), "row {row}, column {col}");
                }
            }
        }
    }

    /// A block with matrices of these shapes, in the order of [`Projection`].
    fn packings(set: KernelSet, shapes: [[usize; 2]; 7], norms: bool) -> [Packing; 7] {
        let most = shapes.iter().map(|[rows, cols]| TWOS.bytes(*rows, *cols)).max().unwrap();
        let (mut packed, ones) = (vec![0; most], vec![1.0; 20_000]);
        TWOS.clear(&mut packed);
        let projections = shapes.map(|[rows, cols]| {
            let packed = &packed[..TWOS.bytes(rows, cols)];
            let matrix = TernaryMatrix::new(rows, cols, TWOS, packed, Rescale::Divide(1.0)).unwrap();
            Linear { matrix: Matrix::from(matrix), norm: norms.then(|| &ones[..cols]) }
        });
        Packing::of_layer(set, &Layer { projections, norms: [None; trion_core::LayerNorm::ALL.len()] })
    }

    #[test]
    fn large_launches_have_five_trits_in_a_byte() {
        use Packing::{Fives, Twos};
        let shapes =
            [[4096, 4096], [1024, 4096], [1024, 4096], [4096, 4096], [14_336, 4096], [14_336, 4096], [4096, 14_336]];
        let gate_and_up = [Twos, Twos, Twos, Twos, Fives, Fives, Twos];
        assert_eq!(packings(KernelSet::Sm90, shapes, false), gate_and_up);
        assert_eq!(packings(KernelSet::Sm61, shapes, false), [Twos; 7]);
        // Each is a launch of its own then.
        assert_eq!(packings(KernelSet::Sm90, shapes, true), [Twos; 7]);
        // A row may be too wide.
        let shapes = [[9216, 9216], [512, 9216], [512, 9216], [9216, 9216], [16, 9216], [16, 9216], [9216, 10_241]];
        assert_eq!(packings(KernelSet::Sm90, shapes, false), [Fives, Fives, Fives, Fives, Twos, Twos, Twos]);
    }
}
