//! See `trion_fuzz::gguf`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::gguf::run(bytes));
