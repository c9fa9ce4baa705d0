//! See `trion_fuzz::state`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::state::run(bytes));
