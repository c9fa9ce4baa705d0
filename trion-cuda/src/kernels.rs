//! The kernels, loaded from PTX, and how they are launched.

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::{function, launch_kernel, module};
use cudarc::driver::{CudaContext, CudaStream, sys};

use miniz_oxide::inflate::decompress_to_vec_zlib;

use crate::error::{Doing, Result};

/// Bytes of dynamic shared memory that a block of threads of the kernels of newer cards may have: every card of compute
/// capability 9.0 and newer has 99 KiB for one.
pub(crate) const MOST_SHARED: usize = 96 << 10;

/// Which PTX is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelSet {
    /// For compute capability 6.1, a GTX 1050; every newer card takes it too.
    Sm61,
    /// For compute capability 9.0 and newer, where a kernel can begin while the one before it ends.
    Sm90,
}

/// A kernel, as the driver names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    function: sys::CUfunction,
    /// Whether it waits by itself for the kernel before it (`in_turn` in `kernels/common.cuh`), so that it may begin earlier.
    waits: bool,
}

/// What was compiled for the card from one file.
struct Module {
    context: Arc<CudaContext>,
    handle: sys::CUmodule,
}

impl Module {
    fn load(context: &Arc<CudaContext>, compressed: &[u8]) -> Result<Self> {
        context.bind_to_thread().doing("choosing a GPU")?;
        let image = CString::new(expand(compressed)).unwrap_or_default();
        // SAFETY: the driver reads PTX that ends with a zero, which lives as long as the call.
        #[expect(unsafe_code, reason = "the driver reads what a pointer says")]
        let handle = unsafe { module::load_data(image.as_ptr().cast()) }.doing("loading kernels")?;
        Ok(Module { context: context.clone(), handle })
    }

    fn kernel(&self, name: &str, waits: bool) -> Result<Kernel> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded as long as `self` is there, and the kernel is only used as long.
        #[expect(unsafe_code, reason = "a handle of the driver's")]
        let function = unsafe { module::get_function(self.handle, name) };
        Ok(Kernel { function: function.doing("looking for a kernel")?, waits })
    }
}

impl Kernel {
    /// The same with room for [`MOST_SHARED`] bytes of dynamic shared memory.
    fn with_shared_memory(self) -> Result<Self> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the kernel's module is loaded.
        #[expect(unsafe_code, reason = "a handle of the driver's")]
        let set = unsafe { function::set_function_attribute(self.function, attribute, MOST_SHARED as i32) };
        set.doing("asking for shared memory")?;
        Ok(self)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // An error of the driver's at the end helps nobody.
        let _ = self.context.bind_to_thread();
        // SAFETY: nothing of this module runs any more: sessions and models hold the device, which holds the modules,
        // and wait for their work when they end.
        #[expect(unsafe_code, reason = "a handle of the driver's")]
        let _ = unsafe { module::unload(self.handle) };
    }
}

/// The PTX that `build.rs` compressed.
fn expand(compressed: &[u8]) -> Vec<u8> {
    decompress_to_vec_zlib(compressed).unwrap_or_default()
}

/// A file of PTX, compressed.
macro_rules! ptx {
    ($file:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $file))
    };
}

macro_rules! kernels {
    ($($file:literal $(and $newer:literal)?: $($kernel:ident)*;)*
        $(only $only:literal $(with $shared:ident)?: $($new:ident)*;)*) => {
        /// Every kernel, by its name in `trion-cuda/kernels`.
        pub(crate) struct Kernels {
            $($(pub(crate) $kernel: Kernel,)*)*
            $($(pub(crate) $new: Option<Kernel>,)*)*
            /// Which of them these are.
            pub(crate) set: KernelSet,
            /// What they belong to.
            _modules: Vec<Module>,
        }

        impl Kernels {
            /// The names of all, and of those that only newer cards have.
            pub(crate) const NAMES: &[&str] = &[$($(stringify!($kernel),)*)*];
            pub(crate) const NEW_NAMES: &[&str] = &[$($(stringify!($new),)*)*];

            /// Hands the PTX to the driver, which compiles it for the card and remembers that on disk.
            pub(crate) fn load(context: &Arc<CudaContext>, set: KernelSet) -> Result<Self> {
                let mut modules = Vec::new();
                let ($($($kernel,)*)*);
                $({
                    let ptx: &[&[u8]] = &[ptx!($file) $(, ptx!($newer))?];
                    let waits = set == KernelSet::Sm90 && ptx.len() > 1;
                    let module = Module::load(context, ptx[usize::from(waits)])?;
                    $($kernel = module.kernel(stringify!($kernel), waits)?;)*
                    modules.push(module);
                })*
                $($(let mut $new = None;)*)*
                if set == KernelSet::Sm90 {
                    $({
                        let module = Module::load(context, ptx!($only))?;
                        let with: &[&str] = &[$(stringify!($shared))?];
                        $({
                            let kernel = module.kernel(stringify!($new), true)?;
                            $new = Some(if with.is_empty() { kernel } else { kernel.with_shared_memory()? });
                        })*
                        modules.push(module);
                    })*
                }
                Ok(Kernels { $($($kernel,)*)* $($($new,)*)* set, _modules: modules })
            }
        }
    };
}

// SAFETY: the driver takes handles of modules and kernels from any thread, and these never change.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Send for Kernels {}

// SAFETY: as above.
#[expect(unsafe_code, reason = "handles of the driver's are raw pointers")]
unsafe impl Sync for Kernels {}

