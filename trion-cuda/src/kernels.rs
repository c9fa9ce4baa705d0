//! The kernels, loaded from PTX, and how they are launched.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::error::{Doing, Result};

macro_rules! kernels {
    ($($file:literal: $($kernel:ident)*;)*) => {
        /// Every kernel, by its name in `trion-cuda/kernels`.
        pub(crate) struct Kernels {
            $($(pub(crate) $kernel: CudaFunction,)*)*
        }

        impl Kernels {
            /// Hands the PTX to the driver, which compiles it for the card and remembers that on disk.
            pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Self> {
                let ($($($kernel,)*)*);
                $({
                    let ptx = include_str!(concat!("../ptx/", $file, ".ptx"));
                    let module = context.load_module(Ptx::from_src(ptx)).doing(concat!("loading ", $file, ".ptx"))?;
                    $($kernel = module.load_function(stringify!($kernel)).doing("looking for a kernel")?;)*
                })*
                Ok(Kernels { $($($kernel,)*)* })
            }
        }
    };
}

kernels! {
    "argmax": argmax_parts argmax_next;
    "attention": attention_scores_f32 attention_scores_f16 attention_weights_f32 attention_weights_f16
        attention_prompt_f32 attention_prompt_f16 attention_combine;
    "attention_head": attention_head_f32 attention_head_f16;
    "embed": begin embed;
    "float_matrix": float_product_f32 float_product_f32_4 float_product_f16 float_product_f16_4
        float_product_bf16 float_product_bf16_4 float_product_i8 float_product_i8_4;
    "gemm": ternary_gemm;
    "prepare": prepare prepare_row_2 prepare_row_5 prepare_row_8 prepare_row_14 prepare_row_20;
    "rotate": rotate_f32 rotate_f16;
    "ternary": ternary_gemv ternary_gemv_4 ternary_gemv_pair ternary_gemv_pair_4 ternary_groups;
}

/// One matrix of a launch of `ternary_gemv`; as `Job` in `kernels/ternary.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Job {
    pub(crate) weights: u64,
    pub(crate) out: u64,
    pub(crate) scale: f32,
    pub(crate) divide: i32,
    pub(crate) rows: i32,
    pub(crate) sink: i32,
}

/// Matrices that share an input; as `Jobs` in `kernels/ternary.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Jobs {
    pub(crate) job: [Job; 3],
    /// Where the second and the third begin in the grid.
    pub(crate) begin: [i32; 2],
}

impl Jobs {
    /// One matrix.
    pub(crate) fn one(job: Job) -> Self {
        Jobs { job: [job, Job::default(), Job::default()], begin: [i32::MAX; 2] }
    }
}

// SAFETY: the layout is C's, without padding, and the kernels' structure has the same fields.
#[expect(unsafe_code, reason = "cudarc asks for this promise about arguments of kernels")]
unsafe impl DeviceRepr for Jobs {}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    /// An address on the device, 0 for none.
    Address(u64),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
    /// A `Jobs`.
    Jobs(Jobs),
}

impl From<u64> for Arg {
    fn from(address: u64) -> Self {
        Arg::Address(address)
    }
}

impl From<usize> for Arg {
    /// Of sizes, which a configuration holds below 2^24.
    fn from(size: usize) -> Self {
        Arg::Int(size as i32)
    }
}

impl From<i32> for Arg {
    fn from(number: i32) -> Self {
        Arg::Int(number)
    }
}

impl From<bool> for Arg {
    fn from(flag: bool) -> Self {
        Arg::Int(i32::from(flag))
    }
}

impl From<f32> for Arg {
    fn from(number: f32) -> Self {
        Arg::Float(number)
    }
}

impl From<Jobs> for Arg {
    fn from(jobs: Jobs) -> Self {
        Arg::Jobs(jobs)
    }
}

/// The arguments of a kernel, in order.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::kernels::Arg::from($arg)),*] };
}
pub(crate) use args;

/// Threads of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Blocks of threads, in two directions.
    pub(crate) grid: [usize; 2],
    /// Threads of a block, in two directions.
    pub(crate) block: [usize; 2],
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
}

/// Puts a kernel into the stream.
///
/// Kernels write where the addresses among `args` point to; whoever calls holds these to be pieces of memory that live
/// as long as the stream has work, as long as the kernel's sizes ask for.
pub(crate) fn launch(stream: &Arc<CudaStream>, kernel: &CudaFunction, shape: Shape, args: &[Arg]) -> Result<()> {
    let mut builder = stream.launch_builder(kernel);
    for arg in args {
        match arg {
            Arg::Address(address) => builder.arg(address),
            Arg::Int(number) => builder.arg(number),
            Arg::Float(number) => builder.arg(number),
            Arg::Jobs(jobs) => builder.arg(jobs),
        };
    }
    let [(x, y), (block_x, block_y)] = [shape.grid, shape.block].map(|[x, y]| (x as u32, y as u32));
    let shared_mem_bytes = shape.shared as u32;
    let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: (block_x, block_y, 1), shared_mem_bytes };
    // SAFETY: the arguments are those of the kernel in number and type (each call site lists them in its order, and a
    // test launches every kernel), and addresses are pieces of memory as said above.
    #[expect(unsafe_code, reason = "a launch cannot be checked")]
    let launched = unsafe { builder.launch(config) };
    launched.doing("launching a kernel")?;
    Ok(())
}
