//! See `trion_fuzz::sampler`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::sampler::run(bytes));
