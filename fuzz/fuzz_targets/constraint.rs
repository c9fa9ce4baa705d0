//! See `trion_fuzz::constraint`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::constraint::run(bytes));
