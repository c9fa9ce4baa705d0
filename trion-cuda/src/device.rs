//! A GPU, found at run time.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, result};

use crate::error::{Doing, Error, Result};
use crate::kernels::{KernelSet, Kernels};

/// Functions of the driver that are called. The bindings end the process where one is missing, so that they are looked
/// for first; those of graphs came with CUDA 10 to 11.4, in 2021.
const SYMBOLS: [&[u8]; 34] = [
    b"cuCtxGetCurrent\0",
    b"cuCtxSetCurrent\0",
    b"cuCtxSynchronize\0",
    b"cuDeviceGet\0",
    b"cuDeviceGetAttribute\0",
    b"cuDeviceGetCount\0",
    b"cuDeviceGetName\0",
    b"cuDevicePrimaryCtxRelease_v2\0",
    b"cuDevicePrimaryCtxRetain\0",
    b"cuFuncSetAttribute\0",
    b"cuGraphDestroy\0",
    b"cuGraphExecDestroy\0",
    b"cuGraphInstantiateWithFlags\0",
    b"cuGraphLaunch\0",
    b"cuInit\0",
    b"cuLaunchKernel\0",
    b"cuMemAllocAsync\0",
    b"cuMemAlloc_v2\0",
    b"cuMemFreeAsync\0",
    b"cuMemFree_v2\0",
    b"cuMemGetInfo_v2\0",
    b"cuMemcpyDtoDAsync_v2\0",
    b"cuMemcpyDtoHAsync_v2\0",
    b"cuMemcpyHtoDAsync_v2\0",
    b"cuMemsetD8Async\0",
    b"cuModuleGetFunction\0",
    b"cuModuleLoadData\0",
    b"cuModuleUnload\0",
    b"cuStreamBeginCapture_v2\0",
    b"cuStreamCreate\0",
    b"cuStreamDestroy_v2\0",
    b"cuStreamEndCapture\0",
    b"cuStreamSynchronize\0",
    b"cuStreamWaitEvent\0",
];

/// What [`KernelSet::Sm90`] needs besides; it came with CUDA 11.8.
const LAUNCH_EX: &[u8] = b"cuLaunchKernelEx\0";

/// An NVIDIA GPU with the kernels loaded. Cloning shares it.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    kernels: Kernels,
    name: String,
    multiprocessors: usize,
}

impl CudaDevice {
    /// Opens GPU number `index`, from 0 in the driver's order (`CUDA_VISIBLE_DEVICES` chooses among them).
    ///
    /// The first time on a machine the driver compiles the kernels, which takes about a second.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`] or [`Error::TooOld`]; [`Error::Driver`] if the driver fails.
    pub fn open(index: usize) -> Result<Self> {
        Self::open_with(index, true)
    }

    /// The same with the kernels of a GTX 1050 on any card, to see that they are right and how fast they are.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn open_compatible(index: usize) -> Result<Self> {
        Self::open_with(index, false)
    }

    fn open_with(index: usize, newest: bool) -> Result<Self> {
        find_driver()?;
        let count = result::device::get_count().doing("counting GPUs")?.max(0) as usize;
        if index >= count {
            return Err(Error::NoDevice { index, count });
        }
        let context = CudaContext::new(index).doing("opening a GPU")?;
        // SAFETY: memory is only shared between streams after the stream that wrote it has been waited for: a model's
        // after its upload, a session's when it is copied.
        #[expect(unsafe_code, reason = "events cannot be recorded while a graph is captured")]
        unsafe {
            context.disable_event_tracking();
        }
        let name = context.name().doing("asking for the GPU's name")?;
        let (major, minor) = context.compute_capability().doing("asking for the GPU's capability")?;
        if (major, minor) < (6, 1) {
            return Err(Error::TooOld { name, major, minor });
        }
        let overlaps = newest && major >= 9 && has_symbol(LAUNCH_EX);
        let set = if overlaps { KernelSet::Sm90 } else { KernelSet::Sm61 };
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(attribute).doing("counting multiprocessors")?.max(1) as usize;
        let kernels = Kernels::load(&context, set)?;
        Ok(CudaDevice(Arc::new(Inner { context, kernels, name, multiprocessors })))
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its multiprocessors: what decides how finely work is divided, and how much scratch memory that takes.
    pub fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// The fastest clock of its multiprocessors, GHz, as the driver names it.
    pub(crate) fn clock(&self) -> Result<f64> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE;
        Ok(f64::from(self.0.context.attribute(attribute).doing("asking for the clock")?) / 1e6)
    }

    /// Bytes of its memory: free now, and in all.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.0.context.mem_get_info().doing("asking for free memory")
    }

    /// Which kernels are loaded.
    pub fn kernel_set(&self) -> KernelSet {
        self.0.kernels.set
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.0.kernels
    }

    /// A stream of its own: what is put into it happens in order.
    pub(crate) fn stream(&self) -> Result<Arc<CudaStream>> {
        self.0.context.new_stream().doing("making a stream")
    }

    /// Allocates, after a look at what is free.
    pub(crate) fn allocate(
        &self,
        stream: &Arc<CudaStream>,
        bytes: usize,
        what: &'static str,
        advice: &'static str,
    ) -> Result<CudaSlice<u8>> {
        let refused = |free| Error::Memory { what, needed: bytes, free, advice };
        let (free, _) = self.memory()?;
        if bytes > free {
            return Err(refused(free));
        }
        // Zeros, so that nothing of another program's is ever read.
        stream.alloc_zeros(bytes).map_err(|_| refused(free))
    }
}

/// Looks for the driver, and for all that will be called in it, without calling anything that panics where it is
/// missing.
fn find_driver() -> Result<()> {
    let missing = |what: &str| Error::NoDriver(what.to_owned());
    // SAFETY: loads the driver's library, whose initialisers run.
    #[expect(unsafe_code, reason = "a library is loaded")]
    let is_there = unsafe { sys::is_culib_present() };
    if !is_there {
        return Err(missing("libcuda (nvcuda.dll on Windows) is not there"));
    }
    for symbol in SYMBOLS {
        if !has_symbol(symbol) {
            let name = String::from_utf8_lossy(&symbol[..symbol.len() - 1]);
            return Err(Error::NoDriver(format!("it lacks {name}: it is too old, install a newer one")));
        }
    }
    result::init().map_err(|e| Error::NoDriver(format!("it does not start: {e}")))
}

/// Whether the driver's library, which must be there, has a function.
fn has_symbol(symbol: &[u8]) -> bool {
    // SAFETY: looks at a name in the library, as an address that nobody follows.
    #[expect(unsafe_code, reason = "a library is looked into")]
    unsafe {
        sys::culib().get::<*const ()>(symbol).is_ok()
    }
}
