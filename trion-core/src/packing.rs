//! How trits lie in memory: tiles of 32 rows, cut into blocks of columns, each tile one contiguous stream.
//!
//! A trit t in {-1, 0, +1} is stored as its digit t + 1. Byte e of the four that a row has in a register of 16, 32 or
//! 64 bytes belongs to every fourth column, so that a register holds 4, 8 or 16 rows, and what is taken out of all its
//! bytes at once is four columns that lie side by side. Rows and columns beyond the matrix hold the trit 0.
//!
//! [`Packing::Twos`]: a block is 16 columns in 128 bytes, four for each row in order. Byte e of a row holds the digits
//! of columns e, 4 + e, 8 + e and 12 + e, two bits each, low bits first.
//!
//! [`Packing::Triples`]: a block is 96 columns in 640 bytes, half of them for rows 0 to 15 and half for rows 16 to 31.
//! Three digits make a number below 27, in five bits: triple k of byte e is columns 12 k + e, 12 k + 4 + e and
//! 12 k + 8 + e, and d0 + 3 d1 + 9 d2. A half is five registers of 64 bytes, four bytes for each row in order, so that
//! each byte place has five bytes b0 to b4 for its eight triples:
//!
//! | triple | low three bits | bit 3 | bit 4 |
//! |---|---|---|---|
//! | 0 to 4 | bits 0 to 2 of b0 to b4 | bit 3 of the same | bit 4 of the same |
//! | 5 | bits 5 to 7 of b0 | bit 5 of b1 | bit 6 of b1 |
//! | 6 | bits 5 to 7 of b2 | bit 5 of b3 | bit 6 of b3 |
//! | 7 | bits 5 to 7 of b4 | bit 7 of b1 | bit 7 of b3 |
//!
//! Five triples are so read without a shift by instructions that look bytes up by their low bits.

use crate::Error;

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns of a block of [`Packing::Twos`]; rows of activations are filled up with zeros to a multiple of it.
pub const BLOCK_COLS: usize = 16;
/// Bytes of a block of [`Packing::Twos`].
pub const BLOCK_BYTES: usize = TILE_ROWS * BLOCK_COLS / 4;
/// Columns of a block of [`Packing::Triples`].
pub const TRIPLES_COLS: usize = 96;
/// Bytes of a block of [`Packing::Triples`].
pub const TRIPLES_BYTES: usize = TILE_ROWS * TRIPLES_COLS * 5 / 24;

/// Blocks of [`Packing::Twos`] that hold the columns of one of [`Packing::Triples`].
const TWOS_IN_TRIPLES: usize = TRIPLES_COLS / BLOCK_COLS;
/// Bytes of the rows of a half of a block of [`Packing::Triples`] in one register.
const REGISTER: usize = 64;
/// Bytes of a half of a block of [`Packing::Triples`].
const HALF: usize = 5 * REGISTER;
/// Four digits 1, two bits each.
const FOUR_ZEROS: u8 = 0b01_01_01_01;
/// Five bytes of eight triples of the digits 1, which are 13 each.
const EIGHT_ZEROS: [u8; 5] = put_triples([13; 8]);

/// How trits lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Two bits for each trit: read fast by every kernel.
    #[default]
    Twos,
    /// Five bits for three trits, a sixth less: read as fast by the AVX-512 kernel on CPUs with AVX-512 VBMI, and more
    /// slowly by all others.
    Triples,
}

impl Packing {
    /// Columns of a block.
    pub const fn block_cols(self) -> usize {
        match self {
            Packing::Twos => BLOCK_COLS,
            Packing::Triples => TRIPLES_COLS,
        }
    }

