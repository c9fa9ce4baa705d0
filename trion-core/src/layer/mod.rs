//! The float parts of a block, each written once over the lanes of any instruction set.

mod activation;
mod attention;
mod rms_norm;
mod rope;

pub(crate) use activation::activate;
pub(crate) use attention::{Attention, scores_len};
pub(crate) use rms_norm::RmsNorm;
pub use rope::rotary_tables;
pub(crate) use rope::rotate;
