//! Version
//!
//! The interface has a version of its own: TRION_ABI_VERSION = major * 65536 + minor. A library serves a program that
//! was compiled with the same major and with the same or a smaller minor. A new minor only adds: functions, status
//! codes, fields at the end of options. Check it once, at the start, when the library is loaded at run time.

use core::ffi::{c_char, c_int};

/// The version of this header: major * 65536 + minor.
pub const TRION_ABI_VERSION: u32 = (1 << 16) | 3;

/// The bit of trion_features() that tells of tokenizers, chat templates, streamed text and constraints. A library built
/// without it lacks the functions of the last three sections.
pub const TRION_FEATURE_TEXT: u32 = 1;

/// The bit of trion_features() that tells of NVIDIA GPUs. It does not tell whether the machine has one.
pub const TRION_FEATURE_CUDA: u32 = 2;

/// The version of the library's interface, to be compared with TRION_ABI_VERSION. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn trion_abi_version() -> u32 {
    TRION_ABI_VERSION
}

/// 1 if this library serves a program that was compiled with version `wanted` (pass TRION_ABI_VERSION), else 0. Any
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn trion_abi_is_compatible(wanted: u32) -> c_int {
    c_int::from(serves(TRION_ABI_VERSION, wanted))
}

/// Whether a library of one version serves a program of another.
fn serves(library: u32, wanted: u32) -> bool {
    library >> 16 == wanted >> 16 && library & 0xffff >= wanted & 0xffff
}

/// The release of the library, such as "0.1.0". The text is constant. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn trion_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What the library was built with: TRION_FEATURE_ bits. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn trion_features() -> u32 {
    let text = if cfg!(feature = "text") { TRION_FEATURE_TEXT } else { 0 };
    text | if cfg!(feature = "cuda") { TRION_FEATURE_CUDA } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::{TRION_ABI_VERSION, serves};

    #[test]
    fn the_installed_file_is_named_after_the_interface() {
        let (major, minor) = (TRION_ABI_VERSION >> 16, TRION_ABI_VERSION & 0xffff);
        let expected = format!("\nversion = \"{major}.{minor}.0\"\nversion_suffix_components = 1\n");
        assert!(
            include_str!("../Cargo.toml").contains(&expected),
            "Cargo.toml, [package.metadata.capi.library]: {expected}"
        );
    }

    #[test]
    fn a_library_serves_its_major_and_smaller_minors() {
        let version = |major: u32, minor: u32| (major << 16) | minor;
        for (library, wanted, expected) in [
            (version(1, 0), version(1, 0), true),
            (version(1, 3), version(1, 2), true),
            (version(1, 3), version(1, 4), false),
            (version(2, 3), version(1, 2), false),
            (version(1, 3), version(2, 2), false),
        ] {
            assert_eq!(serves(library, wanted), expected, "{library:x} {wanted:x}");
        }
    }
}
