//! The kernels of `trion-train/kernels`, compiled for a model's shape and for the GPU when a run begins.

use std::fmt::Write;

use cudarc::driver::CudaFunction;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use trion_engine::{Activation, Config};

use super::gpu::{Gpu, doing};
use crate::error::{Error, Result};

/// Rows of a block of threads, a warp each.
pub(crate) const WARPS: usize = 4;
/// Queries, and keys, of a tile of attention.
pub(crate) const TILE: usize = 64;

macro_rules! kernels {
    ($($file:literal: $($kernel:ident)*;)*) => {
        /// Every kernel, by its name.
        pub(crate) struct Kernels {
            $($(pub(crate) $kernel: CudaFunction,)*)*
        }

        const SOURCES: &[(&str, &str)] = &[$(($file, include_str!(concat!("../../kernels/", $file)))),*];

        impl Kernels {
            pub(crate) fn compile(gpu: &Gpu, config: &Config) -> Result<Self> {
                let module = compile(gpu, config)?;
                let module = gpu.context().load_module(module).map_err(doing("loading kernels"))?;
                Ok(Kernels {
                    $($($kernel: module.load_function(stringify!($kernel)).map_err(doing("looking for a kernel"))?,)*)*
                })
            }
        }
    };
}

kernels! {
    "common.cu": ;
    "weights.cu": magnitudes quantize_weights narrow_all;
    "blocks.cu": embed residual_norm attention_norm gate_norm rotate;
    "attention.cu": attend attend_backward_keys attend_backward_queries;
    "loss.cu": cross_entropy add_up;
    "backward.cu": add_up_partials residual_norm_backward attention_norm_backward gate_norm_backward rotate_backward
        embed_backward;
    "optimizer.cu": squares clip adamw muon_momentum muon_normalize muon_move;
}

fn compile(gpu: &Gpu, config: &Config) -> Result<cudarc::nvrtc::Ptx> {
    if ![16, 32, 64].contains(&config.head_dim) {
        let message = format!("heads have {} numbers, expected 16, 32 or 64 on a GPU", config.head_dim);
        return Err(Error::Argument(message));
    }
    for (name, size) in [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)] {
        if !size.is_multiple_of(16) {
            return Err(Error::Argument(format!("{name} is {size}, expected a multiple of 16 on a GPU")));
        }
    }
    let mut source = String::new();
    let sizes = [
        ("HIDDEN", config.hidden_size),
        ("WIDE", config.intermediate_size),
        ("HEADS", config.num_attention_heads),
        ("KV_HEADS", config.num_key_value_heads),
        ("HEAD_DIM", config.head_dim),
        ("VOCAB", config.vocab_size),
        ("SILU", usize::from(config.hidden_act == Activation::Silu)),
    ];
    // Writing to a string does not fail.
    for (name, size) in sizes {
        let _ = writeln!(source, "#define {name} {size}");
    }
    let _ = writeln!(source, "#define NORM_EPS {:e}f", config.rms_norm_eps);
    for (file, text) in SOURCES {
        let _ = write!(source, "#line 1 \"{file}\"\n{text}");
    }
    let capability = gpu.context().compute_capability().map_err(doing("asking for the GPU's capability"))?;
    // Those of Hopper are known to every CUDA that is asked for, and the driver compiles them for what came later.
    let (major, minor) = capability.min((9, 0));
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "-default-device".to_owned()],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source, options).map_err(|e| Error::Gpu(format!("compiling kernels: {e}")))
}
