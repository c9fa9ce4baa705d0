//! Ternary language models on NVIDIA GPUs.
