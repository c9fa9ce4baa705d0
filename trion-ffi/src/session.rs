//! Session
//!
//! A session is one sequence of tokens: a character in a game, a conversation, a document. Push tokens, then advance
//! until the model has chosen its next token; it is part of the sequence at once, and advancing again computes the one
//! after it.
//!
//! All memory of a session is one block that is asked for when it is made: from the library, from an allocator of the
//! caller's, or a buffer that the caller hands in. A session with a constraint also uses the heap. Of a session on a
//! GPU the block has only a small part; see below, at GPU.
//!
//! Work is counted in units, not in time: the same calls do the same work on every machine. A unit is 64 tiles of 32
//! rows of a ternary matrix, each for one token, or what takes about as long; trion_session_token_units() says how many
//! a token costs, and every event how many its call took. How long a unit takes depends on the model and the machine,
//! so measure some at the start, and spend as many in a frame as fit. How work is divided into calls changes no bit of
//! the result.
//!
//! One call at a time may use a session; another that comes between returns TRION_BUSY and changes nothing. Only
//! trion_session_cancel() may be called at any time. Different sessions do not disturb each other, on any threads.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, TryLockError};

use trion_core::{Isa, Kernel, Sampler, SamplerOptions, SessionOptions};

use crate::advance::trion_event;
use crate::edge::{Options, cache_type, call, handle, place, switch};
use crate::model::{Loaded, trion_model};
use crate::sequence::Sequence;
use crate::status::{Failure, trion_error, trion_status};
use crate::storage::{self, Owner};

/// Number format of keys and values.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_cache {
    /// Single precision: nothing is lost.
    TRION_CACHE_F32 = 0,
    /// Half precision: half the memory, with values rounded.
    TRION_CACHE_F16 = 1,
}

/// Instruction sets. All give the same bits; but for AMX, a choice is for tests. A GPU has none to choose from.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_kernel {
    /// The fastest that the CPU has and that asks nothing of the operating system: all but TRION_KERNEL_AMX.
    TRION_KERNEL_AUTO = 0,
    /// Plain code, on every machine.
    TRION_KERNEL_SCALAR = 1,
    /// AVX2 and F16C.
    TRION_KERNEL_AVX2 = 2,
    /// AVX2 with VNNI.
    TRION_KERNEL_AVX_VNNI = 3,
    /// AVX-512 F, BW and VNNI.
    TRION_KERNEL_AVX512 = 4,
    /// The same with the tile registers of AMX, by which prompts on server processors are twice as fast. Linux lends them
    /// to a process that asks, as this choice does, and sigaltstack() then refuses stacks of less than some 11 KiB to all
    /// of the process's threads. A call takes some 32 KiB of stack. The choice is refused, as one that the CPU lacks, where
    /// Linux refuses, and on other systems.
    TRION_KERNEL_AMX = 5,
    /// NEON of AArch64.
    TRION_KERNEL_NEON = 6,
    /// NEON with dot products of bytes.
    TRION_KERNEL_NEON_DOT = 7,
    /// WebAssembly compiled with simd128.
    TRION_KERNEL_SIMD128 = 8,
}

/// Options of a session. Fields that are zero have their default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_session_options {
    /// sizeof(trion_session_options).
    pub struct_size: usize,
    /// Tokens that the session can hold; 0 for the model's longest context.
    pub context: usize,
    /// Tokens of a prompt that are computed together; 0 for 64. More is faster for prompts and takes more memory; the
    /// results are the same.
    pub max_batch: usize,
    /// A trion_cache.
    pub cache: u32,
    /// A trion_kernel.
    pub kernel: u32,
    /// 1 to go on after tokens that end a text.
    pub ignore_end: u32,
    /// 1 to have the probability of each chosen token in its event: one more pass over the vocabulary for each token.
    pub probabilities: u32,
}

// SAFETY: all fields may be zero, and are numbers.
unsafe impl Options for trion_session_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Where sessions get their block from: one call of `allocate` for each session, and one of `release` when it is freed,
/// on the threads that make and free sessions.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_allocator {
    /// Handed to both functions.
    pub user: *mut c_void,
    /// Gives `size` bytes at a multiple of `alignment` (a power of two), or NULL.
    pub allocate: Option<unsafe extern "C" fn(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void>,
    /// Takes a block back, with the size and alignment that it was asked for with.
    pub release: Option<unsafe extern "C" fn(user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize)>,
}

