//! Hugging Face checkpoints: a directory with `config.json` and safetensors files.

mod checkpoint;
mod config;
mod files;

pub(crate) use checkpoint::HfCheckpoint;
