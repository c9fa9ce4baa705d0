//! Weight matrices of either kind, multiplied tile by tile, and the norm that some checkpoints put before them.

use crate::Error;
use crate::int6::{self, Int6Matrix, Int6Product};
use crate::kernel::{Bf16, F16, F32, Format, I8, Op, Simd, Vector, padded, prefetch_lines};
use crate::numeric::LANES;
use crate::packing::{BLOCK_COLS, TILE_ROWS};
use crate::quant::ActivationScale;
use crate::ternary::TernaryMatrix;

/// The numbers of a float matrix, row by row.
#[derive(Debug, Clone, Copy)]
pub enum FloatData<'w> {
    /// Single precision.
    F32(&'w [f32]),
    /// Half-precision bits.
    F16(&'w [u16]),
    /// bfloat16 bits.
    Bf16(&'w [u16]),
    /// Small integers, and a multiplier for each row.
    I8 {
        /// `[rows, cols]`.
        values: &'w [i8],
        /// `[rows]`.
        scales: &'w [f32],
    },
}

/// A float weight matrix `[rows, cols]` in borrowed memory: embeddings, heads, and projections that stay float.
#[derive(Debug, Clone, Copy)]
pub struct FloatMatrix<'w> {
    rows: usize,
    cols: usize,
    data: FloatData<'w>,
}

impl<'w> FloatMatrix<'w> {
    /// Borrows a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Length`] when the data does not fit the shape, [`Error::NotFinite`] for a bad row scale.
    pub fn new(rows: usize, cols: usize, data: FloatData<'w>) -> Result<Self, Error> {
        let found = match data {
            FloatData::F32(values) => values.len(),
            FloatData::F16(bits) | FloatData::Bf16(bits) => bits.len(),
            FloatData::I8 { values, scales } => {
                if scales.len() != rows {
                    return Err(Error::Length { tensor: "row scales", found: scales.len(), expected: rows });
                }
                if scales.iter().any(|scale| !scale.is_finite()) {
                    return Err(Error::NotFinite { tensor: "row scales", layer: None });
                }
                values.len()
            }
        };
        let expected = rows.saturating_mul(cols);
        if found != expected {
            return Err(Error::Length { tensor: "float matrix", found, expected });
        }
        Ok(FloatMatrix { rows, cols, data })
    }

    /// The numbers.
    pub const fn data(&self) -> FloatData<'w> {
        self.data
    }

    /// Products of the rows of tile `tile` with T tokens: `y[t][row]`. Rows beyond the matrix are left as they are.
    #[inline(always)]
    fn tile_product<S: Simd, const T: usize>(
        &self,
        simd: S,
        tile: usize,
        x: [&[f32]; T],
        y: &mut [[f32; TILE_ROWS]; T],
    ) {
        let first = tile * TILE_ROWS;
        let (rows, cols) = (TILE_ROWS.min(self.rows.saturating_sub(first)), self.cols);
        match self.data {
            FloatData::F32(w) => simd.run(RowsProduct::<F32, T> { cols, rows, weights: w.get(first * cols..), x, y }),
            FloatData::F16(w) => simd.run(RowsProduct::<F16, T> { cols, rows, weights: w.get(first * cols..), x, y }),
            FloatData::Bf16(w) => simd.run(RowsProduct::<Bf16, T> { cols, rows, weights: w.get(first * cols..), x, y }),
            FloatData::I8 { values, scales } => {
                simd.run(RowsProduct::<I8, T> { cols, rows, weights: values.get(first * cols..), x, y: &mut *y });
                for y in y {
                    for (y, scale) in y.iter_mut().zip(scales.iter().skip(first)) {
                        *y *= scale;
                    }
                }
            }
        }
    }

    /// The weights of a row, into `out` of `cols` elements.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize, out: &mut [f32]) {
        let start = row * self.cols;
        match self.data {
            FloatData::F32(w) => row_to_f32::<S, F32>(simd, w.get(start..), 1.0, out),
            FloatData::F16(w) => row_to_f32::<S, F16>(simd, w.get(start..), 1.0, out),
            FloatData::Bf16(w) => row_to_f32::<S, Bf16>(simd, w.get(start..), 1.0, out),
            FloatData::I8 { values, scales } => {
                let scale = scales.get(row).copied().unwrap_or(0.0);
                row_to_f32::<S, I8>(simd, values.get(start..), scale, out);
            }
        }
    }
}

