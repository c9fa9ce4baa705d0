//! What stands between the gate and the up projection.

use crate::config::Activation;
use crate::kernel::{Simd, Vector, padded};
use crate::numeric::{LANES, relu2, silu};

/// `gate = act(gate) * up`, for up to 32 values.
#[inline(always)]
pub(crate) fn activate<S: Simd>(simd: S, activation: Activation, gate: &mut [f32], up: &[f32; LANES]) {
    let g = simd.load(&padded(gate));
    let activated = match activation {
        Activation::Relu2 => relu2(g),
        Activation::Silu => silu(g),
    };
    simd.store_part(activated.mul(simd.load(up)), gate);
}
