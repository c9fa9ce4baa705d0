//! Every kernel against plain loops, on one table of shapes and values.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::{Bf16, CacheFormat, F16, F32, Format, I8, Kernel, Op, Simd, Vector, padded};
use crate::int6::Int6Matrix;
use crate::layer::{Attention, RmsNorm, activate, scores_len};
use crate::matrix::{FloatData, FloatMatrix, Input, Matrix, Outputs};
use crate::numeric::{LANES, f32_to_bf16, f32_to_f16};
use crate::packing::{Packing, TILE_ROWS};
use crate::quant::{ActivationScale, Quantize};
use crate::ternary::{Rescale, TernaryMatrix};
use crate::{Activation, Isa};

/// A small generator: the tests' values, not the sampler's.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

struct Products<'a> {
    matrix: &'a Matrix<'a>,
    inputs: &'a [Input<'a>],
    tile: usize,
    /// `[tokens, tiles * 32]`.
    out: &'a mut [f32],
}

impl Op for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for tile in 0..self.matrix.tiles() {
            self.tile = tile;
            self.matrix.tile_products(simd, tile, self.inputs, &mut self);
        }
    }
}

impl Outputs for Products<'_> {
    #[inline(always)]
    fn take<S: Simd>(&mut self, _: S, input: usize, token: usize, y: &[f32; TILE_ROWS]) {
        let token = token + self.inputs[..input].iter().map(|input| input.tokens).sum::<usize>();
        let stride = self.matrix.tiles() * TILE_ROWS;
        self.out[token * stride + self.tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(y);
    }
}

/// Rows of activations that are zero up to a multiple of 16 columns, and hold what was there before behind it.
fn stale(tokens: usize, cols: usize, stride: usize) -> Vec<i8> {
    let mut row = vec![0; cols.next_multiple_of(16)];
    row.resize(stride, 77);
    row.repeat(tokens)
}

/// Trits `[rows][cols]`, packed.
fn pack(packing: Packing, trits: &[Vec<i8>]) -> Vec<u8> {
    let (rows, cols) = (trits.len(), trits[0].len());
    let mut packed = vec![0; packing.bytes(rows, cols)];
    packing.clear(&mut packed);
    for (row, trits) in trits.iter().enumerate() {
        packing.pack_row(&mut packed, rows, cols, row, trits).unwrap();
    }
    packed
}

/// Checks one shape with all kernels and both packings, for every way of putting 1 to 11 tokens together, and for 45.
fn check_ternary(rows: usize, cols: usize, trit: &mut dyn FnMut() -> i8, q: &mut dyn FnMut() -> i8) {
    let trits: Vec<Vec<i8>> = (0..rows).map(|_| (0..cols).map(|_| trit()).collect()).collect();
    for packing in [Packing::Twos, Packing::Fives] {
        let packed = pack(packing, &trits);
        let matrix = TernaryMatrix::new(rows, cols, packing, &packed, Rescale::Multiply(0.75)).unwrap();
        check_packed(&matrix, &trits, q);
    }
}

fn check_packed(matrix: &TernaryMatrix<'_>, trits: &[Vec<i8>], q: &mut dyn FnMut() -> i8) {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    for (row, trits) in trits.iter().enumerate() {
        let mut decoded = vec![9; cols];
        matrix.decode_row(row, &mut decoded);
        assert_eq!(decoded, *trits);
    }
    let q_stride = cols.next_multiple_of(64) + 64;
    for tokens in [1, 2, 3, 8, 11, 45] {
        let mut quantized = stale(tokens, cols, q_stride);
        let mut scales = Vec::new();
        let mut expected = vec![0.0; tokens * rows];
        for t in 0..tokens {
            let row = &mut quantized[t * q_stride..][..cols];
            row.iter_mut().for_each(|value| *value = q());
            let scale = 1.5 + t as f32;
            scales.push(ActivationScale { scale, sum: row.iter().map(|value| i32::from(*value)).sum() });
            for (r, trits) in trits.iter().enumerate() {
                let acc: i64 = trits.iter().zip(&*row).map(|(t, q)| i64::from(*t) * i64::from(*q)).sum();
                expected[t * rows + r] = acc as f32 / scale * 0.75;
            }
        }
        let input = Input { tokens, x: &[], x_stride: 0, cols, q: &quantized, q_stride, scales: &scales, spans: 1 };
        // Tokens of one session, and of three with memory of their own, of which one has none.
        let cut = tokens / 3;
        let elsewhere = quantized[cut * q_stride..].to_vec();
        let alone = [input];
        let three = [
            Input { tokens: cut, ..input },
            Input { tokens: 0, q: &[], scales: &[], ..input },
            Input { tokens: tokens - cut, q: &elsewhere, scales: &scales[cut..], ..input },
        ];
        for (kernel, inputs) in Kernel::available().flat_map(|kernel| [(kernel, &alone[..]), (kernel, &three[..])]) {
            let stride = rows.next_multiple_of(TILE_ROWS);
            let mut out = vec![f32::NAN; tokens * stride];
            kernel.run(Products { matrix: &(*matrix).into(), inputs, tile: 0, out: &mut out });
            for t in 0..tokens {
                let found = &out[t * stride..][..rows];
                let case = (rows, cols, matrix.packing(), t, inputs.len(), kernel.isa());
                assert_eq!(found, &expected[t * rows..][..rows], "{case:?}");
            }
        }
    }
}

