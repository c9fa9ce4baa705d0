//! What a GPU can do, measured: the ceilings that `docs/gpu.md` reckons with.

use std::time::Instant;

use cudarc::driver::DevicePtr;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::device::CudaDevice;
use crate::error::{Doing, Result};
use crate::forward::warps_for;
use crate::kernels::{Job, Jobs, Shape, args, launch};
use crate::layout::{PIECE_BYTES, PIECE_COLS, PIECE_ROWS, aligned};

/// Bytes of a copy, and of all the weights that a measurement goes through: far more than any cache holds.
const COPY_BYTES: usize = 1 << 30;
const WEIGHT_BYTES: usize = 400_000_000;
/// Launches of a graph between two looks at the clock.
const LAUNCHES: usize = 8;
/// Times that everything is done; the median counts.
const REPEATS: usize = 15;

/// GB/s of a copy within the GPU's memory, bytes read and bytes written both counted.
///
/// # Errors
/// [`crate::Error::Memory`] without 2 GiB of free memory, [`crate::Error::Driver`].
pub fn copy_bandwidth(device: &CudaDevice) -> Result<f64> {
    let stream = device.stream()?;
    let advice = "close other programs";
    let from = device.allocate(&stream, COPY_BYTES, "a copy", advice)?;
    let mut to = device.allocate(&stream, COPY_BYTES, "a copy", advice)?;
    let seconds = median(|| {
        stream.memcpy_dtod(&from, &mut to).doing("copying")?;
        stream.synchronize().doing("copying")
    })?;
    Ok(2.0 * COPY_BYTES as f64 / seconds / 1e9)
}

/// Microseconds of the product of a ternary matrix `[rows, cols]` with one token, in a graph, with weights that no
/// cache holds. `warps` share the columns of a row; 0 for as many as a session takes.
///
/// # Errors
/// [`crate::Error::Memory`] without 400 MB of free memory, [`crate::Error::Driver`].
pub fn gemv_time(device: &CudaDevice, rows: usize, cols: usize, warps: usize) -> Result<f64> {
    let stream = device.stream()?;
    let (pieces, tiles) = (rows.div_ceil(PIECE_ROWS), cols.div_ceil(PIECE_COLS));
    let weights = pieces * tiles * PIECE_BYTES;
    let count = (WEIGHT_BYTES / weights).clamp(4, 256);
    let (input, output) = (aligned(tiles * PIECE_COLS), aligned(4 * rows));
    let mut memory =
        device.allocate(&stream, count * weights + input + output + 8, "a measurement", "close other programs")?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    // Codes 0 to 2: a 3 becomes a 1.
    let trits: Vec<u32> = (0..weights / 4).map(|_| next()).map(|w| w & !((w & (w >> 1) & 0x5555_5555) << 1)).collect();
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

    let warps = if warps == 0 { warps_for(tiles, pieces, device.multiprocessors()) } else { warps };
    let shape = Shape { grid: [1, pieces, 1], block: [32, warps], shared: 0 };
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).doing("beginning a graph")?;
    let mut launched = Ok(());
    for i in 0..count {
        let weights = base + (i * weights) as u64;
        let job = Job { weights, out, scale: 1.0, divide: 0, rows: rows as i32, sink: 0 };
        let jobs = Jobs::one(job);
        launched = launched.and_then(|()| {
            launch(&stream, device.kernels().ternary_gemv, shape, args![jobs, q, input / 16, scales, 1, tiles, 1])
        });
    }
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    launched?;
    let Some(graph) = graph.doing("making a graph")? else { return Ok(f64::NAN) };
    let seconds = median(|| {
        for _ in 0..LAUNCHES {
            graph.launch().doing("measuring")?;
        }
        stream.synchronize().doing("measuring")
    })?;
    Ok(seconds / (LAUNCHES * count) as f64 * 1e6)
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
