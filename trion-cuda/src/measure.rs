//! What a GPU can do, measured: the ceilings that `docs/gpu.md` reckons with.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, DevicePtr, DriverError};
use trion_core::{Error as CoreError, TokenLogit};

use crate::device::CudaDevice;
use crate::error::{Doing, Error, Result};
use crate::fives::{self, Blocks};
use crate::forward::{newer, warps_for};
use crate::kernels::{Arg, Job, Jobs, Kernel, KernelSet, Shape, args, launch};
pub use crate::layout::Packing;
use crate::layout::{PIECE_BYTES, aligned};
use crate::roofline::Card;
use crate::session::CudaSession;
use crate::top_k;

/// Bytes of a copy, and of all the weights that a measurement goes through: far more than any cache holds, and little
/// enough for a card of 2 GB.
const COPY_BYTES: usize = 1 << 29;
const WEIGHT_BYTES: usize = 400_000_000;
/// Lines of 128 bytes that are read in no order: 128 KiB, which every second-level cache holds, and 512 MiB.
const CACHED_LINES: usize = 1 << 10;
const MEMORY_LINES: usize = 1 << 22;
/// Launches of a graph, or copies, between two looks at the clock.
const LAUNCHES: usize = 8;
/// Times that the largest logits are looked for in a graph.
const TOP_K_REPEATS: usize = 20;
/// Times that everything is done; the median counts.
const REPEATS: usize = 15;

/// GB/s of a copy within the GPU's memory, bytes read and bytes written both counted.
///
/// # Errors
/// [`crate::Error::Memory`] without 1 GiB of free memory, [`crate::Error::Driver`].
pub fn copy_bandwidth(device: &CudaDevice) -> Result<f64> {
    let stream = device.stream()?;
    let advice = "close other programs";
    let from = device.allocate(&stream, COPY_BYTES, "a copy", advice)?;
    let mut to = device.allocate(&stream, COPY_BYTES, "a copy", advice)?;
    let seconds = median(|| {
        for _ in 0..LAUNCHES {
            stream.memcpy_dtod(&from, &mut to).doing("copying")?;
        }
        stream.synchronize().doing("copying")
    })?;
    Ok(2.0 * (LAUNCHES * COPY_BYTES) as f64 / seconds / 1e9)
}

/// The product of a ternary matrix with one token, as a session makes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemv {
    /// Microseconds of one.
    pub micros: f64,
    /// Bytes of the weights, those that fill pieces up counted.
    pub bytes: usize,
}

