//! How the kernels for weights of which five lie in a byte (`kernels/fives.cuh`) are launched.

/// Rows of a unit of work there, and what a warp brings of one, in bytes.
pub(crate) const UNIT_ROWS: usize = 16;
const UNIT_BYTES: usize = 1024;
/// Units that a group of warps has on its way at once, in `kernels/fives.cu`.
pub(crate) const DEPTH: usize = 2;
/// Tokens that `fives_tokens` takes together.
pub(crate) const TOKENS: usize = 8;
/// Tokens of a block of threads of `kernels/fives_gemm.cu`, units of one, and tokens from which on it is better.
pub(crate) const GEMM_TOKENS: usize = 64;
pub(crate) const GEMM_UNITS: usize = 8;
pub(crate) const GEMM_FROM: usize = 33;
/// Warps of a block of threads at least, where rows have few pieces of columns, and up to how many two such blocks have
/// room on a multiprocessor, by registers.
const LEAST_WARPS: usize = 8;
const HALF_THE_WARPS: usize = 16;
/// Units of a block of threads at most, so that their sums have room.
const MOST_UNITS: usize = 64;

/// Groups of warps in a block of threads, blocks, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) groups: usize,
    pub(crate) blocks: usize,
    pub(crate) shared: usize,
}

impl Blocks {
    /// For so many units of rows of `tiles` pieces of columns, for `tokens` tokens at once (1 or [`TOKENS`]).
    ///
    /// By measurement on an H100: as many blocks as all multiprocessors run at once, two on each, were faster than fewer or
    /// more, and one group of warps than two.
    pub(crate) fn new(units: usize, tiles: usize, multiprocessors: usize, tokens: usize) -> Self {
        let groups = (LEAST_WARPS / tiles).max(1);
        let each = if groups * tiles <= HALF_THE_WARPS { 2 } else { 1 };
        let blocks = units.div_ceil(groups).min(each * multiprocessors).max(units.div_ceil(MOST_UNITS));
        Blocks::of(units, tiles, [groups, blocks], tokens)
    }

    /// The same with so many groups and blocks.
    pub(crate) fn of(units: usize, tiles: usize, [groups, blocks]: [usize; 2], tokens: usize) -> Self {
        let sums = units.div_ceil(groups * blocks) * groups * tokens * UNIT_ROWS * 4;
        Blocks { groups, blocks, shared: groups * tiles * DEPTH * UNIT_BYTES + sums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::MOST_SHARED;
    use crate::layout::WIDEST_FIVES;

    #[test]
    fn blocks_make_all_units_and_have_the_memory() {
        for tiles in 1..=WIDEST_FIVES {
            for units in [1, 2, 63, 64, 65, 864, 3456, 100_000] {
                for multiprocessors in [1, 16, 132] {
                    let of_tokens = [1, TOKENS].map(|tokens| Blocks::new(units, tiles, multiprocessors, tokens));
                    for Blocks { groups, blocks, shared } in of_tokens {
                        assert!(groups * tiles <= 32 && shared <= MOST_SHARED, "{tiles} {units} {multiprocessors}");
                        assert!((blocks - 1) * groups < units);
                        assert!(units.div_ceil(groups * blocks) * groups <= MOST_UNITS);
                    }
                }
            }
        }
        // As measured.
        assert_eq!(Blocks::new(864, 8, 132, 1), Blocks { groups: 1, blocks: 264, shared: 16_640 });
        assert_eq!(Blocks::new(3456, 16, 132, 1), Blocks { groups: 1, blocks: 264, shared: 33_664 });
    }
}
