//! See `trion_fuzz::template`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::template::run(bytes));
