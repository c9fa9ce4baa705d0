//! How trits lie in memory: tiles of 32 rows, cut into blocks of columns, each tile one contiguous stream.
//!
//! A trit t in {-1, 0, +1} is stored as its digit t + 1. Byte e of the four that a row has in a register of 16, 32 or
//! 64 bytes belongs to every fourth column, so that a register holds 4, 8 or 16 rows, and what is taken out of all its
//! bytes at once is four columns that lie side by side. Rows and columns beyond the matrix hold the trit 0.
//!
//! [`Packing::Twos`]: a block is 16 columns in 128 bytes, four for each row in order. Byte e of a row holds the digits
//! of columns e, 4 + e, 8 + e and 12 + e, two bits each, low bits first.
//!
//! [`Packing::Fives`]: a block is 20 columns in 128 bytes, four for each row in order. Byte e of a row holds the digits d0
//! to d4 of columns e, 4 + e, 8 + e, 12 + e and 16 + e. With low = d0 + 3 d1 (below 9) and high = d2 + 3 d3 + 9 d4 (below
//! 27), bits 0 to 5 are low + 9 (high / 4), at most 62, and bits 6 and 7 are high mod 4. So two digits, and all but two bits
//! of the number of the other three, are looked up by the low six bits of a byte, which is what the instruction takes that
//! looks up 64 bytes in a table of 64. 13 of the 256 bytes stand for nothing: 63, 127, 191, and 246 to 255.

use crate::Error;

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns of a block of [`Packing::Twos`]; rows of activations are filled up with zeros to a multiple of it.
pub const BLOCK_COLS: usize = 16;
/// Bytes of a block of [`Packing::Twos`].
pub const BLOCK_BYTES: usize = TILE_ROWS * BLOCK_COLS / 4;
/// Columns of a block of [`Packing::Fives`].
pub const FIVES_COLS: usize = 20;
/// Bytes of a block of [`Packing::Fives`].
pub const FIVES_BYTES: usize = TILE_ROWS * FIVES_COLS / 5;

/// Columns that are whole blocks of either packing.
pub(crate) const WHOLE_COLS: usize = FIVES_IN_TWOS * FIVES_COLS;
/// Blocks of [`Packing::Fives`] that have the columns of [`TWOS_IN_FIVES`] of [`Packing::Twos`].
const FIVES_IN_TWOS: usize = 4;
/// Blocks of [`Packing::Twos`] that have the columns of [`FIVES_IN_TWOS`] of [`Packing::Fives`].
const TWOS_IN_FIVES: usize = WHOLE_COLS / BLOCK_COLS;
/// Four digits 1, two bits each.
const FOUR_ZEROS: u8 = 0b01_01_01_01;
/// The byte of five digits 1.
const FIVE_ZEROS: u8 = five([1; 5]);
/// The five digits of each byte of [`Packing::Fives`], two bits each, low bits first. The last one of a byte that stands
/// for nothing is 3.
static DIGITS_OF_FIVES: [u16; 256] = {
    let mut digits = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (byte as u16 % 64 % 9, byte as u16 % 64 / 9 * 4 + byte as u16 / 64);
        digits[byte] = low % 3 + 4 * (low / 3) + 16 * (high % 3) + 64 * (high / 3 % 3) + 256 * (high / 9);
        byte += 1;
    }
    digits
};

/// How trits lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Two bits for each trit: read fast by every kernel.
    #[default]
    Twos,
    /// A byte for five trits, a fifth less: read as fast by the AVX-512 kernel on CPUs with AVX-512 VBMI, and more slowly by
    /// all others.
    Fives,
}

impl Packing {
    /// Columns of a block.
    pub const fn block_cols(self) -> usize {
        match self {
            Packing::Twos => BLOCK_COLS,
            Packing::Fives => FIVES_COLS,
        }
    }

    /// Bytes of a block of one tile.
    pub const fn block_bytes(self) -> usize {
        match self {
            Packing::Twos => BLOCK_BYTES,
            Packing::Fives => FIVES_BYTES,
        }
    }

    /// Columns that are whole blocks, and whole 16 columns.
    pub(crate) const fn whole_cols(self) -> usize {
        match self {
            Packing::Twos => BLOCK_COLS,
            Packing::Fives => WHOLE_COLS,
        }
    }

    /// Bytes of a tile of `cols` columns.
    pub(crate) const fn tile_bytes(self, cols: usize) -> usize {
        cols.div_ceil(self.block_cols()).saturating_mul(self.block_bytes())
    }

