//! See `trion_fuzz::kernels`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::kernels::run(bytes));