    /// Bytes of a block of one tile.
    pub const fn block_bytes(self) -> usize {
        match self {
            Packing::Twos => BLOCK_BYTES,
            Packing::Triples => TRIPLES_BYTES,
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
            Packing::Triples => {
                for half in packed.chunks_mut(HALF) {
                    for (register, byte) in half.chunks_mut(REGISTER).zip(EIGHT_ZEROS) {
                        register.fill(byte);
                    }
                }
            }
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
            Packing::Triples => {
                let (blocks, _) = tile.as_chunks_mut::<TRIPLES_BYTES>();
                for (block, trits) in blocks.iter_mut().zip(trits.chunks(TRIPLES_COLS)) {
                    let mut triples = [[13_u8; 8]; 4];
                    for (i, trit) in trits.iter().enumerate() {
                        let triple = &mut triples[i % 4][i / 12];
                        *triple = triple.wrapping_add_signed(trit * [1, 3, 9][i / 4 % 3]);
                    }
                    for (e, triples) in triples.into_iter().enumerate() {
                        for (register, byte) in put_triples(triples).into_iter().enumerate() {
                            block[byte_of_triples(row, e, register)] = byte;
                        }
                    }
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
            Packing::Triples => {
                let (packed, _) = packed.as_chunks::<TRIPLES_BYTES>();
                let block = packed.iter().position(|block| !triples_are_valid(block))?;
                let place = (0..TILE_ROWS * 4).find_map(|place| {
                    let triples = get_triples(packed[block].as_ref(), place / 4, place % 4);
                    triples.iter().position(|triple| *triple > 26).map(|k| [place / 4, 12 * k + place % 4])
                });
                (block, place?)
            }
        };
        Some([block / blocks * TILE_ROWS + row, block % blocks * self.block_cols() + col])
    }

    /// The trits of row `row` of a tile, in pieces of 16 columns; the last one ends with zeros.
    pub(crate) fn row_pieces(self, tile: &[u8], row: usize) -> impl Iterator<Item = [i8; BLOCK_COLS]> {
        let pieces = self.block_cols() / BLOCK_COLS;
        tile.chunks_exact(self.block_bytes()).flat_map(move |block| {
            (0..pieces).map(move |piece| match self {
                Packing::Twos => {
                    let word = block.as_chunks::<4>().0[row];
                    core::array::from_fn(|i| ((word[i % 4] >> (2 * (i / 4))) & 3) as i8 - 1)
                }
                Packing::Triples => {
                    let four: [[u8; 8]; 4] = core::array::from_fn(|e| get_triples(block, row, e));
                    core::array::from_fn(|i| {
                        let column = BLOCK_COLS * piece + i;
                        (four[i % 4][column / 12] / [1, 3, 9][column / 4 % 3] % 3) as i8 - 1
                    })
                }
            })
        })
    }
}

/// Where byte `register` of five lies in a block of triples, for byte `e` of a row.
const fn byte_of_triples(row: usize, e: usize, register: usize) -> usize {
    row / 16 * HALF + register * REGISTER + row % 16 * 4 + e
}

/// Five bytes of eight triples.
const fn put_triples(t: [u8; 8]) -> [u8; 5] {
    [
        t[0] | t[5] << 5,
        t[1] | t[5] >> 3 << 5 | t[7] >> 3 << 7,
        t[2] | t[6] << 5,
        t[3] | t[6] >> 3 << 5 | t[7] >> 4 << 7,
        t[4] | t[7] << 5,
    ]
}

/// Eight triples of five bytes.
#[inline(always)]
const fn take_triples(b: [u8; 5]) -> [u8; 8] {
    [
        b[0] & 31,
        b[1] & 31,
        b[2] & 31,
        b[3] & 31,
        b[4] & 31,
        b[0] >> 5 | (b[1] >> 5 & 3) << 3,
        b[2] >> 5 | (b[3] >> 5 & 3) << 3,
        b[4] >> 5 | b[1] >> 7 << 3 | b[3] >> 7 << 4,
    ]
}

/// The eight triples of byte `e` of a row of a block.
fn get_triples(block: &[u8], row: usize, e: usize) -> [u8; 8] {
    take_triples(core::array::from_fn(|register| block[byte_of_triples(row, e, register)]))
}

/// Whether all triples of a block are below 27.
fn triples_are_valid(block: &[u8; TRIPLES_BYTES]) -> bool {
    let mut beyond = 0;
    for half in block.as_chunks::<HALF>().0 {
        let [b0, b1, b2, b3, b4] = registers(half);
        for i in 0..REGISTER {
            for triple in take_triples([b0[i], b1[i], b2[i], b3[i], b4[i]]) {
                beyond |= triple + 5;
            }
        }
    }
    // 27 + 5 = 32: the sums of valid triples leave bit 5 alone.
    beyond & 32 == 0
}

/// The registers of a half of a block of triples.
#[inline(always)]
fn registers(half: &[u8; HALF]) -> [&[u8; REGISTER]; 5] {
    let all = half.as_chunks::<REGISTER>().0;
    [&all[0], &all[1], &all[2], &all[3], &all[4]]
}

/// A block of [`Packing::Triples`] as six of [`Packing::Twos`].
#[inline(always)]
pub(crate) fn twos_of_triples(block: &[u8; TRIPLES_BYTES]) -> [[u8; BLOCK_BYTES]; TWOS_IN_TRIPLES] {
    let mut twos = [[0; BLOCK_BYTES]; TWOS_IN_TRIPLES];
    for (h, half) in block.as_chunks::<HALF>().0.iter().enumerate() {
        let [b0, b1, b2, b3, b4] = registers(half);
        for i in 0..REGISTER {
            // Four columns, by fours: digit n of this byte place goes to bits 2 (n % 4) of block n / 4.
            let triples = take_triples([b0[i], b1[i], b2[i], b3[i], b4[i]]);
            let mut digits = [0; 24];
            for (k, triple) in triples.into_iter().enumerate() {
                let d2 = u8::from(triple >= 9) + u8::from(triple >= 18);
                let rest = triple - 9 * d2;
                let d1 = u8::from(rest >= 3) + u8::from(rest >= 6);
                digits[3 * k] = rest - 3 * d1;
                digits[3 * k + 1] = d1;
                digits[3 * k + 2] = d2;
            }
            for (block, four) in twos.iter_mut().zip(digits.as_chunks::<4>().0) {
                block[REGISTER * h + i] = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
            }
        }
    }
    twos
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn five_bytes_hold_any_eight_triples() {
        for n in 0..32_u8 {
            for k in 0..8 {
                let triples = core::array::from_fn(|i| if i == k { n } else { 31 - n });
                assert_eq!(take_triples(put_triples(triples)), triples);
            }
        }
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
    fn triples_are_the_same_trits_as_twos() {
        for (rows, cols) in [(1, 1), (33, 96), (32, 97), (40, 300), (5, 192)] {
            let (twos, triples) = (packed(Packing::Twos, rows, cols), packed(Packing::Triples, rows, cols));
            let of_twos = twos.chunks(Packing::Twos.tile_bytes(cols));
            let of_triples = triples.chunks(Packing::Triples.tile_bytes(cols));
            for (twos, triples) in of_twos.zip(of_triples) {
                let blocks = triples.as_chunks().0.iter().flat_map(twos_of_triples);
                let converted: Vec<u8> = blocks.take(cols.div_ceil(BLOCK_COLS)).flatten().collect();
                assert_eq!(converted, twos, "{rows} x {cols}");
            }
        }
    }

    #[test]
    fn numbers_that_are_no_trits_are_found_at_their_place() {
        let (rows, cols) = (70, 200);
        for packing in [Packing::Twos, Packing::Triples] {
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
                    Packing::Triples => {
                        let mut triples = get_triples(block, row_in_tile, within % 4);
                        triples[within / 12] = 27 + (col % 5) as u8;
                        for (register, byte) in put_triples(triples).into_iter().enumerate() {
                            block[byte_of_triples(row_in_tile, within % 4, register)] = byte;
                        }
                        col / TRIPLES_COLS * TRIPLES_COLS + within / 12 * 12 + within % 4
                    }
                };
                assert_eq!(packing.first_invalid(&spoiled, cols), Some([row, first_col]), "{packing:?}");
            }
        }
    }
}
