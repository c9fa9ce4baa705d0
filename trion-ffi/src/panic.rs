//! The end of a panic where no standard library is.

use core::panic::PanicInfo;

unsafe extern "C" {
    /// The program's own. It does not return.
    fn trion_panic() -> !;
}

/// No input leads here (`trion-core` has no panics); a defect does, and then nothing of the session can be relied on.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: a function that takes nothing, and that the header asks the program for.
    unsafe { trion_panic() }
}
