//! The plain kernel's sums of trits on Cortex-M4 and M7: by the instruction that multiplies two pairs of 16 bits and adds
//! both products, which no compiler comes to by itself.

use core::arch::asm;

use crate::packing::{BLOCK_BYTES, BLOCK_COLS, TILE_ROWS};

/// Two digits of a row, in the lower bits of either half of a word.
const PAIR: u32 = 0x0003_0003;

/// [`super::Simd::twos_tile`] for one token.
#[inline(never)]
pub(super) fn tile_sums(tile: &[u8], x: &[i8]) -> [i32; TILE_ROWS] {
    let mut sums = [0; TILE_ROWS];
    for (block, x) in tile.as_chunks::<BLOCK_BYTES>().0.iter().zip(x.as_chunks::<BLOCK_COLS>().0) {
        // Columns 4 n and 4 n + 2, then 4 n + 1 and 4 n + 3, as halves of words.
        let mut pairs = [[0; 2]; BLOCK_COLS / 4];
        for (pair, x) in pairs.iter_mut().zip(x.as_chunks::<4>().0) {
            let [a, b, c, d] = x.map(|x| i32::from(x) as u32);
            *pair = [a & 0xffff | c << 16, b & 0xffff | d << 16];
        }
        // Byte e of a row holds columns e, 4 + e, 8 + e and 12 + e, low bits first.
        for (sum, bytes) in sums.iter_mut().zip(block.as_chunks::<4>().0) {
            let word = u32::from_le_bytes(*bytes);
            for (n, [even, odd]) in pairs.into_iter().enumerate() {
                *sum = add_products(*sum, word >> (2 * n) & PAIR, even);
                *sum = add_products(*sum, word >> (2 * n + 8) & PAIR, odd);
            }
        }
    }
    sums
}

/// `sum` and the products of the halves of two words, which are signed; it wraps at 32 bits.
#[inline(always)]
fn add_products(sum: i32, a: u32, b: u32) -> i32 {
    let result;
    // SAFETY: arithmetic on registers alone, by an instruction that is there wherever this file is compiled.
    unsafe {
        asm!("smlad {result}, {a}, {b}, {sum}", result = out(reg) result, a = in(reg) a, b = in(reg) b, sum = in(reg) sum,
            options(pure, nomem, nostack));
    }
    result
}
