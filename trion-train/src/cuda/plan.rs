//! Where parameters lie in the GPU's memory: what only `AdamW` moves comes first, then the blocks' matrices as data flows
//! through them, so that query, key and value are one matrix, and gate and up are.

use std::collections::BTreeMap;

use crate::layout::{BLOCK, Entry, Kind};

/// Matrices of a block.
pub(crate) const MATRICES: usize = 7;

/// Where a block's parameters begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) input_norm: usize,
    /// Query, key and value, one behind the other.
    pub(crate) qkv: usize,
    pub(crate) attention_norm: usize,
    pub(crate) output: usize,
    pub(crate) mlp_norm: usize,
    /// Gate and up, one behind the other.
    pub(crate) gate_up: usize,
    pub(crate) ffn_norm: usize,
    pub(crate) down: usize,
}

/// Matrices that have the same shape when turned, for Muon.
pub(crate) struct Stack {
    /// `[short, long]`.
    pub(crate) shape: [usize; 2],
    pub(crate) offsets: Vec<i32>,
    /// Rows of each.
    pub(crate) heights: Vec<i32>,
}

pub(crate) struct Plan {
    /// Where each parameter begins, in the order of [`crate::layout::layout`].
    pub(crate) offsets: Vec<usize>,
    /// Numbers of all parameters.
    pub(crate) count: usize,
    /// Where the blocks' matrices begin.
    pub(crate) matrices_at: usize,
    pub(crate) blocks: Vec<Block>,
    pub(crate) last_norm: usize,
    /// Where each of the blocks' matrices begins, and how many numbers it has.
    pub(crate) matrices: Vec<[i32; 2]>,
    pub(crate) stacks: Vec<Stack>,
}

impl Plan {
    pub(crate) fn new(entries: &[Entry]) -> Self {
        let mut offsets = vec![0; entries.len()];
        let is_matrix = |entry: &Entry| matches!(entry.kind, Kind::Matrix(_));
        let mut count = 0;
        let mut matrices_at = 0;
        for matrices in [false, true] {
            matrices_at = count;
            for (offset, entry) in offsets.iter_mut().zip(entries).filter(|(_, entry)| is_matrix(entry) == matrices) {
                *offset = count;
                count += entry.count();
            }
        }
        let blocks = offsets[1..].chunks_exact(BLOCK).map(|block| Block {
            input_norm: block[0],
            qkv: block[1],
            attention_norm: block[4],
            output: block[5],
            mlp_norm: block[6],
            gate_up: block[7],
            ffn_norm: block[9],
            down: block[10],
        });
        let mut stacks = BTreeMap::<[usize; 2], Stack>::new();
        let mut matrices = Vec::new();
        for (offset, entry) in offsets.iter().zip(entries).filter(|(_, entry)| is_matrix(entry)) {
            let [rows, cols] = entry.shape;
            let shape = [rows.min(cols), rows.max(cols)];
            let new = || Stack { shape, offsets: Vec::new(), heights: Vec::new() };
            let stack = stacks.entry(shape).or_insert_with(new);
            stack.offsets.push(*offset as i32);
            stack.heights.push(rows as i32);
            matrices.push([*offset as i32, entry.count() as i32]);
        }
        Plan {
            count,
            matrices_at,
            blocks: blocks.collect(),
            last_norm: offsets[offsets.len() - 1],
            matrices,
            stacks: stacks.into_values().collect(),
            offsets,
        }
    }
}
