//! AArch64 with NEON, and the same with its dot products of bytes.
//!
//! Without dot products, products are summed in 16 bits. A code of at most 2 gives at most 2 * 128 in magnitude, and a
//! block of 16 columns adds four of these to each 16-bit lane, so 31 blocks stay within 31,744.

use core::arch::aarch64::*;
use core::arch::asm;

use super::Op;
use super::quad::{Quad, Quads};

/// Proof that the CPU has NEON, which each has that this file is compiled for, and dot products if `DOT`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon<const DOT: bool>(());

impl Quads<Neon<false>> {
    /// The proof.
    pub(super) fn new() -> Option<Self> {
        Some(Quads(Neon(())))
    }
}

impl Quads<Neon<true>> {
    /// The proof, if this CPU can give it.
    pub(super) fn new() -> Option<Self> {
        (cfg!(target_feature = "dotprod") || linux_has_dot_products()).then_some(Quads(Neon(())))
    }
}

impl<const DOT: bool> Quad for Neon<DOT> {
    type F = float32x4_t;
    type I = int32x4_t;
    type B = uint8x16_t;
    /// With dot products a sum for each row, in the first; otherwise eight sums of two rows, twice.
    type Sums = [int32x4_t; 2];

    const SUMS_REGISTERS: usize = if DOT { 1 } else { 2 };
    const BLOCKS: usize = if DOT { usize::MAX } else { 31 };

    fn run<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        fn plain<O: Op>(op: O) -> O::Output {
            op.run(Quads(Neon::<false>(())))
        }
        #[inline(never)]
        #[target_feature(enable = "dotprod")]
        fn dot<O: Op>(op: O) -> O::Output {
            op.run(Quads(Neon::<true>(())))
        }
        if DOT {
            // SAFETY: `self` proves dot products.
            unsafe { dot(op) }
        } else {
            plain(op)
        }
    }

    #[inline(always)]
    fn splat(value: f32) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Not the instruction for a maximum, which treats NaN in another way.
        // SAFETY: NEON is always there.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn abs(a: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn load(from: &[f32; 4]) -> float32x4_t {
        // SAFETY: reads the four floats of `from`; NEON is always there.
        unsafe { vld1q_f32(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(v: float32x4_t, to: &mut [f32; 4]) {
        // SAFETY: writes the four floats of `to`; NEON is always there.
        unsafe { vst1q_f32(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn fold(v: [float32x4_t; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        let mut sums = [0.0; 4];
        // SAFETY: NEON is always there.
        unsafe {
            let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            let ab = vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
            let low = vcombine_f32(vget_low_f32(c), vget_low_f32(d));
            let cd = vaddq_f32(low, vcombine_f32(vget_high_f32(c), vget_high_f32(d)));
            Self::store(vpaddq_f32(ab, cd), &mut sums);
        }
        sums
    }
    #[inline(always)]
    fn load_f16(from: &[u16; 4]) -> float32x4_t {
        let single: float32x4_t;
        // SAFETY: reads the four numbers of `from`, and converts a register; NEON is always there.
        unsafe {
            let half = vld1_u16(from.as_ptr());
            asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) single, in(vreg) half, options(pure, nomem, nostack));
        }
        single
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; 4]) -> float32x4_t {
        // SAFETY: reads the four numbers of `from`; NEON is always there.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr()))) }
    }
    #[inline(always)]
    fn store_f16(v: float32x4_t, to: &mut [u16; 4]) {
        let half: uint16x4_t;
        // SAFETY: converts a register, half to even, as floats are rounded in general, and writes the four numbers of
        // `to`; NEON is always there.
        unsafe {
            asm!("fcvtn {0:v}.4h, {1:v}.4s", lateout(vreg) half, in(vreg) v, options(pure, nomem, nostack));
            vst1_u16(to.as_mut_ptr(), half);
        }
    }
    #[inline(always)]
    fn bits(v: float32x4_t) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vreinterpretq_s32_f32(v) }
    }
    #[inline(always)]
    fn float_of_bits(v: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vreinterpretq_f32_s32(v) }
    }
    #[inline(always)]
    fn float(v: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vcvtq_f32_s32(v) }
    }

    #[inline(always)]
    fn splat_int(value: i32) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vdupq_n_s32(value) }
    }
    #[inline(always)]
    fn add_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    fn sub_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vsubq_s32(a, b) }
    }
    #[inline(always)]
    fn mul_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vmulq_s32(a, b) }
    }
    #[inline(always)]
    fn shift_to_exponent(a: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vshlq_n_s32::<23>(a) }
    }
    #[inline(always)]
    fn load_int(from: &[i32; 4]) -> int32x4_t {
        // SAFETY: reads the four integers of `from`; NEON is always there.
        unsafe { vld1q_s32(from.as_ptr()) }
    }
    #[inline(always)]
    fn store_int(v: int32x4_t, to: &mut [i32; 4]) {
        // SAFETY: writes the four integers of `to`; NEON is always there.
        unsafe { vst1q_s32(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_i8(from: &[i8; 4]) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe {
            let bytes = vcreate_s8(u64::from(u32::from_le_bytes(from.map(|byte| byte as u8))));
            vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
        }
    }
    #[inline(always)]
    fn load_u8(from: &[u8; 4]) -> int32x4_t {
        // SAFETY: NEON is always there.
        unsafe {
            let bytes = vcreate_u8(u64::from(u32::from_le_bytes(*from)));
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        }
    }
    #[inline(always)]
    fn store_i8(v: [int32x4_t; 4], to: &mut [i8; 16]) {
        let [a, b, c, d] = v;
        // SAFETY: writes the sixteen bytes of `to`; NEON is always there.
        unsafe {
            let low = vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
            let high = vmovn_s16(vcombine_s16(vmovn_s32(c), vmovn_s32(d)));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(low, high));
        }
    }

    #[inline(always)]
    fn load_bytes(from: &[u8; 16]) -> uint8x16_t {
        // SAFETY: reads the sixteen bytes of `from`; NEON is always there.
        unsafe { vld1q_u8(from.as_ptr()) }
    }
    #[inline(always)]
    fn splat_bytes(bytes: [i8; 4]) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(bytes.map(|byte| byte as u8)))) }
    }
    #[inline(always)]
    fn splat_byte(byte: u8) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vdupq_n_u8(byte) }
    }
    #[inline(always)]
    fn and(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vandq_u8(a, b) }
    }
    #[inline(always)]
    fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    fn shift_right<const N: i32>(a: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vshrq_n_u8::<N>(a) }
    }
    #[inline(always)]
    fn sub_bytes(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: NEON is always there.
        unsafe { vsubq_u8(a, b) }
    }

    #[inline(always)]
    fn no_products() -> [int32x4_t; 2] {
        // SAFETY: NEON is always there.
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    fn multiply(self, sums: [int32x4_t; 2], codes: uint8x16_t, x: uint8x16_t) -> [int32x4_t; 2] {
        let [mut first, second] = sums;
        if DOT {
            // SAFETY: works on registers; `self` proves dot products. Their intrinsic is not stable yet.
            unsafe {
                asm!(
                    "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                    inlateout(vreg) first, in(vreg) codes, in(vreg) x,
                    options(pure, nomem, nostack)
                );
            }
            return [first, second];
        }
        // SAFETY: NEON is always there.
        unsafe {
            let (codes, x) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
            let low = vmlal_s8(vreinterpretq_s16_s32(first), vget_low_s8(codes), vget_low_s8(x));
            let high = vmlal_high_s8(vreinterpretq_s16_s32(second), codes, x);
            [vreinterpretq_s32_s16(low), vreinterpretq_s32_s16(high)]
        }
    }
    #[inline(always)]
    fn rows(sums: [int32x4_t; 2]) -> int32x4_t {
        let [first, second] = sums;
        if DOT {
            return first;
        }
        // SAFETY: NEON is always there.
        unsafe {
            let first = vpaddlq_s16(vreinterpretq_s16_s32(first));
            vpaddq_s32(first, vpaddlq_s16(vreinterpretq_s16_s32(second)))
        }
    }
}

