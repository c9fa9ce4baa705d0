//! Runtime
//!
//! What a host lends to its models: a device, threads and a place for log messages. Without one (NULL) a model computes
//! on the calling thread alone and says nothing. The library has no globals, reads no environment variables, handles no
//! signals and prints nothing.
//!
//! Results do not depend on the device or on threads: any of them, any number, in any order, gives the same bits.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Display;
use std::mem::{MaybeUninit, offset_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trion_engine::{Device, DeviceName, Parallel, Pool};

use crate::edge::{Options, call, check, place};
use crate::status::{Failure, trion_error, trion_status};

/// A task of a host's job system: trion_parallel_for_fn calls `task(data, index)`.
pub type trion_task_fn = Option<unsafe extern "C" fn(data: *mut c_void, index: usize)>;

/// A host's job system: calls `task(data, i)` for each i from 0 to `count` - 1, on any threads, in any order, at once
/// or one after another, and returns when all calls have returned. A call that is left out costs time and changes no
/// result. It may be called from several threads at once, if sessions of the runtime are.
pub type trion_parallel_for_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, count: usize, task: trion_task_fn, data: *mut c_void)>;

/// Receives a log message: one line of UTF-8 with a zero at its end, valid during the call. It may be called from any
/// thread that makes a call of this library, and must not call back into it.
pub type trion_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: trion_log_level, message: *const c_char)>;

/// How much a host wants to hear. Each level includes those before it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum trion_log_level {
    /// Calls that failed while a model was made.
    TRION_LOG_ERROR = 1,
    /// Models that were made.
    TRION_LOG_INFO = 2,
    /// Sessions that were made, with their size.
    TRION_LOG_DEBUG = 3,
}

use trion_log_level::*;

/// Options of a runtime. Fields that are zero have their default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_runtime_options {
    /// sizeof(trion_runtime_options).
    pub struct_size: usize,
    /// Threads of a pool of the library's own, the calling one included, at most 256; 0 and 1 for no threads. Not
    /// together with `parallel_for`.
    pub threads: usize,
    /// The host's job system; NULL for none.
    pub parallel_for: trion_parallel_for_fn,
    /// Tasks that the job system is given at a time, at most: its number of workers; 0 stands for 1.
    pub parallel_workers: usize,
    /// Handed to `parallel_for`.
    pub parallel_user: *mut c_void,
    /// Receives messages; NULL for none.
    pub log: trion_log_fn,
    /// The largest trion_log_level that is wanted; 0 stands for TRION_LOG_INFO.
    pub log_level: u32,
    /// Handed to `log`.
    pub log_user: *mut c_void,
    /// Where its models compute, with a zero at its end: "cpu"; "cuda", or "cuda:1" with another number, an NVIDIA GPU
    /// in the driver's order; "auto", the first GPU if there is one that works, and the CPU otherwise. NULL for "cpu".
    /// Read by the call, and not kept. Since version 1.1.
    pub device: *const c_char,
}

// SAFETY: all fields may be zero, and are numbers, pointers and nullable functions.
unsafe impl Options for trion_runtime_options {
    const FIRST_SIZE: usize = offset_of!(Self, device);
}

/// A device, threads and a log. Reference counted: a model keeps its runtime alive.
pub struct trion_runtime(Arc<Runtime>);

/// What a runtime is made of.
#[derive(Default)]
pub(crate) struct Runtime {
    pub(crate) device: Device,
    /// For C.
    device_name: Option<CString>,
    threads: Threads,
    log: Option<Log>,
}

#[derive(Default)]
enum Threads {
    #[default]
    Caller,
    Pool(Pool),
    Host(Jobs),
}

struct Jobs {
    parallel_for: unsafe extern "C" fn(*mut c_void, usize, trion_task_fn, *mut c_void),
    workers: usize,
    user: *mut c_void,
}

struct Log {
    log: unsafe extern "C" fn(*mut c_void, trion_log_level, *const c_char),
    level: u32,
    user: *mut c_void,
}

