//! Numbers and matrices to launch kernels with: the same at every run.

use trion_core::numeric::{bf16_to_f32, f16_to_f32};
use trion_core::{FloatData, FloatMatrix, Matrix, Rescale, TernaryMatrix};

use super::case::{Case, Format};
use super::reference::{self, Span};
use crate::error::Result;
use crate::layout::{Kind, Packing, matrix_image};

/// What happens to an output; as `SINK_...` in `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Sink {
    Store = 0,
    Add = 1,
    Relu2 = 2,
    Silu = 3,
}

impl Sink {
    pub(super) const ALL: [Sink; 4] = [Sink::Store, Sink::Add, Sink::Relu2, Sink::Silu];
}

/// How a ternary matrix is rescaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Multiply(f32),
    Divide(f32),
    /// Groups of so many columns.
    Groups(usize),
}

/// Numbers without a pattern: xorshift64 (Marsaglia 2003).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u32
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.bits() as usize % limit
    }

    /// Of either sign, 1/16 to 4 in magnitude.
    pub(super) fn float(&mut self) -> f32 {
        let (bits, exponent) = (self.bits(), 123 + self.below(6) as u32);
        f32::from_bits((bits & 0x807f_ffff) | exponent << 23)
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn trits(&mut self, count: usize) -> Vec<i8> {
        let mut trits = Vec::with_capacity(count + 16);
        while trits.len() < count {
            let bits = self.bits();
            // A code of 3 becomes a 1.
            trits.extend((0..16).map(|i| [-1, 0, 1, 0][(bits >> (2 * i)) as usize & 3]));
        }
        trits.truncate(count);
        trits
    }

    /// One of the two rules for a whole matrix.
    pub(super) fn rule(&mut self) -> Rule {
        let scale = self.float();
        if self.below(2) == 0 { Rule::Multiply(scale) } else { Rule::Divide(scale) }
    }
}

/// A ternary matrix.
pub(super) struct Trits {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) rule: Rule,
    trits: Vec<i8>,
    /// Half-precision bits `[rows, groups]`.
    multipliers: Vec<u16>,
    /// Weights and scales as they lie on the device.
    image: (Vec<u8>, Vec<u8>),
}

impl Trits {
    pub(super) fn new(random: &mut Random, rows: usize, cols: usize, rule: Rule) -> Result<Self> {
        Self::packed(random, [rows, cols], rule, Packing::Twos)
    }

    /// Stored in this way.
    pub(super) fn packed(random: &mut Random, [rows, cols]: [usize; 2], rule: Rule, packing: Packing) -> Result<Self> {
        let trits = random.trits(rows * cols);
        let twos = trion_core::Packing::Twos;
        let mut packed = vec![0; twos.bytes(rows, cols)];
        twos.clear(&mut packed);
        for (row, trits) in trits.chunks_exact(cols).enumerate() {
            twos.pack_row(&mut packed, rows, cols, row, trits)?;
        }
        let size = if let Rule::Groups(size) = rule { size } else { cols };
        let groups = cols.div_ceil(size);
        // Subnormal halves too.
        let half = |bits: u32| (bits & 0x83ff) as u16 | (((bits >> 16) % 20) as u16 * 0x400);
        let multipliers: Vec<u16> = (0..rows * groups).map(|_| half(random.bits())).collect();
        let mut scales = vec![0; TernaryMatrix::group_scales(rows, cols, size)];
        for (i, multiplier) in multipliers.iter().enumerate() {
            let (row, group) = (i / groups, i % groups);
            scales[(row / 32 * groups + group) * 32 + row % 32] = *multiplier;
        }
        let rescale = match rule {
            Rule::Multiply(scale) => Rescale::Multiply(scale),
            Rule::Divide(scale) => Rescale::Divide(scale),
            Rule::Groups(size) => Rescale::Groups { size, scales: &scales },
        };
        let image = matrix_image(&Matrix::from(TernaryMatrix::new(rows, cols, twos, &packed, rescale)?), packing);
        Ok(Trits { rows, cols, rule, trits, multipliers, image })
    }

    /// Columns that activations are quantised over.
    pub(super) fn span(&self) -> usize {
        if let Rule::Groups(size) = self.rule { size } else { self.cols }
    }

    /// Puts it into a case: the addresses of the weights and of the scales.
    pub(super) fn put(&self, case: &mut Case) -> [u64; 2] {
        let weights = case.piece("weights", Format::U32, &self.image.0);
        let scales = match self.rule {
            Rule::Groups(_) => case.piece("multipliers", Format::U32, &self.image.1),
            _ => 0,
        };
        [weights, scales]
    }