/// Whether Linux says that the CPU has dot products: there, programs may not ask the CPU on every kernel.
fn linux_has_dot_products() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        const AT_HWCAP: u64 = 16;
        const HWCAP_ASIMDDP: u64 = 1 << 20;
        let mut auxiliary = [0_u64; 128];
        let words = read_file(c"/proc/self/auxv", &mut auxiliary) / 8;
        let (pairs, _) = auxiliary[..words].as_chunks::<2>();
        return pairs.iter().any(|[key, value]| *key == AT_HWCAP && value & HWCAP_ASIMDDP != 0);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    false
}

/// Reads the beginning of a file, and gives how many bytes; 0 if that fails.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn read_file(path: &core::ffi::CStr, to: &mut [u64]) -> usize {
    const OPENAT: usize = 56;
    const CLOSE: usize = 57;
    const READ: usize = 63;
    const HERE: usize = -100_isize as usize;
    const CLOSE_ON_EXEC: usize = 0o200_0000;
    let call = |number: usize, arguments: [usize; 3]| -> isize {
        let mut result = arguments[0];
        // SAFETY: a system call that Linux has on every AArch64, given what it asks for: a path that ends with a zero
        // byte, which it reads, or a buffer with its length in bytes, which it writes.
        unsafe {
            asm!("svc 0", in("x8") number, inlateout("x0") result, in("x1") arguments[1], in("x2") arguments[2],
                options(nostack));
        }
        result as isize
    };
    let file = call(OPENAT, [HERE, path.as_ptr().addr(), CLOSE_ON_EXEC]);
    let Ok(file) = usize::try_from(file) else { return 0 };
    let bytes = call(READ, [file, to.as_mut_ptr().addr(), size_of_val(to)]);
    call(CLOSE, [file, 0, 0]);
    usize::try_from(bytes).unwrap_or(0)
}
