//! See `trion_fuzz::tokenizer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trion_fuzz::tokenizer::run(bytes));
