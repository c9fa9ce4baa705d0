//! Where a session lives: in a block from the library or the caller's allocator, or in the caller's own buffer. One
//! block holds the handle, and behind it everything that the core's session keeps. What a session on a GPU keeps is
//! elsewhere.

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use trion_core::{Model as CoreModel, Session as CoreSession};
use trion_engine::Device;

use crate::edge::check;
use crate::model::Loaded;
use crate::sequence::Sequence;
use crate::session::{Inner, Plan, greedy, trion_allocator, trion_session};
use crate::status::Failure;
use crate::status::trion_status::TRION_OUT_OF_MEMORY;

/// Every block begins at a multiple of this, as the core's buffer likes best.
const ALIGNMENT: usize = 64;
const _: () = assert!(align_of::<trion_session>() <= ALIGNMENT);

/// Bytes of the handle, up to where the core's buffer begins.
const HANDLE: usize = size_of::<trion_session>().next_multiple_of(ALIGNMENT);

/// Bytes of a block that begins at a multiple of [`ALIGNMENT`]; `usize::MAX` if they cannot be counted.
fn block_bytes(model: &Loaded, plan: &Plan) -> usize {
    if !matches!(model.runtime.device, Device::Cpu) {
        return HANDLE;
    }
    CoreSession::bytes(model.model.config(), &plan.core).saturating_add(HANDLE)
}

/// Bytes of a session in a buffer at any address.
pub(crate) fn buffer_bytes(model: &Loaded, plan: &Plan) -> usize {
    block_bytes(model, plan).saturating_add(ALIGNMENT - 1)
}

/// Who takes the block of a session back.
pub(crate) enum Owner {
    /// The caller, whose buffer it is.
    Caller,
    /// An allocator, with the block as it gave it.
    Allocator { allocator: trion_allocator, block: NonNull<c_void>, size: usize },
}

impl Owner {
    fn release(self) {
        if let Owner::Allocator { allocator, block, size } = self
            && let Some(release) = allocator.release
        {
            // SAFETY: the block came from this allocator, with these values, and nothing points to it any more.
            unsafe { release(allocator.user, block.as_ptr(), size, ALIGNMENT) };
        }
    }
}

unsafe extern "C" fn library_allocate(_user: *mut c_void, size: usize, alignment: usize) -> *mut c_void {
    let Ok(layout) = Layout::from_size_align(size, alignment) else { return ptr::null_mut() };
    // SAFETY: a session is never of size 0.
    unsafe { std::alloc::alloc(layout) }.cast()
}

unsafe extern "C" fn library_release(_user: *mut c_void, memory: *mut c_void, size: usize, alignment: usize) {
    if let Ok(layout) = Layout::from_size_align(size, alignment) {
        // SAFETY: the memory came from `library_allocate` with this size and alignment.
        unsafe { std::alloc::dealloc(memory.cast(), layout) };
    }
}

/// The library's own heap.
const LIBRARY: trion_allocator =
    trion_allocator { user: ptr::null_mut(), allocate: Some(library_allocate), release: Some(library_release) };

/// A session in a block of an allocator's, or of the library's own heap.
pub(crate) fn in_allocated(
    model: &Loaded,
    plan: Plan,
    allocator: Option<&trion_allocator>,
) -> Result<NonNull<trion_session>, Failure> {
    let allocator = *allocator.unwrap_or(&LIBRARY);
    let none = Failure::Plain(TRION_OUT_OF_MEMORY, "no memory for the session: a smaller context takes less");
    let (Some(allocate), Some(_)) = (allocator.allocate, allocator.release) else {
        return Err(Failure::argument("the allocator lacks a function"));
    };
    let size = block_bytes(model, &plan);
    if size > isize::MAX as usize {
        return Err(none);
    }
    // SAFETY: a function of the caller's, with what it asked for.
    let block = NonNull::new(unsafe { allocate(allocator.user, size, ALIGNMENT) }).ok_or(none)?;
    let owner = Owner::Allocator { allocator, block, size };
    if !block.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        owner.release();
        return Err(Failure::argument("the allocator gave memory that is not aligned as it was asked to"));
    }
    // SAFETY: the block is ours alone, of this size and alignment.
    unsafe { build(block.cast(), size, owner, model, plan) }
}

