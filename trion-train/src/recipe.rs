//! Everything that a run depends on but its data: the same recipe, data and seed give the same run on a CPU.

use std::path::PathBuf;

use burn_tensor::FloatDType;
use serde::{Deserialize, Serialize};
use trion_engine::Config;

use crate::error::{Error, Result};
use crate::parameters::Initialization;
use crate::schedule::Schedule;
use crate::shape::Architecture;

/// A recipe. A run keeps it as `recipe.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The model.
    pub shape: Architecture,
    /// Tokens of a sequence, which become the model's context.
    pub positions: usize,
    /// Sequences that go through the model together.
    pub sequences: usize,
    /// How often that many before parameters move.
    pub accumulate: usize,
    /// Rates, and how many steps there are.
    pub schedule: Schedule,
    /// What moves the blocks' matrices; `AdamW` moves everything else.
    pub optimizer: OptimizerName,
    /// How parameters start, unless they come from a checkpoint.
    pub initialization: Initialization,
    /// A safetensors file of Hugging Face to start from, for example of a model that was float.
    pub from: Option<PathBuf>,
    /// Whether layers are ternary; if not, the run makes the model's float twin.
    pub ternary: bool,
    /// Columns of a row that have a scale of their own, with their activations; 0 for one scale of a matrix.
    #[serde(default)]
    pub weight_group: usize,
    /// What products are computed in.
    pub precision: Precision,
    /// Gradients are scaled so that their norm is at most this.
    pub clip: f64,
    /// Of parameters and of the order of the data.
    pub seed: u64,
}

/// An optimiser of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Muon.
    Muon,
    /// `AdamW`.
    Adamw,
}

/// A number format of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16, in which trits and quantised activations are whole; for devices with units for it.
    Bf16,
}

impl Precision {
    /// The tensors' name of it.
    pub(crate) fn dtype(self) -> FloatDType {
        match self {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
        }
    }
}

impl Recipe {
    /// The model's shape, with a vocabulary of so many tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if a number is out of range.
    pub fn config(&self, vocab_size: usize) -> Result<Config> {
        let positive = [
            ("positions", self.positions as u64),
            ("sequences", self.sequences as u64),
            ("accumulate", self.accumulate as u64),
            ("steps", self.schedule.steps),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Argument(format!("{name} is 0, expected at least 1")));
        }
        let rates = [("adamw", self.schedule.adamw), ("muon", self.schedule.muon), ("clip", self.clip)];
        if let Some((name, value)) = rates.into_iter().find(|(_, value)| !value.is_finite() || *value <= 0.0) {
            return Err(Error::Argument(format!("{name} is {value}, expected a positive number")));
        }
        let config = self.shape.config(vocab_size, self.positions);
        config.validate().map_err(|e| Error::Argument(e.to_string()))?;
        let (group, widths) = (self.weight_group, [config.hidden_size, config.query_size(), config.intermediate_size]);
        if group > 0 && (![64, 128].contains(&group) || widths.iter().any(|cols| !cols.is_multiple_of(group))) {
            let message = format!("groups of {group} weights, expected 64 or 128, and a divisor of each of {widths:?}");
            return Err(Error::Argument(message));
        }
        Ok(config)
    }

    /// How much of quantisation step `step` applies, from 1 ([`crate::Arithmetic::lambda`]).
    pub fn lambda(&self, step: u64) -> f64 {
        if self.ternary { self.schedule.lambda(step) } else { 0.0 }
    }

    /// Tokens of a step.
    pub fn tokens_a_step(&self) -> u64 {
        (self.sequences * self.accumulate * self.positions) as u64
    }
}