/// A sequence of tokens and everything that the model keeps of it.
pub struct trion_session {
    pub(crate) cancel: AtomicBool,
    pub(crate) owner: Owner,
    pub(crate) inner: Mutex<Inner>,
}

/// What a call works on while it holds the session. The order matters: `sequence` borrows from `loaded`, and is dropped
/// before it.
pub(crate) struct Inner {
    pub(crate) sequence: Sequence,
    pub(crate) loaded: Loaded,
    pub(crate) sampler: Sampler,
    pub(crate) plan: Plan,
    #[cfg(feature = "text")]
    pub(crate) constraint: Option<crate::constraint::Constrained>,
    /// The model ended the text, by this event. Other reasons for an end are found again.
    pub(crate) ended: Option<trion_event>,
}

/// What a session is made from.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) core: SessionOptions,
    pub(crate) kernel: Kernel,
    pub(crate) ignore_end: bool,
    pub(crate) probabilities: bool,
}

impl Plan {
    /// Reads the caller's options.
    ///
    /// # Safety
    /// As [`Options::read`].
    pub(crate) unsafe fn read(model: &Loaded, options: *const trion_session_options) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let options = unsafe { trion_session_options::read(options)? };
        let limit = model.model.config().max_position_embeddings;
        let context = if options.context == 0 { limit } else { options.context };
        let defaults = SessionOptions::new(context);
        let max_batch = match options.max_batch {
            0 => defaults.max_batch.min(context),
            batch => batch,
        };
        let cache = cache_type(options.cache)?;
        let kernel = match options.kernel {
            0 => Kernel::detect(),
            number => {
                let isa = Isa::ALL.get(number as usize - 1);
                let isa = isa.ok_or(Failure::argument("option kernel is no trion_kernel"))?;
                Kernel::new(*isa).ok_or(Failure::argument("option kernel is one that this CPU lacks"))?
            }
        };
        for (field, found, limit) in [("context", context, limit), ("max_batch", max_batch, context)] {
            // Before any memory is asked for.
            if found > limit {
                return Err(trion_core::Error::Options { field, found, limit }.into());
            }
        }
        Ok(Plan {
            core: SessionOptions { max_batch, cache, ..defaults },
            kernel,
            ignore_end: switch(options.ignore_end)?,
            probabilities: switch(options.probabilities)?,
        })
    }
}

impl trion_session {
    /// Takes the session for one call.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Inner>, Failure> {
        self.inner.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::BUSY,
            TryLockError::Poisoned(_) => Failure::DEFECT,
        })
    }
}

impl Inner {
    /// Takes over what another session came to.
    pub(crate) fn copy_from(&mut self, other: &Inner) -> Result<(), Failure> {
        #[cfg(feature = "text")]
        if other.constraint.is_some() && !other.loaded.model.is_same(&self.loaded.model) {
            return Err(Failure::OTHER_MODEL);
        }
        self.sequence.fork_from(&other.sequence)?;
        self.sampler = other.sampler;
        self.ended = other.ended.filter(|_| !self.plan.ignore_end);
        #[cfg(feature = "text")]
        self.constraint.clone_from(&other.constraint);
        Ok(())
    }
}

/// The sampler of a session that was given none: always the most probable token.
pub(crate) fn greedy() -> Result<Sampler, Failure> {
    Ok(Sampler::new(SamplerOptions::GREEDY)?)
}

/// Bytes of a session with these options in a buffer at any address; trion_session_gpu_memory() tells what one on a GPU
/// takes there. Any thread.
///
/// TRION_INVALID_ARGUMENT for options outside their range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_size(
    model: *const trion_model,
    options: *const trion_session_options,
    size: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(size)?;
        // SAFETY: the header's rules for handles and options.
        let (model, plan) = unsafe {
            let model = &handle(model)?.0;
            (model, Plan::read(model, options)?)
        };
        out.write(storage::buffer_bytes(model, &plan));
        Ok(())
    })
}

