//! Every kernel by itself, compared with the numerics contract bit for bit: what to run on a card, to see that the
//! kernels are right there, and which of them is not.
//!
//! A model shows whether all kernels together are right, at the shapes that it has. Here each kernel is launched alone,
//! as a session launches it, at shapes that nothing divides, with NaN and infinity about, and all memory that is near
//! its own is looked at afterwards. What is expected comes from `reference.rs`, which is `docs/numerics.md` written down
//! once more.

mod attention;
mod case;
mod ceilings;
mod data;
mod fives;
mod prepare;
mod products;
mod project;
mod reference;
mod tokens;
mod top_k;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::device::CudaDevice;
use crate::error::{Doing, Result};
use crate::kernels::{Arg, Kernel, KernelSet, Kernels, Shape, launch};
use case::Case;
use data::Random;

/// Bytes of device memory for the largest case.
const ROOM: usize = 128 << 20;

/// What came of the cases of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The kernel, as it is called in `trion-cuda/kernels`.
    pub kernel: &'static str,
    /// Cases: launches with one shape and one set of numbers.
    pub cases: usize,
    /// How many of them differ.
    pub failed: usize,
    /// The first case that differs, and what differs there.
    pub difference: Option<String>,
}

/// A kernel and its name.
type Named = (&'static str, Kernel);

/// The kernel of a name, with that name.
macro_rules! named {
    ($bench:expr, $kernel:ident) => {
        (stringify!($kernel), $bench.device.kernels().$kernel)
    };
}
use named;

/// Launches every kernel of the device by itself and compares what it writes with what the contract asks for, bit for
/// bit, a NaN equal to any NaN. Memory around a kernel's outputs must stay as it is.
///
/// Takes about ten seconds, most of them on the CPU. A failure of the driver's in the middle, such as a kernel that
/// reads where nothing is, counts as a difference of the kernel that was at work; those that would have come after it
/// are given as not launched.
///
/// # Errors
/// [`crate::Error::Memory`] without 128 MiB of free memory, [`crate::Error::Driver`] before the first kernel.
pub fn kernels(device: &CudaDevice) -> Result<Vec<Check>> {
    let mut bench = Bench::new(device)?;
    let parts = [
        tokens::check,
        top_k::check,
        prepare::check,
        project::check,
        products::check_ternary,
        fives::check,
        products::check_float,
        attention::check_rotate,
        attention::check_token,
        attention::check_prompt,
        ceilings::check,
    ];
    if let Err(e) = parts.into_iter().try_for_each(|part| part(&mut bench)) {
        let case = bench.now.1.clone();
        bench.note(bench.now.0, Some(format!("{case}: {e}")));
    }
    let mut checks = std::mem::take(&mut bench.checks);
    let new = if device.kernel_set() == KernelSet::Sm90 { Kernels::NEW_NAMES } else { &[] };
    for kernel in Kernels::NAMES.iter().chain(new) {
        if !checks.iter().any(|check| check.kernel == *kernel) {
            let difference = Some("not launched".to_owned());
            checks.push(Check { kernel, cases: 0, failed: 1, difference });
        }
    }
    Ok(checks)
}

/// Where kernels are launched.
struct Bench {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    memory: CudaSlice<u8>,
    base: u64,
    random: Random,
    checks: Vec<Check>,
    /// The kernel and the case that are at work.
    now: (&'static str, String),
}

impl Bench {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.stream()?;
        let memory = device.allocate(&stream, ROOM, "checking kernels", "close other programs")?;
        let base = memory.device_ptr(&stream).0;
        let now = ("", String::new());
        let device = device.clone();
        Ok(Bench { device, stream, memory, base, random: Random::new(), checks: Vec::new(), now })
    }

    /// A case without anything in its memory.
    fn case(&self) -> Case {
        Case::new(self.base)
    }

    /// Puts the case's memory on the device, launches kernels one behind the other, and compares. The case counts as
    /// one of the last kernel.
    fn run(&mut self, what: String, case: &Case, launches: &[(Named, Shape, &[Arg])]) -> Result<()> {
        let name = launches.last().map_or("", |((name, _), ..)| name);
        self.now = (name, what);
        let before = case.before();
        let mut to = self.memory.slice_mut(..before.len());
        self.stream.memcpy_htod(before, &mut to).doing("copying to the GPU")?;
        for ((_, kernel), shape, args) in launches {
            launch(&self.stream, *kernel, *shape, args)?;
        }
        let mut found = vec![0; before.len()];
        self.stream.memcpy_dtoh(&self.memory.slice(..found.len()), &mut found).doing("copying from the GPU")?;
        self.stream.synchronize().doing("waiting for the GPU")?;
        let difference = case.compare(&found).map(|difference| format!("{}: {difference}", self.now.1));
        self.note(name, difference);
        Ok(())
    }

    /// Counts a case.
    fn note(&mut self, kernel: &'static str, difference: Option<String>) {
        let at = self.checks.iter().position(|check| check.kernel == kernel).unwrap_or_else(|| {
            self.checks.push(Check { kernel, cases: 0, failed: 0, difference: None });
            self.checks.len() - 1
        });
        let check = &mut self.checks[at];
        check.cases += 1;
        check.failed += usize::from(difference.is_some());
        if check.difference.is_none() {
            check.difference = difference;
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The memory may still be in use where something failed, which has been reported.
        let _ = self.stream.synchronize();
    }
}