#[test]
fn ternary_products_are_exact_for_every_width() {
    let mut random = Random(1);
    let mut bytes = Random(2);
    for cols in 1..=300 {
        let rows = 1 + cols % 37;
        check_ternary(rows, cols, &mut || (random.next() % 3) as i8 - 1, &mut || bytes.next() as i8);
    }
}

#[test]
fn ternary_products_are_exact_at_the_extremes() {
    for (rows, cols) in [(1, 1), (33, 240), (31, 241), (64, 256), (5, 4096), (95, 1000)] {
        for trit in [-1, 0, 1] {
            for q in [-128, -127, 0, 127] {
                check_ternary(rows, cols, &mut || trit, &mut || q);
            }
        }
    }
}

#[test]
fn group_scales_apply_to_their_columns() {
    let (rows, cols, size) = (40, 272_usize, 32);
    let mut random = Random(3);
    let groups = cols.div_ceil(size);
    let mut scales = vec![0_u16; TernaryMatrix::group_scales(rows, cols, size)];
    let mut trits = Vec::new();
    for row in 0..rows {
        trits.push((0..cols).map(|_| (random.next() % 3) as i8 - 1).collect());
        for group in 0..groups {
            scales[(row / TILE_ROWS * groups + group) * TILE_ROWS + row % TILE_ROWS] = f32_to_f16(random.float().abs());
        }
    }
    let packed = pack(Packing::Twos, &trits);
    let rescale = Rescale::Groups { size, scales: &scales };
    let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, &packed, rescale).unwrap();
    let x = random.floats(cols);
    for kernel in Kernel::available() {
        let mut q = vec![0; cols.next_multiple_of(64)];
        let mut activation_scales = Vec::new();
        for (x, q) in x.chunks(size).zip(q.chunks_mut(size)) {
            activation_scales.push(kernel.run(Quantize { x, out: q }));
        }
        let mut expected = vec![0.0_f32; rows];
        for (row, expected) in expected.iter_mut().enumerate() {
            for group in 0..groups {
                let columns = group * size..cols.min((group + 1) * size);
                let acc: i32 = columns.map(|c| i32::from(trits[row][c]) * i32::from(q[c])).sum();
                let scale = scales[(row / TILE_ROWS * groups + group) * TILE_ROWS + row % TILE_ROWS];
                *expected += acc as f32 / activation_scales[group].scale * crate::numeric::f16_to_f32(scale);
            }
        }
        let input = Input {
            tokens: 1,
            x: &[],
            x_stride: 0,
            cols,
            q: &q,
            q_stride: q.len(),
            scales: &activation_scales,
            spans: groups,
        };
        let mut out = vec![0.0; rows.next_multiple_of(TILE_ROWS)];
        kernel.run(Products { matrix: &matrix.into(), inputs: &[input], tile: 0, out: &mut out });
        assert_eq!(&out[..rows], &expected[..], "{:?}", kernel.isa());
    }
}

