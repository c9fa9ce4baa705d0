//! See `trion_fuzz::c_abi`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::c_abi::run(bytes));
