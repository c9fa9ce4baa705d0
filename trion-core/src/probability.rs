//! Probabilities of tokens by the model's own distribution: softmax at temperature 1, before any truncation or penalty.
//!
//! Computed with the contract's exponential, summed in the order of the vocabulary: the same bits everywhere.

use crate::numeric::exp_f32;

/// A token with its probability.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenProbability {
    /// The token.
    pub token: u32,
    /// From 0 to 1.
    pub probability: f32,
}

/// What turns logits into probabilities: `exp(logit - largest) / sum`.
struct Softmax {
    largest: f32,
    sum: f64,
}

impl Softmax {
    fn new(logits: &[f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let softmax = Softmax { largest, sum: 0.0 };
        let sum = logits.iter().map(|logit| softmax.weight(*logit)).sum();
        Softmax { sum, ..softmax }
    }

    fn weight(&self, logit: f32) -> f64 {
        // Also for a NaN, which counts as the least probable, as for the sampler: it is not above anything.
        if logit > f32::NEG_INFINITY { f64::from(exp_f32(logit - self.largest)) } else { 0.0 }
    }

    fn probability(&self, logit: f32) -> f32 {
        if self.sum > 0.0 { (self.weight(logit) / self.sum) as f32 } else { 0.0 }
    }
}

/// The probability of `token` by its logit in `logits` `[vocab_size]`; 0 for a token that has none.
pub fn token_probability(logits: &[f32], token: u32) -> f32 {
    logits.get(token as usize).map_or(0.0, |logit| Softmax::new(logits).probability(*logit))
}

/// Fills `out` with the most probable tokens by `logits` `[vocab_size]`, the most probable first and of equals the smaller
/// token, and returns how many there are: `out.len()`, or all.
pub fn most_probable(logits: &[f32], out: &mut [TokenProbability]) -> usize {
    let softmax = Softmax::new(logits);
    // Until the end, `probability` holds the logit.
    let mut count = 0;
    for (token, logit) in logits.iter().enumerate() {
        let logit = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
        let place = out[..count].partition_point(|c| c.probability >= logit);
        if place == out.len() {
            continue;
        }
        count = (count + 1).min(out.len());
        out[place..count].rotate_right(1);
        out[place] = TokenProbability { token: token as u32, probability: logit };
    }
    for candidate in &mut out[..count] {
        candidate.probability = softmax.probability(candidate.probability);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top<const N: usize>(logits: &[f32]) -> ([TokenProbability; N], usize) {
        let mut out = [TokenProbability::default(); N];
        let count = most_probable(logits, &mut out);
        (out, count)
    }

    #[test]
    fn the_most_probable_come_first_and_of_equals_the_smaller_token() {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.0];
        let (all, count) = top::<8>(&logits);
        assert_eq!(count, 5);
        assert_eq!(all.map(|c| c.token)[..5], [1, 3, 4, 0, 2]);
        let sum: f32 = all.iter().map(|c| c.probability).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        for candidate in &all[..5] {
            assert_eq!(candidate.probability, token_probability(&logits, candidate.token));
        }
        let expected = 1.0 / (2.0 + (-1.5_f64).exp() + (-3.0_f64).exp() + (-1.0_f64).exp());
        assert!((f64::from(all[0].probability) - expected).abs() < 1e-6);
        assert_eq!(top::<2>(&logits).0, all[..2]);
        assert_eq!(top::<0>(&logits).1, 0);
    }

    #[test]
    fn odd_logits_have_defined_probabilities() {
        assert_eq!(top::<3>(&[]).1, 0);
        assert_eq!(token_probability(&[], 0), 0.0);
        assert_eq!(token_probability(&[1.0], 1), 0.0);
        assert_eq!(token_probability(&[f32::NAN, 1.0], 1), 1.0);
        assert_eq!(token_probability(&[f32::NAN, 1.0], 0), 0.0);
        let (nan, count) = top::<2>(&[f32::NAN, f32::NAN]);
        assert_eq!((count, nan.map(|c| c.probability)), (2, [0.0; 2]));
        assert_eq!(token_probability(&[f32::NEG_INFINITY, 0.0], 0), 0.0);
    }
}
