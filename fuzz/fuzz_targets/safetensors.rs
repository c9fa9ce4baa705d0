//! See `trion_fuzz::safetensors`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::safetensors::run(bytes));