/// `y[t][r]` = the dot product of row r of `weights` `[rows, cols]` with `x[t]` `[cols]`, in the contract's order.
struct RowsProduct<'a, F: Format, const T: usize> {
    cols: usize,
    rows: usize,
    weights: Option<&'a [F::Bits]>,
    x: [&'a [f32]; T],
    y: &'a mut [[f32; TILE_ROWS]; T],
}

impl<F: Format, const T: usize> Op for RowsProduct<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let RowsProduct { cols, rows, weights, x, y } = self;
        let weights = weights.unwrap_or(&[]);
        let tails = x.map(|x| padded(x.as_chunks::<LANES>().1));
        let x = x.map(|x| x.as_chunks::<LANES>().0);
        let least = x.iter().fold(cols / LANES, |least, x| least.min(x.len()));
        // Two chunks at a time, and no branch between: more loads wait for memory at once.
        let x_pairs = x.map(|x| &x.as_chunks::<2>().0[..least / 2]);
        let x_last = x.map(|x| &x[least / 2 * 2..least]);
        for (r, row) in weights.chunks_exact(cols.max(1)).take(rows).enumerate() {
            let (chunks, tail) = row.as_chunks::<LANES>();
            let (pairs, last) = chunks[..least].as_chunks::<2>();
            let mut sums = [S::V::splat(0.0); T];
            for (i, pair) in pairs.iter().enumerate() {
                prefetch_lines(simd, pair.as_flattened());
                for (j, chunk) in pair.iter().enumerate() {
                    let w = F::load(simd, chunk);
                    for (sum, x) in sums.iter_mut().zip(x_pairs) {
                        *sum = sum.add(w.mul(simd.load(&x[i][j])));
                    }
                }
            }
            for (i, chunk) in last.iter().enumerate() {
                let w = F::load(simd, chunk);
                for (sum, x) in sums.iter_mut().zip(x_last) {
                    *sum = sum.add(w.mul(simd.load(&x[i])));
                }
            }
            if !tail.is_empty() {
                let w = F::load(simd, &padded(tail));
                for (sum, x) in sums.iter_mut().zip(&tails) {
                    *sum = sum.add(w.mul(simd.load(x)));
                }
            }
            let (fours, rest) = sums.as_chunks::<4>();
            let (y_fours, y_rest) = y.as_chunks_mut::<4>();
            for (y, sums) in y_fours.iter_mut().zip(fours) {
                for (y, sum) in y.iter_mut().zip(simd.sums(*sums)) {
                    y[r] = sum;
                }
            }
            for (y, sum) in y_rest.iter_mut().zip(rest) {
                y[r] = simd.sum(*sum);
            }
        }
    }
}

#[inline(always)]
fn row_to_f32<S: Simd, F: Format>(simd: S, row: Option<&[F::Bits]>, scale: f32, out: &mut [f32]) {
    let row = row.unwrap_or(&[]);
    for (row, out) in row.chunks(LANES).zip(out.chunks_mut(LANES)) {
        simd.store_part(F::load(simd, &padded(row)).mul(S::V::splat(scale)), out);
    }
}

/// A weight matrix.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'w> {
    /// Trits: activations are quantised to int8 first.
    Ternary(TernaryMatrix<'w>),
    /// Floats: activations are used as they are.
    Float(FloatMatrix<'w>),
    /// Six bits a weight: activations are quantised to int8 in groups of columns.
    Int6(Int6Matrix<'w>),
}

impl<'w> From<TernaryMatrix<'w>> for Matrix<'w> {
    fn from(matrix: TernaryMatrix<'w>) -> Self {
        Matrix::Ternary(matrix)
    }
}

impl<'w> From<FloatMatrix<'w>> for Matrix<'w> {
    fn from(matrix: FloatMatrix<'w>) -> Self {
        Matrix::Float(matrix)
    }
}

