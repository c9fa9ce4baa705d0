//! Ternary matrices: packed trits, multiplied with quantised activations tile by tile.

use crate::Error;
use crate::kernel::{Kernel, Op, Simd, Vector, add_sums};
use crate::numeric::f16_to_f32;
use crate::packing::{BLOCK_BYTES, BLOCK_COLS, Packing, TILE_ROWS, WHOLE_COLS, twos_of_fives};
use crate::quant::ActivationScale;

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
    packing: Packing,
    packed: &'w [u8],
    rescale: Rescale<'w>,
}

impl<'w> TernaryMatrix<'w> {
    /// Scales of a matrix with a scale for each `size` columns.
    pub const fn group_scales(rows: usize, cols: usize, size: usize) -> usize {
        rows.div_ceil(TILE_ROWS).saturating_mul(cols.div_ceil(size)).saturating_mul(TILE_ROWS)
    }

    /// Borrows a packed matrix `[rows, cols]`.
    ///
    /// # Errors
    /// When lengths do not fit the shape, a number stands for no trit, a scale is not finite (or zero where it divides), or
    /// groups are not whole blocks, and whole 16 columns.
    pub fn new(
        rows: usize,
        cols: usize,
        packing: Packing,
        packed: &'w [u8],
        rescale: Rescale<'w>,
    ) -> Result<Self, Error> {
        let expected = packing.bytes(rows, cols);
        if packed.len() != expected {
            return Err(Error::Length { tensor: "packed trits", found: packed.len(), expected });
        }
        let bad_scale = Error::NotFinite { tensor: "scale", layer: None };
        match rescale {
            Rescale::Multiply(scale) if !scale.is_finite() => return Err(bad_scale),
            Rescale::Divide(scale) if !scale.is_finite() || scale == 0.0 => return Err(bad_scale),
            Rescale::Groups { size, .. } if size == 0 || !size.is_multiple_of(packing.whole_cols()) => {
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
        if let Some([row, col]) = packing.first_invalid(packed, cols) {
            return Err(Error::InvalidTrit { row, col });
        }
        Ok(TernaryMatrix { rows, cols, packing, packed, rescale })
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// How the trits lie in memory.
    pub const fn packing(&self) -> Packing {
        self.packing
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

    /// The integer sums that a forward pass rescales, by the same code: for each token t, each group g of
    /// [`TernaryMatrix::activation_span`] columns and each row r, `out[(t * groups + g) * rows + r]` becomes the sum of
    /// `T[r, c] * q[t * cols + c]` over the group's columns, modulo 2^32.
    ///
    /// `q` `[tokens, cols]` holds quantised activations; `out` is `[tokens, groups, rows]`, with one group where the matrix
    /// has no group scales.
    ///
    /// # Errors
    /// [`Error::Length`] for a `q` that is no whole number of tokens, or an `out` of another length; `out` is unchanged.
    pub fn sums(&self, kernel: Kernel, q: &[i8], out: &mut [i32]) -> Result<(), Error> {
        let tokens = q.len() / self.cols.max(1);
        if q.len() != tokens * self.cols {
            return Err(Error::Length {
                tensor: "quantised activations",
                found: q.len(),
                expected: tokens * self.cols,
            });
        }
        let groups = self.cols.div_ceil(self.activation_span().max(1));
        let expected = tokens.saturating_mul(groups).saturating_mul(self.rows);
        if out.len() != expected {
            return Err(Error::Length { tensor: "sums", found: out.len(), expected });
        }
        kernel.run(Sums { matrix: self, q, out });
        Ok(())
    }

    /// The blocks of [`Packing::Twos`] of these trits, however they are packed: `[tiles, blocks, 128]`.
    pub fn blocks_of_twos(&self) -> impl Iterator<Item = [u8; BLOCK_BYTES]> + use<'w> {
        let (twos, fives) = match self.packing {
            Packing::Twos => (self.packed, &[][..]),
            Packing::Fives => (&[][..], self.packed),
        };
        let blocks = self.cols.div_ceil(BLOCK_COLS);
        let tiles = fives.chunks_exact(self.packing.tile_bytes(self.cols).max(1));
        let converted = tiles.flat_map(move |tile| twos_of_fives(tile).flatten().take(blocks));
        twos.as_chunks().0.iter().copied().chain(converted)
    }

    /// The trits of a row, four columns at a time; none for a row beyond the matrix.
    fn row_pieces(&self, row: usize) -> impl Iterator<Item = [i8; 4]> + use<'w> {
        let tile_bytes = self.packing.tile_bytes(self.cols);
        let tile = self.packed.chunks_exact(tile_bytes.max(1)).nth(row / TILE_ROWS).unwrap_or(&[]);
        self.packing.row_pieces(tile, row % TILE_ROWS)
    }

    /// The trits of a row, into `out` of `cols` elements. A row beyond the matrix leaves `out` as it is.
    pub fn decode_row(&self, row: usize, out: &mut [i8]) {
        for (trits, out) in self.row_pieces(row).zip(out.chunks_mut(4)) {
            out.copy_from_slice(&trits[..out.len()]);
        }
    }

    /// The weights of a row as floats, into `out` of `cols` elements; what an embedding reads.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        for (n, (trits, out)) in self.row_pieces(row).zip(out.chunks_mut(4)).enumerate() {
            let scale = match self.rescale {
                Rescale::Multiply(scale) => scale,
                Rescale::Divide(scale) => 1.0 / scale,
                Rescale::Groups { size, .. } => self.group_scale(row, n * 4 / size).map_or(0.0, f16_to_f32),
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
        let packing = self.packing;
        let tile_bytes = packing.tile_bytes(self.cols);
        let weights = self.packed.get(tile * tile_bytes..(tile + 1) * tile_bytes).unwrap_or(&[]);
        let span = self.activation_span();
        *y = [[0.0; TILE_ROWS]; T];
        // Without group scales all columns are one group.
        for (group, weights) in weights.chunks(packing.tile_bytes(span).max(1)).enumerate() {
            let x = x.map(|x| x.get(group * span..).unwrap_or(&[]));
            let mut sums = [[0; TILE_ROWS]; T];
            simd.ternary_tile(packing, weights, x, &mut sums);
            for t in 0..T {
                let Some(s) = scales[t].get(group) else { continue };
                let acc = simd.load_i32(&sums[t], s.sum);
                let product = match self.rescale {
                    Rescale::Multiply(scale) => acc.div(S::V::splat(s.scale)).mul(S::V::splat(scale)),
                    Rescale::Divide(scale) => acc.div(S::V::splat(scale * s.scale)),
                    Rescale::Groups { .. } => {
                        let Some(multipliers) = self.scales_of(tile, group) else { continue };
                        let part = acc.div(S::V::splat(s.scale)).mul(simd.load_f16(multipliers));
                        simd.load(&y[t]).add(part)
                    }
                };
                simd.store(product, &mut y[t]);
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
    fn run<S: Simd>(mut self, simd: S) {
        let TernaryMatrix { cols, packing, packed, .. } = *self.matrix;
        let tokens = self.q.len() / cols.max(1);
        for from in (0..tokens).step_by(TOKENS_AT_ONCE) {
            let to = tokens.min(from + TOKENS_AT_ONCE);
            // Once for all tiles, where activations are quantised over all columns.
            let mut excesses = [0; TOKENS_AT_ONCE];
            for (excess, q) in excesses.iter_mut().zip(self.q[from * cols..to * cols].chunks_exact(cols.max(1))) {
                *excess = excess_of(q);
            }
            for (tile, weights) in packed.chunks_exact(packing.tile_bytes(cols).max(1)).enumerate() {
                let mut first = from;
                while first < to {
                    let excesses = &excesses[first - from..];
                    if const { S::HAS_THIRTY_TWO } && to - first >= 32 && simd.takes_thirty_two() {
                        first += self.some_tokens::<S, 32>(simd, tile, weights, first, excesses);
                        continue;
                    }
                    first += match to - first {
                        8.. => self.some_tokens::<S, 8>(simd, tile, weights, first, excesses),
                        4.. => self.some_tokens::<S, 4>(simd, tile, weights, first, excesses),
                        2.. => self.some_tokens::<S, 2>(simd, tile, weights, first, excesses),
                        _ => self.some_tokens::<S, 1>(simd, tile, weights, first, excesses),
                    };
                }
            }
        }
    }
}

/// Tokens that share a pass over the weights in [`TernaryMatrix::sums`].
const TOKENS_AT_ONCE: usize = 64;

/// By how much sums of (trit + 1) * q exceed sums of trit * q.
#[inline(always)]
fn excess_of(q: &[i8]) -> i32 {
    q.iter().fold(0_i32, |sum, q| sum.wrapping_add(i32::from(*q)))
}

impl Sums<'_> {
    /// The sums of a tile for the T tokens from `first` on, whose excesses over all columns are given; gives T.
    #[inline(always)]
    fn some_tokens<S: Simd, const T: usize>(
        &mut self,
        simd: S,
        tile: usize,
        weights: &[u8],
        first: usize,
        excesses: &[i32],
    ) -> usize {
        let TernaryMatrix { rows, cols, packing, .. } = *self.matrix;
        let span = self.matrix.activation_span().max(1);
        let groups = cols.div_ceil(span);
        for (group, weights) in weights.chunks(packing.tile_bytes(span).max(1)).enumerate() {
            let columns = group * span..cols.min((group + 1) * span);
            let q: [&[i8]; T] = core::array::from_fn(|t| &self.q[(first + t) * cols..][columns.clone()]);
            // A session has its rows filled up with zeros; here the last columns are, where they are no whole blocks.
            let whole = match columns.len() % BLOCK_COLS {
                0 => columns.len(),
                _ => columns.len() - columns.len() % WHOLE_COLS,
            };
            let mut last = [[0; WHOLE_COLS]; T];
            for (last, q) in last.iter_mut().zip(q) {
                last[..q.len() - whole].copy_from_slice(&q[whole..]);
            }
            let (weights, last_weights) = weights.split_at(packing.tile_bytes(whole));
            let pieces = [(weights, q.map(|q| &q[..whole])), (last_weights, last.each_ref().map(|last| &last[..]))];
            let mut sums = [[0; TILE_ROWS]; T];
            for (weights, q) in pieces {
                if !weights.is_empty() {
                    let mut part = [[0; TILE_ROWS]; T];
                    simd.ternary_tile(packing, weights, q, &mut part);
                    add_sums(&mut sums, &part);
                }
            }
            for t in 0..T {
                let excess = if groups == 1 { excesses[t] } else { excess_of(q[t]) };
                let row = ((first + t) * groups + group) * rows + tile * TILE_ROWS;
                let out = &mut self.out[row..][..TILE_ROWS.min(rows - tile * TILE_ROWS)];
                for (out, sum) in out.iter_mut().zip(sums[t]) {
                    *out = sum.wrapping_sub(excess);
                }
            }
        }
        T
    }
}