#[test]
fn integer_sums_are_those_of_plain_loops() {
    let mut random = Random(6);
    // Group size 0: one scale for the whole matrix.
    for (rows, cols, size) in
        [(1, 1, 0), (33, 15, 0), (31, 17, 0), (64, 240, 0), (40, 333, 0), (5, 4099, 0), (40, 272, 32), (33, 75, 16)]
    {
        let trits: Vec<Vec<i8>> =
            (0..rows).map(|_| (0..cols).map(|_| (random.next() % 3) as i8 - 1).collect()).collect();
        let scales = vec![0; TernaryMatrix::group_scales(rows, cols, size.max(16))];
        let rescale = match size {
            0 => Rescale::Divide(2.0),
            size => Rescale::Groups { size, scales: &scales },
        };
        let span = if size == 0 { cols } else { size };
        let q: Vec<i8> = (0..cols).map(|_| random.next() as i8).collect();
        let mut expected = Vec::new();
        for first in (0..cols).step_by(span) {
            let columns = first..cols.min(first + span);
            let sum = |trits: &Vec<i8>| columns.clone().map(|c| i32::from(trits[c]) * i32::from(q[c])).sum::<i32>();
            expected.extend(trits.iter().map(sum));
        }
        // Fives have no groups of 16 or 32 columns.
        for packing in [Packing::Twos, Packing::Fives].into_iter().take(if size == 0 { 2 } else { 1 }) {
            let packed = pack(packing, &trits);
            let matrix = TernaryMatrix::new(rows, cols, packing, &packed, rescale).unwrap();
            for kernel in Kernel::available() {
                let mut out = vec![i32::MAX; expected.len()];
                matrix.sums(kernel, &q, &mut out).unwrap();
                assert_eq!(out, expected, "{rows} x {cols}, groups of {size}, {packing:?}, {:?}", kernel.isa());
                assert!(matrix.sums(kernel, &q[1..], &mut out).is_err());
                assert!(matrix.sums(kernel, &q, &mut out[1..]).is_err());
                // Several tokens: as many as go together, and some that are left.
                let tokens = 45;
                let shifted: Vec<i8> = (0..tokens).flat_map(|t| q.iter().map(move |q| q.wrapping_add(t))).collect();
                let mut all = vec![i32::MAX; tokens as usize * expected.len()];
                matrix.sums(kernel, &shifted, &mut all).unwrap();
                for (q, sums) in shifted.chunks(cols).zip(all.chunks(expected.len())) {
                    matrix.sums(kernel, q, &mut out).unwrap();
                    assert_eq!(sums, out, "{rows} x {cols}, {packing:?}, {:?}", kernel.isa());
                }
            }
        }
    }
}

/// Checks products and rows of a matrix of six bits a weight with all kernels, for 1 to 11 tokens.
fn check_int6(rows: usize, cols: usize, next: &mut dyn FnMut() -> (i8, u8, i8)) {
    let mut packed = vec![0; Int6Matrix::packed_bytes(rows, cols)];
    let mut weights = Vec::new();
    for row in 0..rows.next_multiple_of(TILE_ROWS) {
        let codes: Vec<i8> = (0..cols).map(|_| next().0).collect();
        let scales: Vec<u8> = (0..cols.div_ceil(16)).map(|_| next().1).collect();
        Int6Matrix::pack_row(&mut packed, rows, cols, row, &codes, &scales).unwrap();
        weights.push((0..cols).map(|c| i32::from(codes[c]) * i32::from(scales[c / 16])).collect::<Vec<_>>());
    }
    let row_scales: Vec<f32> = (0..rows).map(|row| 0.25 + row as f32 / 3.0).collect();
    let matrix = Int6Matrix::new(rows, cols, &packed, &row_scales).unwrap();
    for (row, scale) in row_scales.iter().enumerate() {
        let mut decoded = vec![f32::NAN; cols];
        matrix.row(row, &mut decoded);
        assert_eq!(decoded, weights[row].iter().map(|w| *w as f32 * scale).collect::<Vec<_>>());
    }
    let (q_stride, spans) = (cols.next_multiple_of(64) + 64, cols.div_ceil(128));
    for tokens in [1, 2, 4, 11] {
        let mut q = stale(tokens, cols, q_stride);
        q.chunks_mut(q_stride).for_each(|q| q[..cols].iter_mut().for_each(|q| *q = next().2));
        let scale = |n| ActivationScale { scale: 1.5 + n as f32, sum: 0 };
        let scales: Vec<_> = (0..tokens * spans).map(scale).collect();
        let input = Input { tokens, x: &[], x_stride: 0, cols, q: &q, q_stride, scales: &scales, spans };
        let stride = rows.next_multiple_of(TILE_ROWS);
        let mut expected = vec![0.0; tokens * stride];
        for t in 0..tokens {
            for (row, row_scale) in row_scales.iter().enumerate() {
                let mut y = 0.0;
                for group in 0..spans {
                    let columns = group * 128..cols.min(group * 128 + 128);
                    let sum: i32 = columns.map(|c| weights[row][c] * i32::from(q[t * q_stride + c])).sum();
                    y += sum as f32 / scales[t * spans + group].scale;
                }
                expected[t * stride + row] = y * row_scale;
            }
        }
        for kernel in Kernel::available() {
            let mut out = vec![f32::NAN; tokens * stride];
            kernel.run(Products { matrix: &matrix.into(), inputs: &[input], tile: 0, out: &mut out });
            for (found, expected) in out.chunks(stride).zip(expected.chunks(stride)) {
                assert_eq!(found[..rows], expected[..rows], "{rows} x {cols}, {:?}", kernel.isa());
            }
        }
    }
}