    /// Bytes of a packed matrix; `usize::MAX` if they cannot be counted.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(TILE_ROWS).saturating_mul(self.tile_bytes(cols))
    }

    /// Fills `packed`, whole blocks, with the trit 0.
    pub fn clear(self, packed: &mut [u8]) {
        match self {
            Packing::Twos => packed.fill(FOUR_ZEROS),
            Packing::Fives => packed.fill(FIVE_ZEROS),
        }
    }

    /// Writes one row of trits into `packed`, which [`Packing::clear`] has filled.
    ///
    /// # Errors
    /// [`Error::Length`] if `packed` or `trits` does not have the length of such a matrix or row, and
    /// [`Error::InvalidTrit`] for a value other than -1, 0 and +1.
    pub fn pack_row(self, packed: &mut [u8], rows: usize, cols: usize, row: usize, trits: &[i8]) -> Result<(), Error> {
        let expected = self.bytes(rows, cols);
        if packed.len() != expected || row >= rows {
            return Err(Error::Length { tensor: "packed trits", found: packed.len(), expected });
        }
        if trits.len() != cols {
            return Err(Error::Length { tensor: "row of trits", found: trits.len(), expected: cols });
        }
        if let Some(col) = trits.iter().position(|t| !(-1..=1).contains(t)) {
            return Err(Error::InvalidTrit { row, col });
        }
        let tile_bytes = self.tile_bytes(cols);
        let tile = &mut packed[row / TILE_ROWS * tile_bytes..][..tile_bytes];
        let row = row % TILE_ROWS;
        match self {
            Packing::Twos => {
                let (blocks, _) = tile.as_chunks_mut::<BLOCK_BYTES>();
                for (block, trits) in blocks.iter_mut().zip(trits.chunks(BLOCK_COLS)) {
                    let word = &mut block.as_chunks_mut::<4>().0[row];
                    *word = [FOUR_ZEROS; 4];
                    for (i, trit) in trits.iter().enumerate() {
                        word[i % 4] = word[i % 4].wrapping_add_signed(trit << (2 * (i / 4)));
                    }
                }
            }
            Packing::Fives => {
                let (blocks, _) = tile.as_chunks_mut::<FIVES_BYTES>();
                for (block, trits) in blocks.iter_mut().zip(trits.chunks(FIVES_COLS)) {
                    let mut digits = [[1_u8; 5]; 4];
                    for (i, trit) in trits.iter().enumerate() {
                        digits[i % 4][i / 4] = 1_u8.wrapping_add_signed(*trit);
                    }
                    block.as_chunks_mut::<4>().0[row] = digits.map(five);
                }
            }
        }
        Ok(())
    }

    /// The place of the first digit that stands for no trit, as row and column; `None` where there is none.
    pub(crate) fn first_invalid(self, packed: &[u8], cols: usize) -> Option<[usize; 2]> {
        let blocks = cols.div_ceil(self.block_cols());
        let (block, [row, col]) = match self {
            Packing::Twos => {
                // Both bits of a digit are set only in a 3. The sum form lets the compiler look at many bytes at once.
                let is_three = |byte: u8| byte & (byte >> 1) & FOUR_ZEROS;
                if packed.iter().fold(0, |any, byte| any | is_three(*byte)) == 0 {
                    return None;
                }
                let at = packed.iter().position(|byte| is_three(*byte) != 0)?;
                let slot = is_three(packed[at]).trailing_zeros() as usize / 2;
                let byte = at % BLOCK_BYTES;
                (at / BLOCK_BYTES, [byte / 4, 4 * slot + byte % 4])
            }
            Packing::Fives => {
                // The first column of the byte that stands for nothing.
                let stands_for_none = |byte: u8| byte >= 246 || byte % 64 == 63;
                if !packed.iter().fold(false, |any, byte| any | stands_for_none(*byte)) {
                    return None;
                }
                let at = packed.iter().position(|byte| stands_for_none(*byte))?;
                let byte = at % FIVES_BYTES;
                (at / FIVES_BYTES, [byte / 4, byte % 4])
            }
        };
        Some([block / blocks * TILE_ROWS + row, block % blocks * self.block_cols() + col])
    }

    /// The trits of row `row` of a tile, in pieces of four columns; the last ones may be zeros beyond the matrix.
    pub(crate) fn row_pieces(self, tile: &[u8], row: usize) -> impl Iterator<Item = [i8; 4]> {
        tile.chunks_exact(self.block_bytes()).flat_map(move |block| {
            let digits = block.as_chunks::<4>().0[row].map(|byte| match self {
                Packing::Twos => u16::from(byte),
                Packing::Fives => DIGITS_OF_FIVES[usize::from(byte)],
            });
            (0..self.block_cols() / 4).map(move |j| digits.map(|digits| (digits >> (2 * j) & 3) as i8 - 1))
        })
    }
}

/// The byte of five digits.
const fn five(d: [u8; 5]) -> u8 {
    let high = d[2] + 3 * d[3] + 9 * d[4];
    d[0] + 3 * d[1] + 9 * (high / 4) + 64 * (high % 4)
}

