//! Asking for weights before they are multiplied, on x86-64.

use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// How far ahead the second-level cache gets a line: it waits for more lines at a time than the first level can.
const FAR: usize = 8192;
/// How far ahead the first level gets it from there.
const NEAR: usize = 512;

/// Asks for the lines of the cache [`FAR`] and [`NEAR`] bytes behind `at`. They may lie anywhere, also in no memory.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    let at = at.cast::<i8>();
    // SAFETY: hints, which read nothing and may name any address; every x86-64 CPU has them.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(FAR));
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR));
    }
}
