//! Instruction sets, each in its own file, behind one dispatch.
//!
//! Operations are written once, over the 32 lanes of [`vector::Simd`], and compiled for each instruction set by
//! [`Kernel::run`]. This directory is the only place of the crate with `unsafe` code.

mod absent;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod amx;
#[cfg(arm_dsp)]
#[allow(unsafe_code)]
mod arm_dsp;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512;
#[allow(unsafe_code)]
pub(crate) mod bands;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod detect;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
#[allow(unsafe_code)]
mod neon;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod prefetch;
#[cfg(any(
    all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"),
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod quad;
mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
#[allow(unsafe_code)]
mod simd128;
#[cfg(test)]
mod tests;
mod vector;

use crate::packing::Packing;
use proof::{Avx2, Avx512, AvxVnni, Neon, NeonDot, Scalar, Simd128};
use vector::LINE;
pub(crate) use vector::{Bf16, CacheFormat, F16, F32, Format, I8, Simd, Vector, add_sums, padded, prefetch_lines};

/// Proofs of instruction sets; those that this program's processor cannot have are [`absent::Absent`].
mod proof {
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    pub(super) use super::absent::Absent as Simd128;
    #[cfg(not(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little")))]
    pub(super) use super::absent::{Absent as Neon, Absent as NeonDot};
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) use super::absent::{Absent as Avx2, Absent as AvxVnni, Absent as Avx512};
    #[cfg(target_arch = "x86_64")]
    pub(super) use super::avx512::Avx512;
    pub(super) use super::scalar::Scalar;

    #[cfg(target_arch = "x86_64")]
    pub(super) type Avx2 = super::avx2::Avx2<false>;
    #[cfg(target_arch = "x86_64")]
    pub(super) type AvxVnni = super::avx2::Avx2<true>;
    #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
    pub(super) type Neon = super::quad::Quads<super::neon::Neon<false>>;
    #[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
    pub(super) type NeonDot = super::quad::Quads<super::neon::Neon<true>>;
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    pub(super) type Simd128 = super::quad::Quads<super::simd128::Simd128>;
}

/// The instruction sets that have a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, on every machine.
    Scalar,
    /// AVX2 and F16C.
    Avx2,
    /// AVX2 and F16C with the 256-bit VNNI instructions.
    AvxVnni,
    /// AVX-512 F, BW and VNNI.
    Avx512,
    /// The same with VBMI, and products of 32 tokens on the tile registers of AMX. Linux lends these to a process that asks,
    /// which [`Kernel::new`] does. Once they are lent, signals that arrive in a product need some 11 KiB of stack, and
    /// `sigaltstack` refuses less to the threads of the process. Products take some 32 KiB of stack themselves.
    Amx,
    /// NEON of `AArch64`.
    Neon,
    /// NEON with dot products of bytes, which ARM's processors have since 2017.
    NeonDot,
    /// WebAssembly compiled with `simd128`.
    Simd128,
}

impl Isa {
    /// All of them; those of one kind of processor from the slowest to the fastest.
    pub const ALL: [Isa; 8] =
        [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Amx, Isa::Neon, Isa::NeonDot, Isa::Simd128];

    /// A name for people and for options.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
            Isa::Simd128 => "simd128",
        }
    }
}

/// An instruction set that this CPU has: what every computation runs on. All give the same bits.
#[derive(Debug, Clone, Copy)]
pub struct Kernel(Proof);

#[derive(Debug, Clone, Copy)]
enum Proof {
    Scalar(Scalar),
    Avx2(Avx2),
    AvxVnni(AvxVnni),
    Avx512(Avx512),
    Neon(Neon),
    NeonDot(NeonDot),
    Simd128(Simd128),
}

impl Kernel {
    /// The kernel for an instruction set, or `None` where this CPU lacks it, or where the operating system refuses AMX.
    pub fn new(isa: Isa) -> Option<Self> {
        let proof = match isa {
            Isa::Scalar => Some(Proof::Scalar(Scalar)),
            Isa::Avx2 => Avx2::new().map(Proof::Avx2),
            Isa::AvxVnni => AvxVnni::new().map(Proof::AvxVnni),
            Isa::Avx512 => Avx512::new().map(Proof::Avx512),
            Isa::Amx => Avx512::with_amx().map(Proof::Avx512),
            Isa::Neon => Neon::new().map(Proof::Neon),
            Isa::NeonDot => NeonDot::new().map(Proof::NeonDot),
            Isa::Simd128 => Simd128::new().map(Proof::Simd128),
        };
        proof.map(Kernel)
    }

