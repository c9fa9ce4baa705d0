//! Keys and values of every position, in the caller's memory.

use core::ops::Range;

use crate::config::Config;
use crate::kernel::{CacheFormat, F16, F32, Kernel, Op, Simd, padded};
use crate::numeric::LANES;

/// Number format of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// Single precision: nothing is lost.
    F32,
    /// Half precision: half the memory, keys and values rounded half to even.
    F16,
}

impl CacheType {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
        }
    }
}

/// Numbers of a cache for `context` positions: `[layers, heads, 2, context, head_dim]`, keys before values.
pub(crate) const fn cache_len(config: &Config, context: usize) -> usize {
    config.num_hidden_layers.saturating_mul(config.key_value_size()).saturating_mul(2).saturating_mul(context)
}

/// A cache in the format it was made with.
pub(crate) enum KvCache<'b> {
    F32(Cache<'b, F32>),
    F16(Cache<'b, F16>),
}

/// Keys and values in format F.
pub(crate) struct Cache<'b, F: CacheFormat> {
    pub(crate) memory: &'b mut [F::Bits],
    pub(crate) context: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

impl<F: CacheFormat> Cache<'_, F> {
    fn range(&self, layer: usize, head: usize, values: usize, positions: Range<usize>) -> Range<usize> {
        let plane = ((layer * self.heads + head) * 2 + values) * self.context;
        (plane + positions.start) * self.head_dim..(plane + positions.end) * self.head_dim
    }

    /// Keys and values `[positions, head_dim]` of one head, from the first position on.
    pub(crate) fn head(&self, layer: usize, head: usize, positions: usize) -> (&[F::Bits], &[F::Bits]) {
        (
            self.memory.get(self.range(layer, head, 0, 0..positions)).unwrap_or(&[]),
            self.memory.get(self.range(layer, head, 1, 0..positions)).unwrap_or(&[]),
        )
    }

    /// Stores one position's `key` and `value` `[heads, head_dim]`.
    pub(crate) fn write(&mut self, kernel: Kernel, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let head_dim = self.head_dim.max(1);
        for (values, from) in [key, value].into_iter().enumerate() {
            for (head, from) in from.chunks_exact(head_dim).enumerate() {
                let range = self.range(layer, head, values, position..position + 1);
                if let Some(to) = self.memory.get_mut(range) {
                    kernel.run(Convert::<F> { from, to });
                }
            }
        }
    }
}

impl KvCache<'_> {
    /// The same cache, borrowed.
    pub(crate) fn reborrow(&mut self) -> KvCache<'_> {
        match self {
            KvCache::F32(cache) => KvCache::F32(Cache { memory: cache.memory, ..*cache }),
            KvCache::F16(cache) => KvCache::F16(Cache { memory: cache.memory, ..*cache }),
        }
    }

    /// Planes: the keys or the values of one head of one layer.
    pub(crate) fn planes(&self) -> usize {
        match self {
            KvCache::F32(cache) => cache.memory.len() / cache.plane_len(),
            KvCache::F16(cache) => cache.memory.len() / cache.plane_len(),
        }
    }

    /// The bytes of the first `positions` positions of a plane.
    pub(crate) fn plane(&self, plane: usize, positions: usize) -> &[u8] {
        match self {
            KvCache::F32(cache) => bytemuck::cast_slice(&cache.memory[cache.prefix(plane, positions)]),
            KvCache::F16(cache) => bytemuck::cast_slice(&cache.memory[cache.prefix(plane, positions)]),
        }
    }

    /// The bytes of the first `positions` positions of a plane, to be written.
    pub(crate) fn plane_mut(&mut self, plane: usize, positions: usize) -> &mut [u8] {
        match self {
            KvCache::F32(cache) => {
                let prefix = cache.prefix(plane, positions);
                bytemuck::cast_slice_mut(&mut cache.memory[prefix])
            }
            KvCache::F16(cache) => {
                let prefix = cache.prefix(plane, positions);
                bytemuck::cast_slice_mut(&mut cache.memory[prefix])
            }
        }
    }
}

impl<F: CacheFormat> Cache<'_, F> {
    fn plane_len(&self) -> usize {
        (self.context * self.head_dim).max(1)
    }

    fn prefix(&self, plane: usize, positions: usize) -> Range<usize> {
        let first = plane * self.plane_len();
        first..first + positions * self.head_dim
    }
}

/// Stores floats in another format.
struct Convert<'a, F: CacheFormat> {
    from: &'a [f32],
    to: &'a mut [F::Bits],
}

impl<F: CacheFormat> Op for Convert<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (from, from_tail) = self.from.as_chunks::<LANES>();
        let (to, to_tail) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            F::store(simd, simd.load(from), to);
        }
        let mut lanes = padded::<F::Bits>(&[]);
        F::store(simd, simd.load(&padded(from_tail)), &mut lanes);
        for (to, lane) in to_tail.iter_mut().zip(lanes) {
            *to = lane;
        }
    }
}