// SAFETY: the host's functions and what they are handed may be used from any thread; the header asks for it.
unsafe impl Send for Jobs {}
// SAFETY: as above.
unsafe impl Sync for Jobs {}
// SAFETY: as above.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Runtime {
    /// A model's runtime: the host's, or one without threads and log.
    pub(crate) fn of(handle: Option<&trion_runtime>) -> Arc<Runtime> {
        handle.map_or_else(Arc::default, |runtime| Arc::clone(&runtime.0))
    }

    /// The device's name for people.
    pub(crate) fn device_name(&self) -> &CStr {
        self.device_name.as_deref().unwrap_or(c"cpu")
    }

    pub(crate) fn error(&self, message: impl Display) {
        self.log(TRION_LOG_ERROR, message);
    }

    pub(crate) fn info(&self, message: impl Display) {
        self.log(TRION_LOG_INFO, message);
    }

    pub(crate) fn debug(&self, message: impl Display) {
        self.log(TRION_LOG_DEBUG, message);
    }

    fn log(&self, level: trion_log_level, message: impl Display) {
        let Some(log) = self.log.as_ref().filter(|log| level as u32 <= log.level) else { return };
        let line = message.to_string().replace(['\0', '\n'], " ");
        // No zero is left in it.
        let line = CString::new(line).unwrap_or_default();
        // SAFETY: a function of the host's, with what it asked for and a text that ends with a zero.
        unsafe { (log.log)(log.user, level, line.as_ptr()) };
    }

    pub(crate) fn threads(&self) -> usize {
        match &self.threads {
            Threads::Caller => 1,
            Threads::Pool(pool) => pool.threads(),
            Threads::Host(jobs) => jobs.workers,
        }
    }

    pub(crate) fn run(&self, work: &(dyn Fn() + Sync)) {
        match &self.threads {
            Threads::Caller => work(),
            Threads::Pool(pool) => pool.run(work),
            Threads::Host(jobs) => jobs.run(work),
        }
    }
}

/// What a job is given: the work that all share, and a place to say that it panicked.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    panicked: AtomicBool,
}

impl Jobs {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        let job = Job { work, panicked: AtomicBool::new(false) };
        let data = (&raw const job).cast_mut().cast::<c_void>();
        // SAFETY: a function of the host's, with what it asked for; it returns when all calls of `run_job` have, so
        // `job` outlives them.
        unsafe { (self.parallel_for)(self.user, self.workers, Some(run_job), data) };
        assert!(!job.panicked.into_inner(), "a job panicked");
    }
}

/// One of the calls that a host's job system makes.
unsafe extern "C" fn run_job(data: *mut c_void, _index: usize) {
    // SAFETY: `data` is the job that `Jobs::run` handed out, which is shared and still alive.
    let job = unsafe { &*data.cast::<Job<'_>>() };
    // The thread is the host's: nothing unwinds into it. `Jobs::run` carries the panic on.
    if catch_unwind(AssertUnwindSafe(job.work)).is_err() {
        job.panicked.store(true, Ordering::Relaxed);
    }
}

/// Finds the device of that name.
///
/// # Safety
/// `name` is NULL, or text with a zero at its end.
unsafe fn device(name: *const c_char) -> Result<Device, Failure> {
    if name.is_null() {
        return Ok(Device::Cpu);
    }
    check(name, 1)?;
    // SAFETY: the caller's promise, and the name is not NULL.
    let name = unsafe { CStr::from_ptr(name) };
    let name = name.to_str().map_err(|_| Failure::argument("option device is not UTF-8"))?;
    Device::open(name.parse::<DeviceName>()?).map_err(Failure::Device)
}

/// Makes a runtime. Free it with trion_runtime_free(). Any thread.
///
/// TRION_INVALID_ARGUMENT for options outside their range, or threads that the system does not give; TRION_DEVICE for a
/// GPU that is not there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_runtime_new(
    options: *const trion_runtime_options,
    runtime: Option<&mut MaybeUninit<*mut trion_runtime>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(runtime)?;
        // SAFETY: the header's rule for options.
        let options = unsafe { trion_runtime_options::read(options)? };
        let threads = match (options.parallel_for, options.threads) {
            (Some(_), 1..) => return Err(Failure::argument("threads and parallel_for are set, expected one of them")),
            (Some(parallel_for), 0) => {
                let workers = options.parallel_workers.max(1);
                Threads::Host(Jobs { parallel_for, workers, user: options.parallel_user })
            }
            (None, 0 | 1) => Threads::Caller,
            (None, threads) => Threads::Pool(Pool::new(threads)?),
        };
        let level = match options.log_level {
            0 => TRION_LOG_INFO as u32,
            level if level <= TRION_LOG_DEBUG as u32 => level,
            _ => return Err(Failure::argument("option log_level is no trion_log_level")),
        };
        let log = options.log.map(|log| Log { log, level, user: options.log_user });
        // SAFETY: the header's rule for texts that end with a zero.
        let device = unsafe { device(options.device)? };
        // No name has a zero in it.
        let device_name = CString::new(device.name()).ok();
        let runtime = Runtime { device, device_name, threads, log };
        out.write(Box::into_raw(Box::new(trion_runtime(Arc::new(runtime)))));
        Ok(())
    })
}

/// Gives a runtime back; NULL does nothing. Its threads end, and its callbacks are forgotten, when the last model that
/// was made with it is gone. Any thread, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_runtime_free(runtime: *mut trion_runtime) {
    if !runtime.is_null() {
        // SAFETY: it came from trion_runtime_new(), and is not used again.
        drop(unsafe { Box::from_raw(runtime) });
    }
}
