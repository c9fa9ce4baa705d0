//! A GPU: its memory, launches of kernels, and products by cuBLAS. Everything goes into one stream, in order.

use std::ffi::c_void;
use std::fmt::Write;
use std::sync::Arc;

use cudarc::cublas::{result as blas, sys as cublas};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, result,
};
use cudarc::{driver, nvrtc};
use nvml_wrapper::Nvml;

use crate::error::{Error, Result};

/// Where something lies in the GPU's memory; 0 is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(u64);

impl Address {
    pub(crate) const NONE: Address = Address(0);

    /// The address of element `index` of `bytes` each.
    pub(crate) fn element(self, index: usize, bytes: usize) -> Self {
        Address(self.0 + (index * bytes) as u64)
    }
}

/// Bytes of a single, and of a bfloat16.
pub(crate) const SINGLE: usize = 4;
pub(crate) const HALF: usize = 2;

/// What a kernel is given.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Address(u64),
    Int(i32),
    Float(f32),
}

impl From<Address> for Argument {
    fn from(value: Address) -> Self {
        Argument::Address(value.0)
    }
}

impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Argument::Int(value as i32)
    }
}

impl From<bool> for Argument {
    fn from(value: bool) -> Self {
        Argument::Int(i32::from(value))
    }
}

impl From<f64> for Argument {
    fn from(value: f64) -> Self {
        Argument::Float(value as f32)
    }
}

/// The arguments of a kernel, in its order.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::cuda::gpu::Argument::from($argument)),*] };
}
pub(crate) use arguments;

/// Which product of matrices in rows, all bfloat16 but for the result.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// `a` `[m, k]` times `b` `[n, k]` turned.
    Turned,
    /// `a` `[m, k]` times `b` `[k, n]`.
    Plain,
    /// `a` `[k, m]` turned times `b` `[k, n]`.
    Gradient,
}

/// A product `[m, n]`, or a stack of them.
pub(crate) struct Product {
    pub(crate) form: Form,
    /// `[m, n, k]`.
    pub(crate) shape: [usize; 3],
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) to: Address,
    /// Whether the result is in single precision.
    pub(crate) single: bool,
    /// What the product is multiplied by, and what was there before it is added.
    pub(crate) factors: [f32; 2],
    /// Matrices of a stack, one behind the other.
    pub(crate) count: usize,
}

/// Turns an error of the driver's into one that says what was being done.
pub(crate) fn doing<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Gpu(format!("{what}: {error}"))
}

pub(crate) struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: cublas::cublasHandle_t,
    memory: Vec<CudaSlice<u8>>,
    /// NVIDIA's management library, if it is there, and the name that it knows the GPU by.
    management: Option<(Nvml, String)>,
    /// Blocks of 128 threads that are about as many as run at the same time.
    pub(crate) blocks: usize,
}

