//! Matrices of six bits a weight: a head, or an embedding, that reads a fifth less than one of bytes.
//!
//! A weight is `code * block scale * row scale`: a code from -32 to 31, a scale from 0 to 255 for each 16 columns of a
//! row, and a float for each row. Activations are quantised to int8 over groups of 128 columns, so that all within a
//! group is integer arithmetic.
//!
//! Rows go in tiles of 32, columns in pairs of blocks of 16. A pair is 832 bytes: for each of its two blocks 192 bytes
//! of rows 0 to 15 and 192 bytes of rows 16 to 31, then the 32 scales of the first block and those of the second. 192
//! bytes are three registers of 64, four bytes for each row in order. Byte e of a row holds code + 32: the low six bits
//! of register n that of column 4 n + e, and the upper two bits of registers 0, 1 and 2 are, from the lowest, the six
//! bits of column 12 + e. Rows and columns beyond the matrix hold the code 0.

use crate::Error;
use crate::kernel::{Op, Simd, Vector};
use crate::packing::{BLOCK_COLS, TILE_ROWS};
use crate::quant::ActivationScale;

/// Columns whose activations share a scale.
pub const GROUP_COLS: usize = 128;
/// Columns of a pair of blocks.
pub const PAIR_COLS: usize = 2 * BLOCK_COLS;
/// Bytes of the 16 rows of half a tile in a block.
const HALF: usize = 3 * 64;
/// Bytes of the codes of a block.
pub(crate) const BLOCK_CODES: usize = 2 * HALF;
/// Bytes of a pair of blocks.
pub const PAIR_BYTES: usize = 2 * (BLOCK_CODES + TILE_ROWS);
/// What is added to a code.
pub(crate) const OFFSET: i8 = 32;

/// A weight matrix `[rows, cols]` of six bits a weight, in borrowed memory.
#[derive(Debug, Clone, Copy)]
pub struct Int6Matrix<'w> {
    rows: usize,
    cols: usize,
    /// `[tiles, pairs]`.
    packed: &'w [[u8; PAIR_BYTES]],
    /// `[rows]`.
    row_scales: &'w [f32],
}

impl<'w> Int6Matrix<'w> {
    /// Bytes of a packed matrix; `usize::MAX` if they cannot be counted.
    pub const fn packed_bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(TILE_ROWS).saturating_mul(cols.div_ceil(PAIR_COLS)).saturating_mul(PAIR_BYTES)
    }

    /// Writes one row into `packed`: `codes` `[cols]` from -32 to 31, and a scale for each 16 of them. `packed` was filled
    /// with zeros, and is complete once every row of whole tiles was written.
    ///
    /// # Errors
    /// [`Error::Length`] if `packed`, `codes` or `scales` does not have the length of such a matrix or row.
    pub fn pack_row(
        packed: &mut [u8],
        rows: usize,
        cols: usize,
        row: usize,
        codes: &[i8],
        scales: &[u8],
    ) -> Result<(), Error> {
        let expected = Self::packed_bytes(rows, cols);
        if packed.len() != expected || row >= rows.next_multiple_of(TILE_ROWS) {
            return Err(Error::Length { tensor: "packed codes", found: packed.len(), expected });
        }
        if codes.len() != cols {
            return Err(Error::Length { tensor: "row of codes", found: codes.len(), expected: cols });
        }
        let expected = cols.div_ceil(BLOCK_COLS);
        if scales.len() != expected {
            return Err(Error::Length { tensor: "block scales", found: scales.len(), expected });
        }
        let pairs = cols.div_ceil(PAIR_COLS);
        let tile = &mut packed.as_chunks_mut::<PAIR_BYTES>().0[row / TILE_ROWS * pairs..][..pairs];
        let row = row % TILE_ROWS;
        for (pair, (codes, scales)) in tile.iter_mut().zip(codes.chunks(PAIR_COLS).zip(scales.chunks(2))) {
            for block in 0..2 {
                let mut padded = [OFFSET as u8; BLOCK_COLS];
                for (to, code) in padded.iter_mut().zip(codes.iter().skip(block * BLOCK_COLS)) {
                    *to = code.wrapping_add(OFFSET) as u8 & 63;
                }
                for e in 0..4 {
                    let last = padded[12 + e];
                    for register in 0..3 {
                        pair[byte_of(block, row, register, e)] =
                            padded[4 * register + e] | (last >> (2 * register) & 3) << 6;
                    }
                }
                pair[2 * BLOCK_CODES + block * TILE_ROWS + row] = scales.get(block).copied().unwrap_or(0);
            }
        }
        Ok(())
    }

    /// Borrows a packed matrix `[rows, cols]` with `row_scales` `[rows]`.
    ///
    /// # Errors
    /// [`Error::Length`] when lengths do not fit the shape, [`Error::NotFinite`] for a bad row scale.
    pub fn new(rows: usize, cols: usize, packed: &'w [u8], row_scales: &'w [f32]) -> Result<Self, Error> {
        let expected = Self::packed_bytes(rows, cols);
        if packed.len() != expected {
            return Err(Error::Length { tensor: "packed codes", found: packed.len(), expected });
        }
        if row_scales.len() != rows {
            return Err(Error::Length { tensor: "row scales", found: row_scales.len(), expected: rows });
        }
        if row_scales.iter().any(|scale| !scale.is_finite()) {
            return Err(Error::NotFinite { tensor: "row scales", layer: None });
        }
        Ok(Int6Matrix { rows, cols, packed: packed.as_chunks().0, row_scales })
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// The packed codes and block scales.
    pub const fn packed(&self) -> &'w [u8] {
        self.packed.as_flattened()
    }

    /// The scales of rows `[rows]`.
    pub const fn row_scales(&self) -> &'w [f32] {
        self.row_scales
    }

    /// The pairs of blocks of a tile.
    fn tile(&self, tile: usize) -> &'w [[u8; PAIR_BYTES]] {
        let pairs = self.cols.div_ceil(PAIR_COLS);
        self.packed.get(tile * pairs..(tile + 1) * pairs).unwrap_or(&[])
    }

    /// The codes of a row `[cols]`, and the scale of each 16 of them. A row beyond the matrix leaves both as they are.
    pub fn decode_row(&self, row: usize, codes: &mut [i8], scales: &mut [u8]) {
        let (tile, row) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        for (n, (codes, scale)) in codes.chunks_mut(BLOCK_COLS).zip(scales).enumerate() {
            let (Some(pair), block) = (tile.get(n / 2), n % 2) else { return };
            *scale = pair[2 * BLOCK_CODES + block * TILE_ROWS + row];
            for (column, to) in codes.iter_mut().enumerate() {
                *to = code(pair, block, row, column);
            }
        }
    }

    /// The weights of a row as floats, into `out` of `cols` elements: `float(code * block scale) * row scale`. A row beyond
    /// the matrix leaves `out` as it is.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let Some(row_scale) = self.row_scales.get(row) else { return };
        let (tile, row) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        for (n, out) in out.chunks_mut(BLOCK_COLS).enumerate() {
            let (Some(pair), block) = (tile.get(n / 2), n % 2) else { return };
            let scale = i32::from(pair[2 * BLOCK_CODES + block * TILE_ROWS + row]);
            for (column, out) in out.iter_mut().enumerate() {
                *out = (i32::from(code(pair, block, row, column)) * scale) as f32 * row_scale;
            }
        }
    }
}

