//! Files, states and calls that are wrong: each is refused with an error that says where, what was found and what was
//! expected; nothing panics, and nothing takes more memory than the file and a constant.

#[path = "malformed/calls.rs"]
mod calls;
#[path = "malformed/checkpoints.rs"]
mod checkpoints;
#[path = "malformed/configurations.rs"]
mod configurations;
#[path = "malformed/packed.rs"]
mod packed;
#[path = "malformed/support.rs"]
mod support;