/// Times the product of a ternary matrix `[rows, cols]` with one token, whose activations are quantised already, in a graph,
/// with weights that no cache holds.
///
/// # Errors
/// [`crate::Error::Memory`] without 400 MB of free memory, [`crate::Error::Driver`]; the latter also for [`Packing::Fives`]
/// where the kernels are not [`KernelSet::Sm90`], or of more than 10,240 columns.
pub fn gemv(device: &CudaDevice, [rows, cols]: [usize; 2], packing: Packing) -> Result<Gemv> {
    let stream = device.stream()?;
    let (pieces, tiles) = (packing.pieces(rows), cols.div_ceil(packing.piece_cols()));
    let weights = pieces * tiles * PIECE_BYTES;
    let count = (WEIGHT_BYTES / weights).clamp(4, 256);
    let (input, output) = (aligned(tiles * packing.piece_cols()), aligned(4 * rows));
    let mut memory =
        device.allocate(&stream, count * weights + input + output + 8, "a measurement", "close other programs")?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    let mut word = || match packing {
        // Codes 0 to 2: a 3 becomes a 1.
        Packing::Twos => {
            let bits = next();
            bits & !((bits & (bits >> 1) & 0x5555_5555) << 1)
        }
        // Any byte is five trits.
        Packing::Fives => next(),
    };
    let trits: Vec<u32> = (0..weights / 4).map(|_| word()).collect();
    let activations: Vec<u32> = (0..input / 4).map(|_| next()).collect();
    for i in 0..count {
        let mut piece = memory.slice_mut(i * weights..(i + 1) * weights);
        stream.memcpy_htod(bytemuck::cast_slice(&trits), &mut piece).doing("copying weights")?;
    }
    let mut piece = memory.slice_mut(count * weights..count * weights + input);
    stream.memcpy_htod(bytemuck::cast_slice(&activations), &mut piece).doing("copying activations")?;
    let base = memory.device_ptr(&stream).0;
    let q = base + (count * weights) as u64;
    let (out, scales) = (q + input as u64, q + (input + output) as u64);

    let (kernels, multiprocessors) = (device.kernels(), device.multiprocessors());
    let (warps, units) = (warps_for(tiles, pieces, multiprocessors), rows.div_ceil(fives::UNIT_ROWS));
    let fives_blocks = Blocks::new(units, tiles, multiprocessors, 1);
    let graph = graph(&stream, || {
        for i in 0..count {
            let weights = base + (i * weights) as u64;
            let job = Job { weights, out, scale: 1.0, divide: 0, rows: rows as i32, sink: 0 };
            let jobs = Jobs::one(job);
            match packing {
                Packing::Twos => {
                    let shape = Shape { grid: [1, pieces, 1], block: [32, warps], shared: 0 };
                    launch(&stream, kernels.ternary_gemv, shape, args![jobs, q, input / 16, scales, 1, tiles, 1])?;
                }
                Packing::Fives => {
                    let Blocks { groups, blocks, shared } = fives_blocks;
                    let shape = Shape { grid: [blocks, 1, 1], block: [32, groups * tiles], shared };
                    let args = args![jobs, units, q, input / 16, scales, 1, tiles, groups, 1];
                    launch(&stream, newer(kernels.fives_gemv_one)?, shape, args)?;
                }
            }
        }
        Ok(())
    })?;
    let micros = seconds_of(&stream, &graph)? / count as f64 * 1e6;
    Ok(Gemv { micros, bytes: weights })
}

/// What `src/roofline.rs` reckons with, of this card and the kernels that are loaded.
///
/// # Errors
/// [`crate::Error::Memory`] without 1 GiB of free memory, [`crate::Error::Driver`].
pub fn card(device: &CudaDevice) -> Result<Card> {
    let bandwidth = copy_bandwidth(device)?;
    let (clock, multiprocessors, kernels) = (device.clock()?, device.multiprocessors(), device.kernels());
    let stream = device.stream()?;
    // 64 warps to a multiprocessor.
    let (blocks, threads) = (8 * multiprocessors, 256);
    let bytes = 128 * MEMORY_LINES + 4 * blocks * threads;
    let memory = device.allocate(&stream, bytes, "latencies", "close other programs")?;
    let words = memory.device_ptr(&stream).0;
    let out = words + 128 * MEMORY_LINES as u64;
    let time = |kernel: Kernel, blocks: usize, threads: usize, args: &[Arg]| {
        median(|| {
            launch(&stream, kernel, Shape { grid: [blocks, 1, 1], block: [threads, 1], shared: 0 }, args)?;
            stream.synchronize().doing("measuring")
        })
    };
    // So long that a launch and the wait for it, some ten microseconds, do not count.
    let (reads, adds, products) = (1_usize << 14, 1_usize << 20, 1_usize << 14);
    let mut seed = 0_usize;
    let mut chase = |lines: usize| -> Result<f64> {
        let seconds = median(|| {
            // Other lines each time, which no run before brought into the cache.
            seed += 1;
            let shape = Shape { grid: [1, 1, 1], block: [1, 1], shared: 0 };
            launch(&stream, kernels.chase, shape, args![words, lines, seed, reads, out])?;
            stream.synchronize().doing("measuring")
        })?;
        Ok(seconds / reads as f64)
    };
    let (cached, from_memory) = (chase(CACHED_LINES)?, chase(MEMORY_LINES)?);
    let add = time(kernels.add_in_turn, 1, 1, args![1.0_f32, adds, out])? / adds as f64;
    let dots = time(kernels.dot_products, blocks, threads, args![0x0102_0304, products, out])? / products as f64;
    let count = 1000;
    let graph = graph(&stream, || {
        let shape = Shape { grid: [1, 1, 1], block: [1, 1], shared: 0 };
        (0..count).try_for_each(|_| launch(&stream, kernels.touch, shape, args![out]))
    })?;
    let touch = seconds_of(&stream, &graph)? / f64::from(count);
    Ok(Card {
        multiprocessors,
        clock,
        bandwidth,
        // Eight in each thread, of eight blocks of threads to a multiprocessor.
        integer_lanes: (8 * 8 * threads) as f64 / dots / clock / 1e9,
        // What is left, when the number was read.
        gap: (touch - cached) * 1e6,
        cache_latency: cached * clock * 1e9,
        memory_latency: from_memory * clock * 1e9,
        add_latency: add * clock * 1e9,
        overlaps: device.kernel_set() == KernelSet::Sm90,
    })
}