    /// The scale of the whole matrix, and whether it divides.
    pub(super) fn scale(&self) -> (f32, bool) {
        match self.rule {
            Rule::Multiply(scale) => (scale, false),
            Rule::Divide(scale) => (scale, true),
            Rule::Groups(_) => (1.0, false),
        }
    }

    fn row(&self, row: usize) -> (&[i8], &[u16]) {
        let groups = self.cols.div_ceil(self.span());
        let (trits, multipliers) = (&self.trits[row * self.cols..], &self.multipliers[row * groups..]);
        (&trits[..self.cols], &multipliers[..groups])
    }

    /// The products of all rows with one input.
    pub(super) fn products(&self, input: &[Span]) -> Vec<f32> {
        let product = |row| {
            let (trits, multipliers) = self.row(row);
            reference::ternary_product(trits, self.rule, multipliers, input)
        };
        (0..self.rows).map(product).collect()
    }

    /// A row of the embedding that it would be.
    pub(super) fn embedding(&self, row: usize) -> Vec<f32> {
        let (trits, multipliers) = self.row(row);
        let scale = |c: usize| match self.rule {
            Rule::Multiply(m) => m,
            Rule::Divide(d) => 1.0 / d,
            Rule::Groups(size) => f16_to_f32(multipliers[c / size]),
        };
        trits.iter().enumerate().map(|(c, t)| f32::from(*t) * scale(c)).collect()
    }
}

/// A matrix of floats, or of bytes with a scale for each row.
pub(super) struct Floats {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// The weights, without the rows' scales.
    values: Vec<f32>,
    row_scales: Option<Vec<f32>>,
    image: (Vec<u8>, Vec<u8>),
}

impl Floats {
    /// With a NaN, infinities and subnormal numbers somewhere, if `odd` says so; never in bytes.
    pub(super) fn new(random: &mut Random, kind: Kind, rows: usize, cols: usize, odd: bool) -> Result<Self> {
        let count = rows * cols;
        let mut values = random.floats(count);
        if odd {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 3e-6, 1e-40] {
                values[random.below(count)] = value;
            }
        }
        let mut row_scales = None;
        let image = match kind {
            Kind::F16 => {
                let bits: Vec<u16> = values.iter().map(|v| trion_core::numeric::f32_to_f16(*v)).collect();
                values = bits.iter().map(|bits| f16_to_f32(*bits)).collect();
                image(rows, cols, FloatData::F16(&bits))?
            }
            Kind::Bf16 => {
                let bits: Vec<u16> = values.iter().map(|v| trion_core::numeric::f32_to_bf16(*v)).collect();
                values = bits.iter().map(|bits| bf16_to_f32(*bits)).collect();
                image(rows, cols, FloatData::Bf16(&bits))?
            }
            Kind::I8 => {
                let bytes: Vec<i8> = (0..count).map(|_| random.bits() as i8).collect();
                values = bytes.iter().map(|byte| f32::from(*byte)).collect();
                let scales = random.floats(rows);
                let image = image(rows, cols, FloatData::I8 { values: &bytes, scales: &scales })?;
                row_scales = Some(scales);
                image
            }
            _ => image(rows, cols, FloatData::F32(&values))?,
        };
        Ok(Floats { rows, cols, values, row_scales, image })
    }

    /// Puts it into a case: the addresses of the weights and of the scales.
    pub(super) fn put(&self, case: &mut Case) -> [u64; 2] {
        let weights = case.piece("weights", Format::U32, &self.image.0);
        let scales = if self.row_scales.is_some() { case.piece("row scales", Format::U32, &self.image.1) } else { 0 };
        [weights, scales]
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The products of all rows with one input.
    pub(super) fn products(&self, x: &[f32]) -> Vec<f32> {
        let product = |row| {
            let y = reference::dot(self.row(row), x);
            self.row_scales.as_ref().map_or(y, |scales| y * scales[row])
        };
        (0..self.rows).map(product).collect()
    }

    /// A row of the embedding that it would be.
    pub(super) fn embedding(&self, row: usize) -> Vec<f32> {
        let scale = self.row_scales.as_ref().map_or(1.0, |scales| scales[row]);
        self.row(row).iter().map(|w| w * scale).collect()
    }
}

fn image(rows: usize, cols: usize, data: FloatData<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    Ok(matrix_image(&Matrix::from(FloatMatrix::new(rows, cols, data)?), Packing::Twos))
}
