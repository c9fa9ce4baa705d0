//! Ternary matrices: 2 bits a trit, laid out as the kernels read them.
//!
//! A trit t in {-1, 0, +1} is stored as the code t + 1. Rows go in tiles of 32, columns in blocks of 16; the 32 x 16
//! trits of a block are 128 bytes, four for each row in order. Byte e of a row holds columns e, 4 + e, 8 + e and
//! 12 + e of the block, low bits first. So a register of 16, 32 or 64 bytes holds 4, 8 or 16 rows, two bits of every
//! byte are four columns that lie side by side, and a tile is one contiguous stream. Rows and columns beyond the
//! matrix hold the trit 0.

use crate::Error;
use crate::kernel::{Kernel, Op, Simd};
use crate::numeric::f16_to_f32;
use crate::quant::ActivationScale;

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns of a block.
pub const BLOCK_COLS: usize = 16;
/// Bytes of a block of one tile.
pub const BLOCK_BYTES: usize = TILE_ROWS * BLOCK_COLS / 4;
/// Four trits 0: what unused places hold.
pub const FOUR_ZEROS: u8 = 0b01_01_01_01;

/// What turns integer sums into floats.
#[derive(Debug, Clone, Copy)]
pub enum Rescale<'w> {
    /// `y = (acc / s) * scale`, with s the activation's scale.
    Multiply(f32),
    /// `y = acc / (scale * s)`.
    Divide(f32),
    /// A multiplier for each `size` columns of each row; activations are quantised over the same columns.
    Groups {
        /// Columns that share a scale; a multiple of 16.
        size: usize,
        /// Half-precision bits `[tiles, groups, 32]`; rows beyond the matrix hold zero.
        scales: &'w [u16],
    },
}

/// A ternary weight matrix `[rows, cols]` in borrowed memory.
#[derive(Debug, Clone, Copy)]
pub struct TernaryMatrix<'w> {
    rows: usize,
    cols: usize,
    /// `[tiles, blocks, 128]`.
    packed: &'w [u8],
    rescale: Rescale<'w>,
}

