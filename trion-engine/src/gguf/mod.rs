//! GGUF files, versions 2 and 3, as llama.cpp, bitnet.cpp and Prism write them.
//!
//! The reader is our own: the published crates know neither the ternary types 36, 42 and 142, nor files that lie about
//! their sizes.

mod blocks;
mod checkpoint;
#[cfg(test)]
mod matrix_tests;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use checkpoint::GgufCheckpoint;