/// What is launched, as a graph.
fn graph(stream: &Arc<CudaStream>, launches: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).doing("beginning a graph")?;
    let launched = launches();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched?;
    let none = Error::Driver { doing: "making a graph", source: DriverError(CUresult::CUDA_ERROR_UNKNOWN) };
    graph.doing("making a graph")?.ok_or(none)
}

/// Seconds of a graph, one of several in a row.
fn seconds_of(stream: &Arc<CudaStream>, graph: &CudaGraph) -> Result<f64> {
    let seconds = median(|| {
        for _ in 0..LAUNCHES {
            graph.launch().doing("measuring")?;
        }
        stream.synchronize().doing("measuring")
    })?;
    Ok(seconds / LAUNCHES as f64)
}

/// What [`CudaSession::top_k`] finds in each row of logits `[rows, vocab_size]`: `k` tokens, or all, behind those of the
/// row before; and the microseconds that it takes, in a graph, without the way to the host.
///
/// # Errors
/// [`crate::Error::Core`] if `k` is 0 or too large, or the logits are no rows; [`crate::Error::Memory`],
/// [`crate::Error::Driver`].
pub fn top_k(device: &CudaDevice, logits: &[f32], rows: usize, k: usize) -> Result<(Vec<TokenLogit>, f64)> {
    let (vocab_size, limit) = (logits.len() / rows.max(1), CudaSession::MOST_CANDIDATES);
    if k == 0 || k > limit {
        return Err(CoreError::Options { field: "k", found: k, limit }.into());
    }
    if vocab_size == 0 || rows * vocab_size != logits.len() {
        return Err(CoreError::Options { field: "rows", found: rows, limit: logits.len() }.into());
    }
    let stream = device.stream()?;
    let (bytes, work_bytes, keep) = (aligned(4 * logits.len()), top_k::scratch_bytes(vocab_size), k.min(vocab_size));
    let mut memory = device.allocate(&stream, bytes + rows * work_bytes, "a measurement", "close other programs")?;
    stream.memcpy_htod(bytemuck::cast_slice(logits), &mut memory).doing("copying logits")?;
    let base = memory.device_ptr(&stream).0;
    let work = base + bytes as u64;

    let mut found = work;
    let graph = graph(&stream, || {
        for _ in 0..TOP_K_REPEATS {
            found = top_k::find(&stream, device.kernels(), base, [rows, vocab_size], keep, work)?;
        }
        Ok(())
    })?;
    let at = (found - base) as usize;
    let seconds = seconds_of(&stream, &graph)?;
    let mut all = Vec::with_capacity(rows * keep);
    for row in 0..rows {
        let mut words = vec![[0_u32; 2]; keep];
        let first = at + row * work_bytes;
        let from = memory.slice(first..first + keep * size_of::<[u32; 2]>());
        stream.memcpy_dtoh(&from, bytemuck::cast_slice_mut(&mut words)).doing("copying from the GPU")?;
        stream.synchronize().doing("waiting for the GPU")?;
        all.extend(top_k::candidates(&words));
    }
    Ok((all, seconds / TOP_K_REPEATS as f64 * 1e6))
}

/// Seconds of the work, which waits for the GPU: the median, after two that do not count.
fn median(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for i in 0..REPEATS + 2 {
        let start = Instant::now();
        work()?;
        if i >= 2 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}