impl<'w> TernaryMatrix<'w> {
    /// Bytes of a packed matrix; `usize::MAX` if they cannot be counted.
    pub const fn packed_bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(TILE_ROWS).saturating_mul(cols.div_ceil(BLOCK_COLS)).saturating_mul(BLOCK_BYTES)
    }

    /// Scales of a matrix with a scale for each `size` columns.
    pub const fn group_scales(rows: usize, cols: usize, size: usize) -> usize {
        rows.div_ceil(TILE_ROWS).saturating_mul(cols.div_ceil(size)).saturating_mul(TILE_ROWS)
    }

    /// Writes one row of trits into `packed`, which was filled with [`FOUR_ZEROS`] at first.
    ///
    /// # Errors
    /// [`Error::Length`] if `packed` or `trits` does not have the length of such a matrix or row, and
    /// [`Error::InvalidTrit`] for a value other than -1, 0 and +1.
    pub fn pack_row(packed: &mut [u8], rows: usize, cols: usize, row: usize, trits: &[i8]) -> Result<(), Error> {
        let expected = Self::packed_bytes(rows, cols);
        if packed.len() != expected || row >= rows {
            return Err(Error::Length { tensor: "packed trits", found: packed.len(), expected });
        }
        if trits.len() != cols {
            return Err(Error::Length { tensor: "row of trits", found: trits.len(), expected: cols });
        }
        if let Some(col) = trits.iter().position(|t| !(-1..=1).contains(t)) {
            return Err(Error::InvalidTrit { row, col });
        }
        let tile_bytes = cols.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
        let tile = &mut packed[row / TILE_ROWS * tile_bytes..][..tile_bytes];
        let (blocks, _) = tile.as_chunks_mut::<BLOCK_BYTES>();
        for (block, trits) in blocks.iter_mut().zip(trits.chunks(BLOCK_COLS)) {
            let word = &mut block.as_chunks_mut::<4>().0[row % TILE_ROWS];
            *word = [FOUR_ZEROS; 4];
            for (i, trit) in trits.iter().enumerate() {
                word[i % 4] = word[i % 4].wrapping_add_signed(trit << (2 * (i / 4)));
            }
        }
        Ok(())
    }

    /// Borrows a packed matrix `[rows, cols]`.
    ///
    /// # Errors
    /// When lengths do not fit the shape, a code is 3, or a scale is not finite (or zero where it divides).
    pub fn new(rows: usize, cols: usize, packed: &'w [u8], rescale: Rescale<'w>) -> Result<Self, Error> {
        let expected = Self::packed_bytes(rows, cols);
        if packed.len() != expected {
            return Err(Error::Length { tensor: "packed trits", found: packed.len(), expected });
        }
        let bad_scale = Error::NotFinite { tensor: "scale", layer: None };
        match rescale {
            Rescale::Multiply(scale) if !scale.is_finite() => return Err(bad_scale),
            Rescale::Divide(scale) if !scale.is_finite() || scale == 0.0 => return Err(bad_scale),
            Rescale::Groups { size, .. } if size == 0 || !size.is_multiple_of(BLOCK_COLS) => {
                return Err(Error::GroupSize { found: size });
            }
            Rescale::Groups { size, scales } => {
                let expected = Self::group_scales(rows, cols, size);
                if scales.len() != expected {
                    return Err(Error::Length { tensor: "group scales", found: scales.len(), expected });
                }
                if scales.iter().any(|bits| bits & 0x7c00 == 0x7c00) {
                    return Err(bad_scale);
                }
            }
            _ => {}
        }
        // Both bits of a code are set only in a 3. The sum form lets the compiler look at many bytes at once.
        let is_three = |byte: u8| byte & (byte >> 1) & FOUR_ZEROS;
        if packed.iter().fold(0, |any, byte| any | is_three(*byte)) != 0 {
            let at = packed.iter().position(|byte| is_three(*byte) != 0).unwrap_or(0);
            let slot = is_three(packed[at]).trailing_zeros() as usize / 2;
            let (block, byte) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            let blocks = cols.div_ceil(BLOCK_COLS);
            return Err(Error::InvalidTrit {
                row: block / blocks * TILE_ROWS + byte / 4,
                col: block % blocks * BLOCK_COLS + 4 * slot + byte % 4,
            });
        }
        Ok(TernaryMatrix { rows, cols, packed, rescale })
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// The packed bytes.
    pub const fn packed(&self) -> &'w [u8] {
        self.packed
    }

    /// What turns integer sums into floats.
    pub const fn rescale(&self) -> Rescale<'w> {
        self.rescale
    }

    /// Columns that activations are quantised over: a group's, or all of them.
    pub const fn activation_span(&self) -> usize {
        match self.rescale {
            Rescale::Groups { size, .. } => size,
            _ => self.cols,
        }
    }

    /// The integer sums that a forward pass rescales, by the same code: for each group g of
    /// [`TernaryMatrix::activation_span`] columns and each row r, `out[g * rows + r]` becomes the sum of `T[r, c] * q[c]`
    /// over the group's columns, modulo 2^32.
    ///
    /// `q` `[cols]` holds one token's quantised activations; `out` is `[groups, rows]`, with one group where the matrix
    /// has no group scales.
    ///
    /// # Errors
    /// [`Error::Length`] for a `q` or an `out` of another length; `out` is unchanged.
    pub fn sums(&self, kernel: Kernel, q: &[i8], out: &mut [i32]) -> Result<(), Error> {
        if q.len() != self.cols {
            return Err(Error::Length { tensor: "quantised activations", found: q.len(), expected: self.cols });
        }
        let expected = self.rows.saturating_mul(self.cols.div_ceil(self.activation_span().max(1)));
        if out.len() != expected {
            return Err(Error::Length { tensor: "sums", found: out.len(), expected });
        }
        kernel.run(Sums { matrix: self, q, out });
        Ok(())
    }

    /// The trits of a row, 16 columns at a time; none for a row beyond the matrix.
    fn row_blocks(&self, row: usize) -> impl Iterator<Item = [i8; BLOCK_COLS]> + use<'w> {
        let tile_bytes = self.cols.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
        let tile = self.packed.chunks_exact(tile_bytes.max(1)).nth(row / TILE_ROWS).unwrap_or(&[]);
        tile.as_chunks::<BLOCK_BYTES>().0.iter().map(move |block| {
            let word = block.as_chunks::<4>().0[row % TILE_ROWS];
            core::array::from_fn(|i| ((word[i % 4] >> (2 * (i / 4))) & 3) as i8 - 1)
        })
    }

    /// The trits of a row, into `out` of `cols` elements. A row beyond the matrix leaves `out` as it is.
    pub fn decode_row(&self, row: usize, out: &mut [i8]) {
        for (trits, out) in self.row_blocks(row).zip(out.chunks_mut(BLOCK_COLS)) {
            out.copy_from_slice(&trits[..out.len()]);
        }
    }

    /// The weights of a row as floats, into `out` of `cols` elements; what an embedding reads.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        for (b, (trits, out)) in self.row_blocks(row).zip(out.chunks_mut(BLOCK_COLS)).enumerate() {
            let scale = match self.rescale {
                Rescale::Multiply(scale) => scale,
                Rescale::Divide(scale) => 1.0 / scale,
                Rescale::Groups { size, .. } => self.group_scale(row, b * BLOCK_COLS / size).map_or(0.0, f16_to_f32),
            };
            for (out, trit) in out.iter_mut().zip(trits) {
                *out = f32::from(trit) * scale;
            }
        }
    }

    /// The scale of a row for one group of columns, as half-precision bits; `None` where the matrix has no such group.
    pub fn group_scale(&self, row: usize, group: usize) -> Option<u16> {
        self.scales_of(row / TILE_ROWS, group).map(|scales| scales[row % TILE_ROWS])
    }

    /// The scales of the 32 rows of a tile for one group of columns.
    fn scales_of(&self, tile: usize, group: usize) -> Option<&'w [u16; TILE_ROWS]> {
        match self.rescale {
            Rescale::Groups { size, scales } => {
                scales.as_chunks::<TILE_ROWS>().0.get(tile * self.cols.div_ceil(size) + group)
            }
            _ => None,
        }
    }

    /// Products of the 32 rows of tile `tile` with T tokens: `y[t][row]`.
    #[inline(always)]
    pub(crate) fn tile_product<S: Simd, const T: usize>(
        &self,
        simd: S,
        tile: usize,
        x: [&[i8]; T],
        scales: [&[ActivationScale]; T],
        y: &mut [[f32; TILE_ROWS]; T],
    ) {
        let tile_bytes = self.cols.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
        let weights = self.packed.get(tile * tile_bytes..(tile + 1) * tile_bytes).unwrap_or(&[]);
        let mut sums = [[0; TILE_ROWS]; T];
        if let Rescale::Groups { size, .. } = self.rescale {
            *y = [[0.0; TILE_ROWS]; T];
            let group_bytes = size / BLOCK_COLS * BLOCK_BYTES;
            for (group, weights) in weights.chunks(group_bytes).enumerate() {
                let x = x.map(|x| x.get(group * size..).unwrap_or(&[]));
                simd.ternary_tile(weights, x, &mut sums);
                let Some(multipliers) = self.scales_of(tile, group) else { continue };
                for ((y, sums), scales) in y.iter_mut().zip(&sums).zip(scales) {
                    let Some(s) = scales.get(group) else { continue };
                    for ((y, sum), m) in y.iter_mut().zip(sums).zip(multipliers) {
                        *y += sum.wrapping_sub(s.sum) as f32 / s.scale * f16_to_f32(*m);
                    }
                }
            }
            return;
        }
        simd.ternary_tile(weights, x, &mut sums);
        for ((y, sums), scales) in y.iter_mut().zip(&sums).zip(scales) {
            let Some(s) = scales.first() else { continue };
            for (y, sum) in y.iter_mut().zip(sums) {
                let acc = sum.wrapping_sub(s.sum) as f32;
                *y = match self.rescale {
                    Rescale::Multiply(scale) => acc / s.scale * scale,
                    Rescale::Divide(scale) => acc / (scale * s.scale),
                    Rescale::Groups { .. } => 0.0,
                };
            }
        }
    }
}