/// A session in a buffer of the caller's.
///
/// # Safety
/// `buffer` is NULL or valid for reading and writing `size` bytes, and left alone for as long as the session lives.
pub(crate) unsafe fn in_buffer(
    model: &Loaded,
    plan: Plan,
    buffer: *mut c_void,
    size: usize,
) -> Result<NonNull<trion_session>, Failure> {
    check(buffer.cast::<u8>(), size)?;
    // NULL with a size of 0 is a buffer that is too small.
    let buffer = NonNull::new(buffer.cast::<u8>()).unwrap_or(NonNull::dangling());
    let skip = buffer.align_offset(ALIGNMENT);
    let expected = block_bytes(model, &plan).saturating_add(skip);
    if size < expected {
        return Err(Failure::TooSmall { found: size, expected });
    }
    // SAFETY: `skip` and the block behind it lie within the buffer.
    unsafe { build(buffer.add(skip), size - skip, Owner::Caller, model, plan) }
}

/// Builds a session in a block.
///
/// # Safety The block is valid for reading and writing `size` bytes, which are at least [`block_bytes`], aligned, and
/// nobody else's until the session is gone.
unsafe fn build(
    block: NonNull<u8>,
    size: usize,
    owner: Owner,
    model: &Loaded,
    plan: Plan,
) -> Result<NonNull<trion_session>, Failure> {
    // SAFETY: the block is longer than the handle. What it holds is bytes of the caller's side, and the core never
    // reads one before it has written it.
    let memory: &'static mut [u8] = unsafe { slice::from_raw_parts_mut(block.add(HANDLE).as_ptr(), size - HANDLE) };
    let made = sequence(model, &plan, memory);
    let (sequence, sampler) = match made.and_then(|sequence| Ok((sequence, greedy()?))) {
        Ok(made) => made,
        Err(failure) => {
            owner.release();
            return Err(failure);
        }
    };
    let inner = Inner {
        sequence,
        loaded: model.clone(),
        sampler,
        plan,
        #[cfg(feature = "text")]
        constraint: None,
        ended: None,
    };
    let device = model.runtime.device.name();
    model.runtime.debug(format_args!("session: context {}, {size} bytes, device {device}", plan.core.context));
    let place = block.cast::<trion_session>();
    // SAFETY: the block begins with room for the handle, aligned for it.
    unsafe { place.write(trion_session { cancel: AtomicBool::new(false), owner, inner: Mutex::new(inner) }) };
    Ok(place)
}

/// A sequence without tokens, on the model's device.
fn sequence(model: &Loaded, plan: &Plan, memory: &'static mut [u8]) -> Result<Sequence, Failure> {
    #[cfg(feature = "cuda")]
    if !matches!(model.runtime.device, Device::Cpu) {
        return Ok(Sequence::Gpu(trion_engine::Session::new(&model.model, plan.core)?));
    }
    // SAFETY: the session that borrows the model holds a reference to it, which is dropped after the borrower
    // (`Inner`), so the model outlives the borrow, for which `'static` stands. A model's weights do not move.
    let core: &'static CoreModel<'static> = unsafe { &*(&raw const *model.model.core()).cast() };
    Ok(Sequence::Cpu(CoreSession::new(core, plan.core, plan.kernel, memory)?))
}

/// Ends a session and gives its block back.
///
/// # Safety
/// `session` came from this module, and is not used again.
pub(crate) unsafe fn free(session: NonNull<trion_session>) {
    // SAFETY: the handle is read out once, and its place is not looked at again.
    let trion_session { owner, inner, .. } = unsafe { session.read() };
    drop(inner);
    owner.release();
}