/// Products of the 32 rows of a tile with T tokens: `y[t][row]`. Rows beyond the matrix are left at zero.
pub(crate) struct Int6Product<'a, const T: usize> {
    pub(crate) matrix: &'a Int6Matrix<'a>,
    pub(crate) tile: usize,
    /// Activations of each token.
    pub(crate) x: [&'a [i8]; T],
    /// Their scales.
    pub(crate) scales: [&'a [ActivationScale]; T],
    pub(crate) y: &'a mut [[f32; TILE_ROWS]; T],
}

impl<const T: usize> Op for Int6Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Int6Product { matrix, tile, x, scales, y } = self;
        *y = [[0.0; TILE_ROWS]; T];
        for (group, pairs) in matrix.tile(tile).chunks(GROUP_COLS / PAIR_COLS).enumerate() {
            let x = x.map(|x| x.get(group * GROUP_COLS..).unwrap_or(&[]));
            let mut sums = [[0; TILE_ROWS]; T];
            simd.int6_tile(pairs, x, &mut sums);
            for t in 0..T {
                let Some(s) = scales[t].get(group) else { continue };
                let part = simd.load_i32(&sums[t], 0).div(S::V::splat(s.scale));
                let sum = simd.load(&y[t]).add(part);
                simd.store(sum, &mut y[t]);
            }
        }
        let row_scales = matrix.row_scales.chunks(TILE_ROWS).nth(tile).unwrap_or(&[]);
        for y in y {
            for (y, scale) in y.iter_mut().zip(row_scales) {
                *y *= scale;
            }
        }
    }
}

/// Where byte `e` of a row lies in register `register` of block `block` of a pair.
const fn byte_of(block: usize, row: usize, register: usize, e: usize) -> usize {
    block * BLOCK_CODES + row / 16 * HALF + register * 64 + row % 16 * 4 + e
}

/// The code of a column of a block.
#[inline(always)]
pub(crate) const fn code(pair: &[u8; PAIR_BYTES], block: usize, row: usize, column: usize) -> i8 {
    let e = column % 4;
    let six_bits = match column / 4 {
        3 => {
            let upper =
                [pair[byte_of(block, row, 0, e)], pair[byte_of(block, row, 1, e)], pair[byte_of(block, row, 2, e)]];
            upper[0] >> 6 | upper[1] >> 6 << 2 | upper[2] >> 6 << 4
        }
        register => pair[byte_of(block, row, register, e)] & 63,
    };
    six_bits as i8 - OFFSET
}