impl<'w> From<Int6Matrix<'w>> for Matrix<'w> {
    fn from(matrix: Int6Matrix<'w>) -> Self {
        Matrix::Int6(matrix)
    }
}

impl Matrix<'_> {
    /// `[rows, cols]`.
    pub const fn shape(&self) -> [usize; 2] {
        match self {
            Matrix::Ternary(m) => [m.rows(), m.cols()],
            Matrix::Float(m) => [m.rows, m.cols],
            Matrix::Int6(m) => [m.rows(), m.cols()],
        }
    }

    /// Columns that activations are quantised over; `None` where they stay floats.
    pub const fn activation_span(&self) -> Option<usize> {
        match self {
            Matrix::Ternary(m) => Some(m.activation_span()),
            Matrix::Float(_) => None,
            Matrix::Int6(_) => Some(int6::GROUP_COLS),
        }
    }

    /// Tiles of 32 rows.
    pub(crate) const fn tiles(&self) -> usize {
        self.shape()[0].div_ceil(TILE_ROWS)
    }

    /// Row-blocks that a tile costs for one token: by how many more bytes it has than one of trits, and how much slower they
    /// are computed with.
    pub(crate) fn tile_cost(&self) -> usize {
        match self {
            Matrix::Ternary(_) => 1,
            Matrix::Int6(_) => 2,
            Matrix::Float(matrix) => match matrix.data() {
                FloatData::I8 { .. } => 2,
                FloatData::F16(_) | FloatData::Bf16(_) => 4,
                FloatData::F32(_) => 8,
            },
        }
    }

    /// The weights of a row as floats, into `out` of `cols` elements.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(&self, simd: S, row: usize, out: &mut [f32]) {
        match self {
            Matrix::Ternary(m) => m.row(row, out),
            Matrix::Float(m) => m.row(simd, row, out),
            Matrix::Int6(m) => m.row(row, out),
        }
    }

    /// Hands the products of the rows of tile `tile` to `outputs`, for every token of each of `inputs`.
    #[inline(always)]
    pub(crate) fn tile_products<S: Simd>(
        &self,
        simd: S,
        tile: usize,
        inputs: &[Input<'_>],
        outputs: &mut impl Outputs,
    ) {
        let mut left = inputs.iter().map(|input| input.tokens).sum::<usize>();
        let mut next = Place { input: 0, token: 0 };
        while left > 0 {
            let takes_many = matches!(self, Matrix::Ternary(_)) && simd.takes_thirty_two();
            if const { S::HAS_THIRTY_TWO } && takes_many && left >= 32 {
                left -= self.some_products::<S, 32>(simd, tile, inputs, &mut next, outputs);
                continue;
            }
            // Eight tokens keep every vector register busy; a token's bits do not depend on how many go together.
            left -= match left {
                8.. => self.some_products::<S, 8>(simd, tile, inputs, &mut next, outputs),
                4.. => self.some_products::<S, 4>(simd, tile, inputs, &mut next, outputs),
                2.. => self.some_products::<S, 2>(simd, tile, inputs, &mut next, outputs),
                _ => self.some_products::<S, 1>(simd, tile, inputs, &mut next, outputs),
            };
        }
    }

    /// [`Matrix::tile_products`] for the T tokens that begin at `next`, which moves on; gives T.
    #[inline(always)]
    fn some_products<S: Simd, const T: usize>(
        &self,
        simd: S,
        tile: usize,
        inputs: &[Input<'_>],
        next: &mut Place,
        outputs: &mut impl Outputs,
    ) -> usize {
        let mut y = [[0.0; TILE_ROWS]; T];
        let places: [Place; T] = core::array::from_fn(|_| next.step(inputs));
        if let Matrix::Ternary(m) = self {
            let (q, scales) = (places.map(|place| place.q(inputs)), places.map(|place| place.scales(inputs)));
            m.tile_product(simd, tile, q, scales, &mut y);
        } else if const { T <= 8 } {
            // Nothing else takes more tokens together, and what is not used need not be compiled.
            match self {
                Matrix::Ternary(_) => {}
                Matrix::Int6(m) => {
                    let (q, scales) = (places.map(|place| place.q(inputs)), places.map(|place| place.scales(inputs)));
                    simd.run(Int6Product { matrix: m, tile, x: q, scales, y: &mut y });
                }
                Matrix::Float(m) => m.tile_product(simd, tile, places.map(|place| place.x(inputs)), &mut y),
            }
        }
        for (place, y) in places.into_iter().zip(&y) {
            outputs.take(simd, place.input, place.token, y);
        }
        T
    }
}

/// What becomes of a tile's products. No closure, since the compiler does not give one the features of its kernel.
pub(crate) trait Outputs {
    /// Takes the products `y` of the tile's rows with token `token` of input `input`. To be `#[inline(always)]`.
    fn take<S: Simd>(&mut self, simd: S, input: usize, token: usize, y: &[f32; TILE_ROWS]);
}

/// A token of one of several inputs.
#[derive(Clone, Copy)]
struct Place {
    input: usize,
    token: usize,
}

impl Place {
    /// The first token from here on; the place moves behind it.
    #[inline(always)]
    fn step(&mut self, inputs: &[Input<'_>]) -> Self {
        while inputs.get(self.input).is_some_and(|input| input.tokens <= self.token) {
            *self = Place { input: self.input + 1, token: 0 };
        }
        let here = *self;
        self.token += 1;
        here
    }

    #[inline(always)]
    fn x<'a>(self, inputs: &'a [Input<'_>]) -> &'a [f32] {
        inputs.get(self.input).map_or(&[], |input| input.x(self.token))
    }

    #[inline(always)]
    fn q<'a>(self, inputs: &'a [Input<'_>]) -> &'a [i8] {
        inputs.get(self.input).map_or(&[], |input| input.q(self.token))
    }

    #[inline(always)]
    fn scales<'a>(self, inputs: &'a [Input<'_>]) -> &'a [ActivationScale] {
        inputs.get(self.input).map_or(&[], |input| input.scales(self.token))
    }
}

/// A session's batch of activations: as floats `[tokens, cols]`, and quantised.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// Rows.
    pub(crate) tokens: usize,
    /// Floats in rows of `x_stride`.
    pub(crate) x: &'a [f32],
    /// Elements from row to row of `x`.
    pub(crate) x_stride: usize,
    /// Columns that hold data.
    pub(crate) cols: usize,
    /// Quantised values in rows of `q_stride`, with zeros beyond `cols` up to a multiple of 16.
    pub(crate) q: &'a [i8],
    /// Elements from row to row of `q`; a multiple of 16.
    pub(crate) q_stride: usize,
    /// Scales in rows of `spans`.
    pub(crate) scales: &'a [ActivationScale],
    /// Scales of a row.
    pub(crate) spans: usize,
}

impl Input<'_> {
    #[inline(always)]
    fn x(&self, token: usize) -> &[f32] {
        self.x.get(token * self.x_stride..).and_then(|x| x.get(..self.cols)).unwrap_or(&[])
    }

    #[inline(always)]
    fn q(&self, token: usize) -> &[i8] {
        let cols = self.cols.next_multiple_of(BLOCK_COLS);
        self.q.get(token * self.q_stride..).and_then(|q| q.get(..cols)).unwrap_or(&[])
    }

    #[inline(always)]
    fn scales(&self, token: usize) -> &[ActivationScale] {
        self.scales.get(token * self.spans..).and_then(|s| s.get(..self.spans)).unwrap_or(&[])
    }
}

/// A projection: a matrix, and the `RMSNorm` that checkpoints with `use_rms_norm` apply to its input.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'w> {
    /// The weights.
    pub matrix: Matrix<'w>,
    /// Weights of the norm `[cols]`.
    pub norm: Option<&'w [f32]>,
}