#[test]
fn six_bit_products_follow_the_contract() {
    let mut random = Random(8);
    for cols in (1..70).chain([127, 128, 129, 160, 255, 1000]) {
        check_int6(1 + cols % 37, cols, &mut || {
            ((random.next() % 64) as i8 - 32, random.next() as u8, random.next() as i8)
        });
    }
    for code in [-32, 31] {
        for q in [-128, 127] {
            check_int6(33, 400, &mut || (code, 255, q));
        }
    }
}

/// The contract's dot product, element by element.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i % LANES] += a * b;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[test]
fn float_products_follow_the_contract_in_every_format() {
    let mut random = Random(4);
    for cols in (1..100).chain([128, 333]) {
        let rows = 35;
        let f32s = random.floats(rows * cols);
        let f16s: Vec<u16> = f32s.iter().map(|w| f32_to_f16(*w)).collect();
        let bf16s: Vec<u16> = f32s.iter().map(|w| f32_to_bf16(*w)).collect();
        let i8s: Vec<i8> = f32s.iter().map(|w| (w * 100.0) as i8).collect();
        let scales = random.floats(rows);
        let formats = [
            (FloatData::F32(&f32s), f32s.clone(), vec![1.0; rows]),
            (FloatData::F16(&f16s), f16s.iter().map(|b| crate::numeric::f16_to_f32(*b)).collect(), vec![1.0; rows]),
            (FloatData::Bf16(&bf16s), bf16s.iter().map(|b| crate::numeric::bf16_to_f32(*b)).collect(), vec![1.0; rows]),
            (
                FloatData::I8 { values: &i8s, scales: &scales },
                i8s.iter().map(|b| f32::from(*b)).collect(),
                scales.clone(),
            ),
        ];
        let tokens = 7;
        let x = random.floats(tokens * cols);
        for (data, weights, row_scales) in formats {
            let matrix: Matrix<'_> = FloatMatrix::new(rows, cols, data).unwrap().into();
            let input = Input { tokens, x: &x, x_stride: cols, cols, q: &[], q_stride: 0, scales: &[], spans: 0 };
            for kernel in Kernel::available() {
                let mut out = vec![0.0; tokens * 64];
                kernel.run(Products { matrix: &matrix, inputs: &[input], tile: 0, out: &mut out });
                for t in 0..tokens {
                    for r in 0..rows {
                        let expected = dot(&weights[r * cols..][..cols], &x[t * cols..][..cols]) * row_scales[r];
                        assert_eq!(out[t * 64 + r].to_bits(), expected.to_bits(), "{cols} columns, {:?}", kernel.isa());
                    }
                }
            }
        }
    }
}

/// Runs `f` on every kernel, and compares the bits with the scalar kernel's.
fn same_bits(what: &str, f: impl Fn(Kernel) -> Vec<f32>) {
    let bits = |kernel| f(kernel).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let expected = bits(Kernel::new(Isa::Scalar).unwrap());
    for kernel in Kernel::available() {
        assert_eq!(bits(kernel), expected, "{what} on {:?}", kernel.isa());
    }
}

struct Activate<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Op for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, up) in self.gate.chunks_mut(LANES).zip(self.up.chunks(LANES)) {
            activate(simd, self.activation, gate, &padded(up));
        }
    }
}

