//! Learning rates and weight decay in two stages, as `BitNet` b1.58 is trained (Ma et al. 2024, "The Era of 1-bit LLMs:
//! Training Tips, Code and FAQ"): high rates with decay first, then lower rates without, which lets trits settle.

use serde::{Deserialize, Serialize};

use crate::optimizer::Rates;

/// A schedule; rates are those of the peak.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps in which rates rise from zero.
    pub warmup: u64,
    /// Peak rate of `AdamW`.
    pub adamw: f64,
    /// Peak rate of Muon.
    pub muon: f64,
    /// Weight decay of the first half.
    pub weight_decay: f64,
    /// Part of the peak at half of the steps.
    pub middle: f64,
    /// Part of the peak at the end.
    pub last: f64,
    /// Steps in which quantisation sets in, for models that were floats; 0 for those that are ternary from the start.
    pub lambda_steps: u64,
}

impl Schedule {
    /// Rates of step `step`, counted from 1.
    pub fn rates(&self, step: u64) -> Rates {
        let done = (step as f64 / self.steps.max(1) as f64).min(1.0);
        let (first_half, part) = (done <= 0.5, 2.0 * done % 1.0);
        let part = if done == 0.5 || done == 1.0 { 1.0 } else { part };
        let [from, to] = if first_half { [1.0, self.middle] } else { [self.middle, self.last] };
        let rise = (step as f64 / self.warmup.max(1) as f64).min(1.0);
        let factor = rise * (from + (to - from) * part);
        Rates {
            adamw: self.adamw * factor,
            muon: self.muon * factor,
            weight_decay: if first_half { self.weight_decay } else { 0.0 },
        }
    }

    /// How much of quantisation step `step` applies.
    pub fn lambda(&self, step: u64) -> f64 {
        if self.lambda_steps == 0 { 1.0 } else { (step as f64 / self.lambda_steps as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        steps: 100,
        warmup: 10,
        adamw: 1.0,
        muon: 10.0,
        weight_decay: 0.1,
        middle: 0.6,
        last: 0.0,
        lambda_steps: 4,
    };

    #[test]
    fn rates_rise_fall_and_fall_again() {
        let adamw = |step| SCHEDULE.rates(step).adamw;
        assert!((adamw(1) - 0.1 * (1.0 - 0.4 * 0.02)).abs() < 1e-12);
        assert!((adamw(50) - 0.6).abs() < 1e-12);
        assert!((adamw(75) - 0.3).abs() < 1e-12);
        assert_eq!(adamw(100), 0.0);
        assert!((1..100).all(|step| step < 10 || adamw(step + 1) < adamw(step)));
        assert!((SCHEDULE.rates(75).muon - 3.0).abs() < 1e-12);
    }

    #[test]
    fn weights_decay_in_the_first_half_alone() {
        assert_eq!([1, 50, 51, 100].map(|step| SCHEDULE.rates(step).weight_decay), [0.1, 0.1, 0.0, 0.0]);
    }

    #[test]
    fn quantisation_sets_in() {
        assert_eq!([1, 2, 4, 9].map(|step| SCHEDULE.lambda(step)), [0.25, 0.5, 1.0, 1.0]);
        assert_eq!(Schedule { lambda_steps: 0, ..SCHEDULE }.lambda(1), 1.0);
    }
}
