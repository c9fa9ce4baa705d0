//! The number formats of tensors: ggml's, bitnet.cpp's and Prism's (docs/formats.md has the layouts).

use std::borrow::Cow;

use trion_core::numeric::f16_to_f32;

use crate::source::FloatType;

/// How a matrix stores its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float(FloatType),
    Q8_0,
    Q6K,
    Tq1_0,
    Tq2_0,
    /// One float scale behind all trits.
    I2S,
    /// Two bits in blocks of so many weights.
    Q2 {
        block: usize,
    },
}

/// A row that holds something other than trits.
pub(super) struct NotATrit {
    pub(super) col: usize,
}

impl Kind {
    /// The format with ggml's number `kind`, of a tensor of `count` weights with `room` bytes before the next one.
    ///
    /// # Errors
    /// What is wrong with the number.
    pub(super) fn new(kind: u32, count: usize, room: usize) -> Result<Self, String> {
        Ok(match kind {
            0 => Kind::Float(FloatType::F32),
            1 => Kind::Float(FloatType::F16),
            8 => Kind::Q8_0,
            14 => Kind::Q6K,
            30 => Kind::Float(FloatType::Bf16),
            34 => Kind::Tq1_0,
            35 => Kind::Tq2_0,
            36 => Kind::I2S,
            // Upstream blocks of 64 take 18 bytes; Prism's older files use the same number for 128 in 34. Only the space
            // up to the next tensor tells. Below 2048 weights the padding may hide the difference; that is read as upstream's.
            42 if room >= count / 64 * 18 => Kind::Q2 { block: 64 },
            42 | 142 => Kind::Q2 { block: 128 },
            other => {
                let name = match other {
                    2 => " (Q4_0)",
                    12 => " (Q4_K)",
                    13 => " (Q5_K)",
                    143 => " (PTQ1_0)",
                    _ => "",
                };
                return Err(format!(
                    "has type {other}{name}; supported are F32, F16, BF16, Q8_0, Q6_K, TQ1_0, TQ2_0, I2_S and Q2_0"
                ));
            }
        })
    }

    /// Weights and bytes of a block.
    pub(super) const fn block(self) -> (usize, usize) {
        match self {
            Kind::Float(FloatType::F32) => (1, 4),
            Kind::Float(_) => (1, 2),
            Kind::Q8_0 => (32, 34),
            Kind::Q6K => (256, 210),
            Kind::Tq1_0 => (256, 54),
            Kind::Tq2_0 => (256, 66),
            Kind::I2S => (128, 32),
            Kind::Q2 { block } => (block, block / 4 + 2),
        }
    }

    /// Bytes that follow the blocks of a tensor.
    pub(super) const fn tail(self) -> usize {
        if matches!(self, Kind::I2S) { 4 } else { 0 }
    }

    /// Half-precision bits of the scale of a block of trits.
    pub(super) fn scale(self, block: &[u8]) -> u16 {
        let at = match self {
            Kind::Tq1_0 => 52,
            Kind::Tq2_0 => 64,
            _ => 0,
        };
        block.get(at..at + 2).map_or(0, |le| u16::from_le_bytes([le[0], le[1]]))
    }

    /// The trits of a block.
    pub(super) fn trits(self, block: &[u8], out: &mut [i8]) -> Result<(), NotATrit> {
        for (i, out) in out.iter_mut().enumerate() {
            let code = self.code(block, i);
            // bitnet.cpp reads an I2_S code of 3 as no weight.
            *out = match code {
                0..=2 => code as i8 - 1,
                _ if self == Kind::I2S => 0,
                _ => return Err(NotATrit { col: i }),
            };
        }
        Ok(())
    }

    /// The code 0 to 3 of weight `i` of a block.
    fn code(self, block: &[u8], i: usize) -> u8 {
        let two_bits = |byte: usize, shift: usize| (block.get(byte).copied().unwrap_or(3) >> shift) & 3;
        match self {
            Kind::I2S => two_bits(i % 32, 6 - 2 * (i / 32)),
            Kind::Tq2_0 => two_bits(32 * (i / 128) + i % 32, 2 * (i % 128 / 32)),
            Kind::Q2 { .. } => two_bits(2 + i / 4, 2 * (i % 4)),
            _ => {
                // TQ1_0: five trits a byte, the highest power of three first, as a fraction of 256.
                let (byte, power) = match i {
                    0..160 => (i % 32, i / 32),
                    160..240 => (32 + (i - 160) % 16, (i - 160) / 16),
                    _ => (48 + (i - 240) % 4, (i - 240) / 4),
                };
                let fraction = block.get(byte).copied().unwrap_or(0).wrapping_mul([1, 3, 9, 27, 81][power]);
                ((u16::from(fraction) * 3) >> 8) as u8
            }
        }
    }

    /// A block's scale that is not finite, in a format that is decoded to floats.
    pub(super) fn bad_float_scale(self, bytes: &[u8]) -> Option<f32> {
        let at = match self {
            Kind::Q8_0 => 0,
            Kind::Q6K => 208,
            _ => return None,
        };
        bytes.chunks_exact(self.block().1).map(|block| half(block, at)).find(|scale| !scale.is_finite())
    }

    /// A float matrix: borrowed where it is stored as floats, otherwise decoded to singles without loss.
    pub(super) fn floats(self, bytes: &[u8]) -> Option<(FloatType, Cow<'_, [u8]>)> {
        let (weights, size) = self.block();
        let decode: fn(&[u8], usize) -> f32 = match self {
            Kind::Float(dtype) => return Some((dtype, Cow::Borrowed(bytes))),
            Kind::Q8_0 => q8_0,
            Kind::Q6K => q6_k,
            _ => return None,
        };
        let blocks = bytes.chunks_exact(size);
        let singles = blocks.flat_map(|block| (0..weights).flat_map(move |i| decode(block, i).to_le_bytes()));
        Some((FloatType::F32, Cow::Owned(singles.collect())))
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Weight i of a `Q8_0` block of 34 bytes: d q.
fn q8_0(block: &[u8], i: usize) -> f32 {
    half(block, 0) * f32::from(block[2 + i] as i8)
}

/// Weight i of a `Q6_K` block of 210 bytes: d scale q, the integers multiplied first, so that the product is exact. ql[128]
/// has the low four bits, qh[64] the high two, 16 signed scales follow, and d.
fn q6_k(block: &[u8], i: usize) -> f32 {
    let (part, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
    let low = block[64 * part + 32 * (quarter % 2) + lane] >> (4 * (quarter / 2)) & 15;
    let high = block[128 + 32 * part + lane] >> (2 * quarter) & 3;
    let scale = i32::from(block[192 + i / 16] as i8);
    let q = i32::from(low | high << 4) - 32;
    half(block, 208) * (scale * q) as f32
}
