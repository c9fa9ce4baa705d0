//! The C interface of Trion. `include/trion.h` is made from these files, one section from each, the module's own
//! comment at its head, so what is written here is written for readers of C.
//!
//! Pointers of the caller become references and slices in `edge.rs`; the rest of the crate is safe code, but for
//! sessions that live in the caller's memory and the functions that the caller hands in.
//!
//! Without the feature `std` there is what a machine without an operating system can use: version, status and `bare.rs`.

// Tests have the standard library in any case.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![allow(unsafe_code)]
// The names are those of the header.
#![allow(non_camel_case_types)]
// Variants begin with the name of their enum, as C wants it.
#![allow(clippy::enum_glob_use)]
// Comments are those of the header, without the marks of Rust's documentation.
#![allow(clippy::doc_markdown)]
// The header states what callers must hold to, once and for all functions.
#![allow(clippy::missing_safety_doc)]

mod edge;

pub mod abi;
pub mod status;

#[cfg(feature = "std")]
pub mod runtime;

#[cfg(feature = "std")]
pub mod model;

#[cfg(feature = "std")]
mod sequence;
#[cfg(feature = "std")]
pub mod session;
#[cfg(feature = "std")]
mod storage;

pub mod sampler;

#[cfg(feature = "std")]
pub mod advance;
#[cfg(feature = "std")]
pub mod together;

#[cfg(feature = "std")]
pub mod inspect;
#[cfg(feature = "std")]
pub mod state;

#[cfg(feature = "std")]
pub mod gpu;

#[cfg(feature = "text")]
pub mod tokenizer;

#[cfg(feature = "text")]
pub mod text;

#[cfg(feature = "text")]
pub mod constraint;

pub mod bare;
#[cfg(not(any(feature = "std", test)))]
mod panic;
mod tables;