// Those of prompts are long, and serve every card as they are.
kernels! {
    "sm_61/argmax.ptx" and "sm_90/argmax.ptx": argmax_parts argmax_next;
    "sm_61/attention_prompt.ptx": attention_prompt_f32 attention_prompt_f16;
    "sm_61/attention_token.ptx" and "sm_90/attention_token.ptx": attention_scores_f32 attention_scores_f16
        attention_outputs_f32 attention_outputs_f16;
    "sm_61/ceilings.ptx" and "sm_90/ceilings.ptx": touch chase add_in_turn dot_products;
    "sm_61/embed.ptx" and "sm_90/embed.ptx": begin embed;
    "sm_61/float_matrix.ptx" and "sm_90/float_matrix.ptx": float_product_f32 float_product_f32_4 float_product_f32_8
        float_product_f16 float_product_f16_4 float_product_f16_8 float_product_bf16 float_product_bf16_4
        float_product_bf16_8 float_product_i8 float_product_i8_4 float_product_i8_8;
    "sm_61/gemm.ptx": ternary_gemm;
    "sm_61/prepare.ptx" and "sm_90/prepare.ptx": prepare prepare_row_2 prepare_row_5 prepare_row_8 prepare_row_14
        prepare_row_20;
    "sm_61/project.ptx" and "sm_90/project.ptx": project_rows project_rows_wide project_pair project_pair_wide;
    "sm_61/rotate.ptx": rotate_f32 rotate_f16;
    "sm_61/ternary.ptx" and "sm_90/ternary.ptx": ternary_gemv ternary_gemv_4 ternary_gemv_pair ternary_gemv_pair_4
        ternary_groups;
    "sm_61/top_k.ptx" and "sm_90/top_k.ptx": top_k_logits top_k_candidates;
    only "sm_90/fives.ptx" with shared_memory: fives_gemv fives_gemv_one fives_gemv_pair fives_tokens
        fives_tokens_pair;
    only "sm_90/fives_gemm.ptx": fives_gemm fives_gemm_pair;
    only "sm_90/tokens.ptx": ternary_tokens ternary_tokens_pair;
}

/// One matrix of a launch; as `Job` in `kernels/jobs.cuh`.
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

/// Matrices that share an input; as `Jobs` in `kernels/jobs.cuh`.
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

/// A session at work, as kernels see it; as `Slot` in `kernels/common.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
pub(crate) struct Slot {
    /// Addresses of the cache, of the rotary tables and of all tokens.
    pub(crate) cache: u64,
    pub(crate) rotation: u64,
    pub(crate) tokens: u64,
    /// Positions that there is room for, and the one that is computed.
    pub(crate) context: i32,
    pub(crate) position: i32,
}

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
    /// Blocks of threads, in three directions.
    pub(crate) grid: [usize; 3],
    /// Threads of a block, in two directions.
    pub(crate) block: [usize; 2],
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
}

/// Puts a kernel into the stream.
///
/// Kernels write where the addresses among `args` point to; whoever calls holds these to be pieces of memory that live
/// as long as the stream has work, as long as the kernel's sizes ask for.
pub(crate) fn launch(stream: &Arc<CudaStream>, kernel: Kernel, shape: Shape, args: &[Arg]) -> Result<()> {
    let mut pointers: Vec<*mut c_void> = Vec::with_capacity(args.len());
    for arg in args {
        let pointer: *const c_void = match arg {
            Arg::Address(address) => ptr::from_ref(address).cast(),
            Arg::Int(number) => ptr::from_ref(number).cast(),
            Arg::Float(number) => ptr::from_ref(number).cast(),
            Arg::Jobs(jobs) => ptr::from_ref(jobs).cast(),
        };
        pointers.push(pointer.cast_mut());
    }
    let [x, y, z] = shape.grid.map(|blocks| blocks as u32);
    let [block_x, block_y] = shape.block.map(|threads| threads as u32);
    let shared = shape.shared as u32;
    stream.context().bind_to_thread().doing("choosing a GPU")?;
    let launched = if kernel.waits {
        let id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // The arguments are those of the kernel in number and type: each call site lists them in its order, and a test
        // launches every kernel. Addresses are pieces of memory as said above.
        #[expect(unsafe_code, reason = "a launch cannot be checked")]
        // SAFETY: arguments as above; the driver has this function, or no kernel would wait by itself, and copies the
        // configuration and the attribute, which live until it returns.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, kernel.function, pointers.as_mut_ptr(), ptr::null_mut()).result()
        }
    } else {
        let (grid, block) = ((x, y, z), (block_x, block_y, 1));
        #[expect(unsafe_code, reason = "a launch cannot be checked")]
        // SAFETY: as many arguments of such types as the kernel has, each of which lives in `args` until this returns.
        unsafe {
            launch_kernel(kernel.function, grid, block, shared, stream.cu_stream(), &mut pointers)
        }
    };
    launched.doing("launching a kernel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_comes_back_as_it_was() {
        for (compressed, text) in [
            (&ptx!("sm_61/project.ptx")[..], include_str!("../ptx/sm_61/project.ptx")),
            (ptx!("sm_90/project.ptx"), include_str!("../ptx/sm_90/project.ptx")),
            (ptx!("sm_90/fives.ptx"), include_str!("../ptx/sm_90/fives.ptx")),
            (ptx!("sm_90/tokens.ptx"), include_str!("../ptx/sm_90/tokens.ptx")),
        ] {
            assert!(expand(compressed) == text.as_bytes());
            assert!(compressed.len() < text.len() / 3, "{} bytes of {}", compressed.len(), text.len());
        }
    }
}