#[test]
fn norms_and_activations_have_the_same_bits() {
    let mut random = Random(5);
    for count in 1..140 {
        let x: Vec<f32> = (0..count).map(|_| random.float() * 20.0).collect();
        let other = random.floats(count);
        same_bits("RmsNorm", |kernel| {
            let mut x = x.clone();
            kernel.run(RmsNorm { x: &mut x, weight: &other, eps: 1e-5 });
            x
        });
        for activation in [Activation::Relu2, Activation::Silu] {
            same_bits("activation", |kernel| {
                let mut gate = x.clone();
                kernel.run(Activate { activation, gate: &mut gate, up: &other });
                gate
            });
        }
    }
}

fn check_attention<F: CacheFormat>(head_dim: usize, positions: usize, convert: impl Fn(f32) -> F::Bits) {
    let mut random = Random((head_dim * 1000 + positions) as u64);
    let keys: Vec<f32> = random.floats(head_dim * positions);
    let values: Vec<f32> = random.floats(head_dim * positions);
    // As many heads as are computed by four, two and one.
    let queries: Vec<f32> = random.floats(7 * head_dim).iter().map(|q| q * 8.0).collect();
    let (k, v): (Vec<_>, Vec<_>) = keys.iter().zip(&values).map(|(k, v)| (convert(*k), convert(*v))).unzip();
    let run = |kernel: Kernel, queries: &[f32]| {
        let mut out = queries.to_vec();
        let mut scores = vec![0.0; queries.len() / head_dim * scores_len(positions)];
        kernel.run(Attention::<F> { queries: &mut out, head_dim, keys: &k, values: &v, scores: &mut scores });
        out
    };
    same_bits("attention", |kernel| run(kernel, &queries));
    same_bits("attention of each head alone, or of all", |kernel| match kernel.isa() {
        Isa::Scalar => run(kernel, &queries),
        _ => queries.chunks(head_dim).flat_map(|query| run(kernel, query)).collect(),
    });
    let query = &queries[..head_dim];
    // In double precision, of the numbers before they were rounded to the cache's format.
    let scores: Vec<f64> = keys
        .chunks(head_dim)
        .map(|key| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>())
        .map(|score| score / (head_dim as f64).sqrt())
        .collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
    let tolerance = if size_of::<F::Bits>() == 4 { 1e-5 } else { 4e-3 };
    for (i, found) in run(Kernel::detect(), query).iter().enumerate() {
        let exact: f64 =
            scores.iter().enumerate().map(|(p, s)| (s - largest).exp() * f64::from(values[p * head_dim + i])).sum();
        assert!((f64::from(*found) - exact / total).abs() < tolerance, "{head_dim} x {positions}: {found} for {exact}");
    }
}

#[test]
fn attention_has_the_same_bits_and_is_right() {
    for head_dim in [2, 8, 30, 32, 34, 64, 96, 128, 130, 256] {
        for positions in [1, 2, 31, 32, 33, 63, 64, 65, 129, 200] {
            check_attention::<F32>(head_dim, positions, |v| v);
            check_attention::<F16>(head_dim, positions, f32_to_f16);
        }
    }
}

struct LoadAll<'a> {
    bits: &'a [u16; LANES],
}

impl Op for LoadAll<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut all = Vec::new();
        let mut lanes = [0.0; LANES];
        for v in [
            F16::load(simd, self.bits),
            Bf16::load(simd, self.bits),
            I8::load(simd, &self.bits.map(|b| b as i8)),
            F32::load(simd, &self.bits.map(f32::from)),
        ] {
            simd.store(v, &mut lanes);
            all.extend_from_slice(&lanes);
            simd.store(v.abs().max(S::V::splat(0.5)).min(S::V::splat(9.0)), &mut lanes);
            all.extend_from_slice(&lanes);
            all.push(simd.sum(v));
            let others = [v, v.mul(v), v.add(S::V::splat(0.5)), v.abs()];
            let sums = simd.sums(others);
            all.extend(sums);
            for (sum, v) in sums.into_iter().zip(others) {
                assert_eq!(sum.to_bits(), simd.sum(v).to_bits());
            }
            let mut half = [0; LANES];
            simd.store_f16(v, &mut half);
            all.extend(half.map(f32::from));
        }
        all
    }
}

#[test]
fn conversions_have_the_same_bits() {
    // Every bit pattern that is finite in both formats.
    let finite = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00 && bits & 0x7f80 != 0x7f80);
    let patterns: Vec<u16> = finite.collect();
    for chunk in patterns.chunks(LANES) {
        same_bits("conversions", |kernel| kernel.run(LoadAll { bits: &padded(chunk) }));
    }
}
