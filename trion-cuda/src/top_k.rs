//! The largest logits, found on the device.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use trion_core::{Error as CoreError, TokenLogit};

use crate::error::Result;
use crate::kernels::{Kernels, Shape, args, launch};
use crate::memory::Piece;
use crate::session::CudaSession;

/// Threads of a block, and logits that it goes through; as in `kernels/top_k.cu`.
const THREADS: usize = 512;
const CHUNK: usize = 4096;
/// Most logits that are found; as there.
const MOST: usize = 512;
/// Bytes of a token with its logit.
const CANDIDATE_BYTES: usize = 8;

/// How many are left of `count` logits, at least one, when each chunk keeps its best.
fn left_of(count: usize, keep: usize) -> usize {
    let whole = (count - 1) / CHUNK;
    whole * keep + keep.min(count - whole * CHUNK)
}

/// Candidates that all rounds write for a row of `count` logits.
fn scratch(count: usize) -> usize {
    let mut left = left_of(count, MOST);
    let mut total = left;
    while left > MOST {
        left = left_of(left, MOST);
        total += left;
    }
    total
}

/// Bytes that [`find`] works in for a row of `count` logits.
pub(crate) fn scratch_bytes(count: usize) -> usize {
    scratch(count) * CANDIDATE_BYTES
}

/// Finds the `keep` largest, at most [`MOST`] and at most `count`, in each row of logits `[rows, count]`. They are in
/// order, each a token and its logit of 4 bytes, at the address that is given for the first row; those of the next are
/// [`scratch_bytes`] behind. `work` is the address of so many bytes for each row.
pub(crate) fn find(
    stream: &Arc<CudaStream>,
    kernels: &Kernels,
    logits: u64,
    [rows, count]: [usize; 2],
    keep: usize,
    work: u64,
) -> Result<u64> {
    let stride = scratch(count);
    let (mut kernel, mut from, mut from_stride, mut to, mut count) = (kernels.top_k_logits, logits, count, work, count);
    loop {
        let chunks = count.div_ceil(CHUNK);
        let shape = Shape { grid: [chunks, rows, 1], block: [THREADS, 1], shared: 0 };
        launch(stream, kernel, shape, args![from, count, from_stride, keep, to, stride])?;
        if chunks == 1 {
            return Ok(to);
        }
        // The next round has what this one kept, and writes behind it.
        let left = left_of(count, keep);
        (kernel, from, from_stride, count) = (kernels.top_k_candidates, to, stride, left);
        to += (left * CANDIDATE_BYTES) as u64;
    }
}

/// Tokens with their logits, as the device has them.
pub(crate) fn candidates(words: &[[u32; 2]]) -> Vec<TokenLogit> {
    words.iter().map(|[token, logit]| TokenLogit { token: *token, logit: f32::from_bits(*logit) }).collect()
}

impl CudaSession {
    /// The most that [`CudaSession::top_k`] finds.
    pub const MOST_CANDIDATES: usize = MOST;

    /// The `k` largest logits of the last token that was computed, or all if there are fewer: the largest first, of
    /// equals the smaller token first, and a NaN where `f32::MIN` would be. They are found on the device and are all
    /// that is copied, if [`CudaSession::compute`] has left the logits there. What
    /// [`Sampler::sample_candidates`](trion_core::Sampler::sample_candidates) chooses among.
    ///
    /// # Errors
    /// [`Error::Core`](crate::Error::Core) if no logits are ready, or if `k` is 0 or above
    /// [`CudaSession::MOST_CANDIDATES`]; [`Error::Driver`](crate::Error::Driver).
    pub fn top_k(&mut self, k: usize) -> Result<Vec<TokenLogit>> {
        if k == 0 || k > MOST {
            return Err(CoreError::Options { field: "k", found: k, limit: MOST }.into());
        }
        if self.logits_rows == 0 {
            return Err(CoreError::NoTokens.into());
        }
        self.put_last_logits()?;
        let work = &self.work;
        let (vocab_size, kernels) = (work.model.config().vocab_size, work.model.device().kernels());
        let keep = k.min(vocab_size);
        let (logits, first) = (work.at(Piece::Logits), work.at(Piece::TopK));
        let found = find(&work.stream, kernels, logits, [1, vocab_size], keep, first)?;
        let mut words = vec![[0_u32; 2]; keep];
        work.read(Piece::TopK, (found - first) as usize, bytemuck::cast_slice_mut(&mut words))?;
        Ok(candidates(&words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_to_an_end_within_their_memory() {
        for count in [1, 2, 301, CHUNK, CHUNK + 1, 50_000, 128_256, 1 << 24] {
            for keep in [1, 2, 40, 256, MOST] {
                let (mut left, mut total) = (left_of(count, keep), left_of(count, keep));
                let mut before = count;
                while before > CHUNK {
                    before = left;
                    left = left_of(left, keep);
                    total += left;
                }
                assert_eq!(left, keep.min(count));
                assert!(total <= scratch(count), "{count} {keep}: {total}");
            }
        }
        assert_eq!(scratch(301), 301);
        assert_eq!(scratch(CHUNK + 1), MOST + 1 + MOST);
        assert_eq!(scratch_bytes(128_256), 8 * (32 * 512 + 4 * 512 + 512));
    }
}