/// [`TernaryMatrix::sums`], once lengths are known to fit.
struct Sums<'a> {
    matrix: &'a TernaryMatrix<'a>,
    q: &'a [i8],
    out: &'a mut [i32],
}

impl Op for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let TernaryMatrix { rows, cols, packed, .. } = *self.matrix;
        let span = self.matrix.activation_span().max(1);
        let tile_bytes = cols.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
        let group_bytes = span.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
        for (group, (q, out)) in self.q.chunks(span).zip(self.out.chunks_mut(rows.max(1))).enumerate() {
            let excess = q.iter().fold(0_i32, |sum, q| sum.wrapping_add(i32::from(*q)));
            // A session has its rows filled up with zeros; here the last block is.
            let (whole, rest) = q.as_chunks::<BLOCK_COLS>();
            let mut last = [0; BLOCK_COLS];
            last[..rest.len()].copy_from_slice(rest);
            for (tile, out) in packed.chunks_exact(tile_bytes.max(1)).zip(out.chunks_mut(TILE_ROWS)) {
                let weights = tile.chunks(group_bytes).nth(group).unwrap_or(&[]);
                let (weights, last_weights) = weights.split_at(weights.len().min(whole.len() * BLOCK_BYTES));
                let (mut sums, mut last_sums) = ([[0; TILE_ROWS]], [[0; TILE_ROWS]]);
                simd.ternary_tile(weights, [q], &mut sums);
                simd.ternary_tile(last_weights, [&last], &mut last_sums);
                for ((out, sum), last) in out.iter_mut().zip(sums[0]).zip(last_sums[0]) {
                    *out = sum.wrapping_add(last).wrapping_sub(excess);
                }
            }
        }
    }
}
