//! See `trion_fuzz::packed`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::packed::run(bytes));