/// Blocks of a tile of [`Packing::Fives`] as [`Packing::Twos`], in pieces of 80 columns; the last one may end with blocks
/// of zeros beyond the matrix.
#[inline(always)]
pub(crate) fn twos_of_fives(tile: &[u8]) -> impl Iterator<Item = [[u8; BLOCK_BYTES]; TWOS_IN_FIVES]> {
    tile.chunks(FIVES_IN_TWOS * FIVES_BYTES).map(|fives| {
        let mut four = [[FIVE_ZEROS; FIVES_BYTES]; FIVES_IN_TWOS];
        four.as_flattened_mut()[..fives.len()].copy_from_slice(fives);
        let [a, b, c, d] = &four;
        let mut twos = [[0; BLOCK_BYTES]; TWOS_IN_FIVES];
        for place in 0..FIVES_BYTES {
            // Twenty digits of two bits, in the order of their columns.
            let digits = |block: &[u8; FIVES_BYTES]| u64::from(DIGITS_OF_FIVES[usize::from(block[place])]);
            let twenty = digits(a) | digits(b) << 10 | digits(c) << 20 | digits(d) << 30;
            for (twos, byte) in twos.iter_mut().zip(twenty.to_le_bytes()) {
                twos[place] = byte;
            }
        }
        twos
    })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_byte_holds_any_five_digits() {
        // The example of docs/formats.md.
        assert_eq!(five([2, 0, 1, 1, 2]), 175);
        let mut seen = [false; 256];
        for n in 0..243_u8 {
            let digits = [n % 3, n / 3 % 3, n / 9 % 3, n / 27 % 3, n / 81];
            let byte = usize::from(five(digits));
            seen[byte] = true;
            let found: [u8; 5] = core::array::from_fn(|d| (DIGITS_OF_FIVES[byte] >> (2 * d) & 3) as u8);
            assert_eq!(found, digits);
        }
        let others: Vec<usize> = (0..256).filter(|byte| !seen[*byte]).collect();
        assert_eq!(others, [63, 127, 191, 246, 247, 248, 249, 250, 251, 252, 253, 254, 255]);
    }

    /// A matrix of trits that differ from place to place, packed.
    fn packed(packing: Packing, rows: usize, cols: usize) -> Vec<u8> {
        let mut packed = vec![0; packing.bytes(rows, cols)];
        packing.clear(&mut packed);
        for row in 0..rows {
            let trits: Vec<i8> = (0..cols).map(|col| ((row * 7 + col * col + col / 5) % 3) as i8 - 1).collect();
            packing.pack_row(&mut packed, rows, cols, row, &trits).unwrap();
        }
        packed
    }

    #[test]
    fn fives_are_the_same_trits_as_twos() {
        for (rows, cols) in [(1, 1), (33, 80), (32, 81), (40, 300), (5, 176)] {
            let (twos, fives) = (packed(Packing::Twos, rows, cols), packed(Packing::Fives, rows, cols));
            let of_twos = twos.chunks(Packing::Twos.tile_bytes(cols));
            for (twos, fives) in of_twos.zip(fives.chunks(Packing::Fives.tile_bytes(cols))) {
                let blocks = twos_of_fives(fives).flatten().take(cols.div_ceil(BLOCK_COLS));
                assert_eq!(blocks.flatten().collect::<Vec<u8>>(), twos, "{rows} x {cols}");
            }
        }
    }

    #[test]
    fn numbers_that_are_no_trits_are_found_at_their_place() {
        let (rows, cols) = (70, 200);
        for packing in [Packing::Twos, Packing::Fives] {
            let whole = packed(packing, rows, cols);
            assert_eq!(packing.first_invalid(&whole, cols), None);
            for (row, col) in [(0, 0), (17, 3), (31, 95), (33, 96), (69, 199), (40, 130), (8, 64), (63, 190)] {
                let mut spoiled = whole.clone();
                let tile = &mut spoiled[row / TILE_ROWS * packing.tile_bytes(cols)..][..packing.tile_bytes(cols)];
                let block = &mut tile[col / packing.block_cols() * packing.block_bytes()..][..packing.block_bytes()];
                let (row_in_tile, within) = (row % TILE_ROWS, col % packing.block_cols());
                let first_col = match packing {
                    Packing::Twos => {
                        block[4 * row_in_tile + within % 4] |= 3 << (2 * (within / 4));
                        col
                    }
                    Packing::Fives => {
                        block[4 * row_in_tile + within % 4] = [63, 127, 191, 246, 255][col % 5];
                        col - within + within % 4
                    }
                };
                assert_eq!(packing.first_invalid(&spoiled, cols), Some([row, first_col]), "{packing:?}");
            }
        }
    }
}
