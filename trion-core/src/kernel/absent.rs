//! Stands for an instruction set that this program's processor cannot have.

#![allow(dead_code)] // which of these are asked depends on the processor

use super::Op;

/// A proof that cannot be given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Absent {}

impl Absent {
    pub(super) fn new() -> Option<Self> {
        None
    }

    pub(super) fn with_amx() -> Option<Self> {
        None
    }

    pub(super) const fn has_amx(self) -> bool {
        match self {}
    }

    pub(super) const fn has_vbmi(self) -> bool {
        match self {}
    }

    pub(super) fn run<O: Op>(self, _op: O) -> O::Output {
        match self {}
    }
}