    /// The fastest kernel of this CPU that asks nothing of the operating system: all but [`Isa::Amx`].
    pub fn detect() -> Self {
        let mut asks_nothing = Isa::ALL.into_iter().rev().filter(|isa| *isa != Isa::Amx);
        asks_nothing.find_map(Self::new).unwrap_or(Kernel(Proof::Scalar(Scalar)))
    }

    /// The fastest kernel of this CPU, [`Isa::Amx`] included: for programs that may change their own process.
    pub fn fastest() -> Self {
        Self::new(Isa::Amx).unwrap_or_else(Self::detect)
    }

    /// The kernels of this CPU, from the slowest to [`Kernel::fastest`].
    pub fn available() -> impl Iterator<Item = Self> {
        Isa::ALL.into_iter().filter_map(Self::new)
    }

    /// The instruction set.
    pub const fn isa(self) -> Isa {
        match self.0 {
            Proof::Scalar(_) => Isa::Scalar,
            Proof::Avx2(_) => Isa::Avx2,
            Proof::AvxVnni(_) => Isa::AvxVnni,
            Proof::Avx512(proof) if proof.has_amx() => Isa::Amx,
            Proof::Avx512(_) => Isa::Avx512,
            Proof::Neon(_) => Isa::Neon,
            Proof::NeonDot(_) => Isa::NeonDot,
            Proof::Simd128(_) => Isa::Simd128,
        }
    }

    /// The packing of trits that this kernel reads fastest from memory, on this CPU.
    pub const fn packing(self) -> Packing {
        match self.0 {
            Proof::Avx512(proof) if proof.has_vbmi() => Packing::Fives,
            _ => Packing::Twos,
        }
    }

    /// Multiplies and adds small integers on registers alone, as products of trits do, `rounds` times: what no product can
    /// be faster than. Gives the operations that were done, each multiplication and each addition, or 0 for plain Rust.
    pub fn multiply_registers(self, rounds: usize) -> u64 {
        self.run(MultiplyRegisters(rounds))
    }

    /// Reads whole lines of 64 bytes in order, and does nothing else with them than to sum their 64-bit words. With `ahead`
    /// they are asked for ahead, as products do: what no product can read faster than. Without, it is what a plain loop gets.
    pub fn read_memory(self, bytes: &[u8], ahead: bool) -> u64 {
        self.run(ReadMemory { bytes, ahead })
    }

    /// Runs an operation, compiled for this instruction set.
    #[inline]
    #[allow(clippy::match_same_arms)] // which proofs have one type depends on the processor
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self.0 {
            Proof::Scalar(proof) => proof.run(op),
            Proof::Avx2(proof) => proof.run(op),
            Proof::AvxVnni(proof) => proof.run(op),
            Proof::Avx512(proof) => proof.run(op),
            Proof::Neon(proof) => proof.run(op),
            Proof::NeonDot(proof) => proof.run(op),
            Proof::Simd128(proof) => proof.run(op),
        }
    }
}

/// [`Kernel::multiply_registers`].
struct MultiplyRegisters(usize);

impl Op for MultiplyRegisters {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u64 {
        simd.multiply_registers(self.0)
    }
}

/// [`Kernel::read_memory`].
struct ReadMemory<'a> {
    bytes: &'a [u8],
    ahead: bool,
}

impl Op for ReadMemory<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u64 {
        let mut sums = [0_u64; 8];
        for line in self.bytes.as_chunks::<LINE>().0 {
            if self.ahead {
                simd.prefetch(line);
            }
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    }
}

/// An operation written over any instruction set.
///
/// `run` and everything that it calls must be `#[inline(always)]`, so that it is compiled with the features of the
/// kernel that runs it. Arithmetic stays out of closures that another function calls, such as `array::map`: the
/// compiler does not give them these features, and an instruction becomes a call.
pub(crate) trait Op {
    /// What the operation gives.
    type Output;
    /// Does the work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
