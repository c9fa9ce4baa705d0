//! Which instruction sets this CPU and its operating system offer, asked without std.

#![allow(unused_unsafe)] // reading CPUID became a safe operation after the oldest compiler supported here

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// The sets that kernels are written for.
#[allow(clippy::struct_excessive_bools)] // one for each set
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Features {
    /// AVX2 and F16C.
    pub(super) avx2: bool,
    /// The 256-bit form of VNNI.
    pub(super) avx_vnni: bool,
    /// AVX-512 F, BW and VNNI.
    pub(super) avx512_vnni: bool,
    /// AVX-512 VBMI.
    pub(super) avx512_vbmi: bool,
    /// AMX with products of bytes. An operating system may want to be asked before.
    pub(super) amx_int8: bool,
}

/// Reads CPUID, and the register state that the operating system saves.
pub(super) fn features() -> Features {
    let bit = |register: u32, n: u32| register >> n & 1 == 1;
    // SAFETY: every x86-64 CPU has CPUID.
    let highest = unsafe { __cpuid(0) }.eax;
    if highest < 7 {
        return Features::default();
    }
    // SAFETY: leaf 1 exists, since the highest is at least 7.
    let basic = unsafe { __cpuid(1) }.ecx;
    let (osxsave, avx, f16c) = (bit(basic, 27), bit(basic, 28), bit(basic, 29));
    if !osxsave || !avx || !f16c {
        return Features::default();
    }
    let saved = saved_registers();
    // SAFETY: leaf 7 exists, as seen above.
    let extended = unsafe { __cpuid_count(7, 0) };
    let avx2 = saved & 0b110 == 0b110 && bit(extended.ebx, 5);
    let zmm = saved & 0b1110_0110 == 0b1110_0110;
    let avx512 = bit(extended.ebx, 16) && bit(extended.ebx, 30) && bit(extended.ecx, 11);
    // SAFETY: leaf 7 exists; a sub-leaf beyond its last reads as zeros, and eax of the first states the last.
    let avx_vnni = extended.eax >= 1 && bit(unsafe { __cpuid_count(7, 1) }.eax, 4);
    let vbmi = bit(extended.ecx, 1);
    let tiles = saved >> 17 & 0b11 == 0b11 && bit(extended.edx, 24) && bit(extended.edx, 25);
    Features { avx2, avx_vnni: avx2 && avx_vnni, avx512_vnni: zmm && avx512, avx512_vbmi: zmm && vbmi, amx_int8: tiles }
}

/// XCR0: the register files that the operating system saves for each thread.
fn saved_registers() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: OSXSAVE was seen, so XCR0 can be read.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the only caller has seen OSXSAVE in CPUID.
    unsafe { read() }
}
