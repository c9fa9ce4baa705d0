//! Where pointers of the caller become references and slices, and where panics end.

use core::mem::MaybeUninit;
use core::slice;

use trion_core::CacheType;

use crate::status::{Failure, trion_error, trion_status};

/// Runs the body of a call: its failure becomes a status and words. A panic becomes [`Failure::DEFECT`]; without std there
/// is nothing that could catch one, and it ends in `panic.rs`.
pub(crate) fn call(
    error: Option<&mut MaybeUninit<trion_error>>,
    body: impl FnOnce() -> Result<(), Failure>,
) -> trion_status {
    #[cfg(feature = "std")]
    let outcome = {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        // What a panic leaves half-done is behind a mutex, which is poisoned, or belongs to the call alone.
        catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Failure::DEFECT))
    };
    #[cfg(not(feature = "std"))]
    let outcome = body();
    match outcome {
        Ok(()) => trion_status::TRION_OK,
        Err(failure) => failure.report(error),
    }
}

/// The place for an output, in memory that need not hold a value yet.
pub(crate) fn place<T>(out: Option<&mut MaybeUninit<T>>) -> Result<&mut MaybeUninit<T>, Failure> {
    out.ok_or(Failure::NULL)
}

/// What a pointer to a handle points to.
///
/// # Safety
/// `pointer` is NULL or a handle that was not freed.
#[cfg(feature = "std")]
pub(crate) unsafe fn handle<'a, T>(pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or(Failure::NULL)
}

/// `count` elements from `pointer` on.
///
/// # Safety
/// `pointer` is NULL or valid for reading `count` elements for as long as the result is used.
pub(crate) unsafe fn input<'a, T>(pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
    check(pointer, count)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise, and the length is one that a slice may have.
    Ok(unsafe { slice::from_raw_parts(pointer, count) })
}

/// Text of `size` bytes, which must be UTF-8.
///
/// # Safety
/// As [`input`].
#[cfg(feature = "text")]
pub(crate) unsafe fn text<'a>(pointer: *const core::ffi::c_char, size: usize) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise; characters of C and bytes have one layout.
    let bytes = unsafe { input(pointer.cast::<u8>(), size)? };
    str::from_utf8(bytes).map_err(|_| Failure::argument("the text is not UTF-8"))
}

/// Copies `from` to the caller's `capacity` elements at `to` and its length to `count`. With `to` NULL and `capacity` 0
/// only the length is wanted.
///
/// # Safety
/// `to` is NULL or valid for writing `capacity` elements.
#[cfg(feature = "text")]
pub(crate) unsafe fn output<T: Copy>(
    from: &[T],
    to: *mut T,
    capacity: usize,
    count: &mut MaybeUninit<usize>,
) -> Result<(), Failure> {
    check(to, capacity)?;
    if !to.is_null() {
        if capacity < from.len() {
            return Err(Failure::TooSmall { found: capacity, expected: from.len() });
        }
        // SAFETY: `to` is valid for `capacity` elements, which are enough. The caller's memory and ours do not overlap.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }
    count.write(from.len());
    Ok(())
}

/// Writes a struct to where the caller has room for `size` bytes of it, whose version of the struct may be shorter or
/// longer.
///
/// # Safety
/// `to` is NULL or valid for writing `size` bytes.
#[cfg(feature = "std")]
pub(crate) unsafe fn sized_output<T: Copy>(from: &T, to: *mut T, size: usize) -> Result<(), Failure> {
    check(to, 1)?;
    check(to.cast::<u8>(), size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: `to` is valid for `size` bytes, of which the first `known` come from the struct and the rest are zeros.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping((&raw const *from).cast(), known);
        to.cast::<u8>().add(known).write_bytes(0, size - known);
    }
    Ok(())
}

/// Whether a slice can lie at a pointer; NULL is right for none.
pub(crate) fn check<T>(pointer: *const T, count: usize) -> Result<(), Failure> {
    if pointer.is_null() && count == 0 {
        return Ok(());
    }
    if pointer.is_null() {
        return Err(Failure::NULL);
    }
    if !pointer.is_aligned() {
        return Err(Failure::argument("a pointer is not aligned for its type"));
    }
    if count.saturating_mul(size_of::<T>()) > isize::MAX as usize {
        return Err(Failure::argument("a size is larger than the address space"));
    }
    Ok(())
}

/// An option that is on or off.
#[cfg(feature = "std")]
pub(crate) fn switch(value: u32) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::argument("an option that is on or off is neither 1 nor 0")),
    }
}

/// The number format that an option `cache` asks for.
pub(crate) fn cache_type(number: u32) -> Result<CacheType, Failure> {
    match number {
        0 => Ok(CacheType::F32),
        1 => Ok(CacheType::F16),
        _ => Err(Failure::argument("option cache is no trion_cache")),
    }
}

/// No version of the interface has options of more bytes: a size that was never set is found, and not read over.
const LARGEST_OPTIONS: usize = 4096;

/// Options that begin with their own size, so that later versions can add fields at the end. All zero is the default.
///
/// # Safety
/// Zeros are a value of the type, and so is any combination of bits that the C type can have.
pub(crate) unsafe trait Options: Copy {
    /// The size in the first version of the interface.
    const FIRST_SIZE: usize;

    /// Reads the caller's options; NULL gives the default.
    ///
    /// # Safety
    /// `pointer` is NULL or valid for reading the number of bytes that the `size_t` at its beginning states.
    unsafe fn read(pointer: *const Self) -> Result<Self, Failure> {
        let mut options = MaybeUninit::<Self>::zeroed();
        if !pointer.is_null() {
            check(pointer, 1)?;
            // SAFETY: options begin with their size.
            let size = unsafe { pointer.cast::<usize>().read() };
            if !(Self::FIRST_SIZE..=LARGEST_OPTIONS).contains(&size) {
                return Err(Failure::argument("struct_size is not the size of these options: set it to sizeof"));
            }
            // SAFETY: the caller's promise.
            let bytes = unsafe { slice::from_raw_parts(pointer.cast::<u8>(), size) };
            let known = size.min(size_of::<Self>());
            if bytes[known..].iter().any(|byte| *byte != 0) {
                return Err(Failure::argument("options are set that this version of the library does not know"));
            }
            // SAFETY: `known` bytes fit in both.
            unsafe { options.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), known) };
        }
        // SAFETY: zeros are a value, and so are the caller's bytes.
        Ok(unsafe { options.assume_init() })
    }
}