impl Gpu {
    pub(crate) fn open(index: usize) -> Result<Self> {
        // SAFETY: libraries are loaded, whose initialisers run.
        #[expect(unsafe_code, reason = "libraries are loaded")]
        let there = unsafe {
            [
                ("libcuda", driver::sys::is_culib_present()),
                ("libnvrtc", nvrtc::sys::is_culib_present()),
                ("libcublas", cublas::is_culib_present()),
            ]
        };
        if let Some((name, _)) = there.into_iter().find(|(_, there)| !there) {
            return Err(Error::Gpu(format!("{name} was not found, expected CUDA 12 or newer in the library path")));
        }
        result::init().map_err(doing("starting the driver"))?;
        let count = result::device::get_count().map_err(doing("counting GPUs"))?.max(0) as usize;
        if index >= count {
            return Err(Error::Gpu(format!("there is no GPU {index}: {count} were found")));
        }
        let context = CudaContext::new(index).map_err(doing("opening a GPU"))?;
        let capability = context.compute_capability().map_err(doing("asking for the GPU's capability"))?;
        if capability < (8, 0) {
            let (major, minor) = capability;
            let message = format!("GPU {index} has compute capability {major}.{minor}, expected 8.0 for bfloat16");
            return Err(Error::Gpu(message));
        }
        let attribute = driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(attribute).map_err(doing("counting multiprocessors"))?.max(1) as usize;
        let stream = context.new_stream().map_err(doing("making a stream"))?;
        let blas = blas::create_handle().map_err(doing("starting cuBLAS"))?;
        let mode = cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle was just made, and the stream lives as long as it.
        #[expect(unsafe_code, reason = "handles of CUDA")]
        unsafe {
            blas::set_stream(blas, stream.cu_stream().cast()).map_err(doing("giving cuBLAS a stream"))?;
            // Sums of whole numbers stay exact.
            cublas::cublasSetMathMode(blas, mode).result().map_err(doing("setting up cuBLAS"))?;
        }
        let management = Nvml::init().ok().zip(context.uuid().ok().map(|uuid| name(uuid.bytes.map(|b| b as u8))));
        Ok(Gpu { context, stream, blas, memory: Vec::new(), management, blocks: multiprocessors * 8 })
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Joules since the driver was loaded, where the GPU tells.
    pub(crate) fn energy(&self) -> Option<f64> {
        let (library, name) = self.management.as_ref()?;
        let millijoules = library.device_by_uuid(name.as_str()).ok()?.total_energy_consumption().ok()?;
        Some(millijoules as f64 / 1e3)
    }

    /// Memory that is zero and stays until the GPU is closed.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<Address> {
        let refused = |error| {
            let free = self.context.mem_get_info().map_or(0, |(free, _)| free);
            let message = format!("{bytes} bytes of memory: {error} ({free} are free); give fewer sequences");
            Error::Gpu(message)
        };
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(16)).map_err(refused)?;
        let address = Address(slice.device_ptr(&self.stream).0);
        self.memory.push(slice);
        Ok(address)
    }

    /// Memory that holds `values`.
    pub(crate) fn constant<T: Copy>(&mut self, values: &[T]) -> Result<Address> {
        let address = self.allocate(size_of_val(values))?;
        self.write(address, values)?;
        Ok(address)
    }

    pub(crate) fn write<T: Copy>(&self, to: Address, values: &[T]) -> Result<()> {
        // SAFETY: memory of this size was allocated, and what is read lives until the stream was waited for.
        #[expect(unsafe_code, reason = "addresses of the GPU's memory")]
        unsafe { result::memcpy_htod_async(to.0, values, self.stream.cu_stream()) }
            .map_err(doing("writing to the GPU"))?;
        self.wait()
    }

    pub(crate) fn read<T: Copy + Default>(&self, from: Address, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); count];
        // SAFETY: memory of this size was allocated, and `values` lives until the stream was waited for.
        #[expect(unsafe_code, reason = "addresses of the GPU's memory")]
        unsafe { result::memcpy_dtoh_async(&mut values, from.0, self.stream.cu_stream()) }
            .map_err(doing("reading from the GPU"))?;
        self.wait()?;
        Ok(values)
    }

    pub(crate) fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: memory of this size was allocated at both.
        #[expect(unsafe_code, reason = "addresses of the GPU's memory")]
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()) }
            .map_err(doing("copying on the GPU"))
    }

    pub(crate) fn clear(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: memory of this size was allocated.
        #[expect(unsafe_code, reason = "addresses of the GPU's memory")]
        unsafe { result::memset_d8_async(at.0, 0, bytes, self.stream.cu_stream()) }.map_err(doing("clearing memory"))
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(doing("waiting for the GPU"))
    }

    /// Puts a kernel into the stream.
    pub(crate) fn launch(
        &self,
        kernel: &CudaFunction,
        grid: [usize; 3],
        threads: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let [x, y, z] = grid.map(|n| n as u32);
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(kernel);
        for argument in arguments {
            match argument {
                Argument::Address(value) => launch.arg(value),
                Argument::Int(value) => launch.arg(value),
                Argument::Float(value) => launch.arg(value),
            };
        }
        // SAFETY: callers give the arguments that the kernel declares, with memory of the sizes that it documents.
        #[expect(unsafe_code, reason = "a kernel does what it wants with addresses")]
        unsafe { launch.launch(config) }.map(|_| ()).map_err(doing("starting a kernel"))
    }

    /// Puts a product into the stream.
    pub(crate) fn multiply(&self, product: &Product) -> Result<()> {
        use cublas::cublasOperation_t::{CUBLAS_OP_N as AS_IS, CUBLAS_OP_T as TURNED};
        use cublas::cudaDataType::{CUDA_R_16BF as BF16, CUDA_R_32F as F32};
        let [m, n, k] = product.shape;
        // Matrices in rows are turned ones in columns, as cuBLAS has them: it computes the result turned, from `b` and `a`.
        let (turn_b, row_b, turn_a, row_a) = match product.form {
            Form::Turned => (TURNED, k, AS_IS, k),
            Form::Plain => (AS_IS, n, AS_IS, k),
            Form::Gradient => (AS_IS, n, TURNED, m),
        };
        let [alpha, beta] = [0, 1].map(|i| (&raw const product.factors[i]).cast::<c_void>());
        let kind = if product.single { F32 } else { BF16 };
        // SAFETY: callers give memory of the shapes' sizes; the factors live as long as the call.
        #[expect(unsafe_code, reason = "a library does what it wants with addresses")]
        unsafe {
            blas::gemm_strided_batched_ex(
                self.blas,
                turn_b,
                turn_a,
                n as i32,
                m as i32,
                k as i32,
                alpha,
                product.b.0 as *const c_void,
                BF16,
                row_b as i32,
                (n * k) as i64,
                product.a.0 as *const c_void,
                BF16,
                row_a as i32,
                (m * k) as i64,
                beta,
                product.to.0 as *mut c_void,
                kind,
                n as i32,
                (m * n) as i64,
                product.count as i32,
                cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(doing("starting a product"))
    }
}

/// A GPU's name by its identifier: `GPU-` and the digits in five groups.
fn name(uuid: [u8; 16]) -> String {
    let mut name = "GPU".to_owned();
    for (i, byte) in uuid.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&i) {
            name.push('-');
        }
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // An error of CUDA's at the end helps nobody.
        let _ = self.wait();
        // SAFETY: the handle is not used any more.
        #[expect(unsafe_code, reason = "a handle of CUDA's")]
        let _ = unsafe { blas::destroy_handle(self.blas) };
    }
}
