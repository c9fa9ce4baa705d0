//! What each fuzz target does with its bytes. `cargo xtask fuzz` feeds these functions with `libFuzzer`, and the test
//! `seeds` with every input that is checked in.
//!
//! A target demands more than that nothing panics: see [`check`] for what holds of every model that opens.

pub mod c_abi;
pub mod check;
pub mod config;
pub mod constraint;
pub mod directory;
pub mod gguf;
pub mod kernels;
pub mod packed;
pub mod safetensors;
pub mod sampler;
pub mod small;
pub mod state;
pub mod template;
pub mod tokenizer;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 11] = [
    ("c_abi", c_abi::run),
    ("config", config::run),
    ("constraint", constraint::run),
    ("gguf", gguf::run),
    ("kernels", kernels::run),
    ("packed", packed::run),
    ("safetensors", safetensors::run),
    ("sampler", sampler::run),
    ("state", state::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
];
