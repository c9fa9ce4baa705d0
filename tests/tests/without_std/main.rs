//! The core in programs without the standard library. Together, so that one is compiled while the other is.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod bare;
mod firmware;