/// Makes a session in memory of `allocator`'s; NULL for the library's own. Free it with trion_session_free(). Any
/// thread.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_OUT_OF_MEMORY, TRION_DEVICE if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_new(
    model: *const trion_model,
    options: *const trion_session_options,
    allocator: Option<&trion_allocator>,
    session: Option<&mut MaybeUninit<*mut trion_session>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(session)?;
        // SAFETY: the header's rules for handles and options.
        let (model, plan) = unsafe {
            let model = &handle(model)?.0;
            (model, Plan::read(model, options)?)
        };
        out.write(storage::in_allocated(model, plan, allocator)?.as_ptr());
        Ok(())
    })
}

/// Makes a session in `buffer` of `size` bytes, at least trion_session_size(), at any address. The handle lies in the
/// buffer too; trion_session_free() ends the session and leaves the buffer to the caller. Any thread.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_BUFFER_TOO_SMALL; on a GPU also TRION_OUT_OF_MEMORY
/// and TRION_DEVICE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_init(
    model: *const trion_model,
    options: *const trion_session_options,
    buffer: *mut c_void,
    size: usize,
    session: Option<&mut MaybeUninit<*mut trion_session>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(session)?;
        // SAFETY: the header's rules for handles, options and buffers.
        out.write(unsafe {
            let model = &handle(model)?.0;
            storage::in_buffer(model, Plan::read(model, options)?, buffer, size)?.as_ptr()
        });
        Ok(())
    })
}

/// Makes a session that has come to the same point and goes its own way from there: same options, tokens, sampler and
/// constraint. In memory of `allocator`'s; NULL for the library's own.
///
/// TRION_OUT_OF_MEMORY, TRION_BUSY, TRION_DEVICE if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_fork(
    session: *const trion_session,
    allocator: Option<&trion_allocator>,
    fork: Option<&mut MaybeUninit<*mut trion_session>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(fork)?;
        // SAFETY: the header's rule for handles.
        let from = unsafe { handle(session)? }.lock()?;
        let copy = storage::in_allocated(&from.loaded, from.plan, allocator)?;
        out.write(filled(copy, &from)?.as_ptr());
        Ok(())
    })
}

/// trion_session_fork() into `buffer` of `size` bytes, as with trion_session_init().
///
/// TRION_BUFFER_TOO_SMALL, TRION_BUSY; on a GPU also TRION_OUT_OF_MEMORY and TRION_DEVICE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_fork_init(
    session: *const trion_session,
    buffer: *mut c_void,
    size: usize,
    fork: Option<&mut MaybeUninit<*mut trion_session>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(fork)?;
        // SAFETY: the header's rules for handles and buffers.
        let (from, copy) = unsafe {
            let from = handle(session)?.lock()?;
            let copy = storage::in_buffer(&from.loaded, from.plan, buffer, size)?;
            (from, copy)
        };
        out.write(filled(copy, &from)?.as_ptr());
        Ok(())
    })
}

/// A new session with what `from` came to.
fn filled(copy: NonNull<trion_session>, from: &Inner) -> Result<NonNull<trion_session>, Failure> {
    // SAFETY: the session was made just now, and nobody else knows of it.
    let copied = unsafe { copy.as_ref() }.lock().and_then(|mut copy| copy.copy_from(from));
    if let Err(failure) = copied {
        // SAFETY: as above.
        unsafe { storage::free(copy) };
        return Err(failure);
    }
    Ok(copy)
}

/// Makes `session` come to the point where `from` is, in its own memory: tokens, sampler and constraint. The two may
/// differ in `context` and `max_batch`. A character that begins anew from a shared beginning needs no new memory so.
/// Between two devices this is saving and loading, and takes memory for that.
///
/// TRION_OTHER_MODEL, TRION_STATE for another `cache`, TRION_CONTEXT_FULL, TRION_OUT_OF_MEMORY, TRION_BUSY; `session`
/// is unchanged then. TRION_DEVICE if a GPU fails; `session` may have no tokens then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_assign(
    session: *mut trion_session,
    from: *const trion_session,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rule for handles.
        let (session, from) = unsafe { (handle(session)?, handle(from)?) };
        if std::ptr::eq(session, from) {
            return Ok(());
        }
        let (mut session, from) = (session.lock()?, from.lock()?);
        session.copy_from(&from)
    })
}

/// Ends a session and gives its memory back to where it came from; NULL does nothing. No call may be using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_free(session: *mut trion_session) {
    if let Some(session) = NonNull::new(session) {
        // SAFETY: the caller gives up the handle, which this library made.
        unsafe { storage::free(session) };
    }
}
