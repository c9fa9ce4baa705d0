//! The sampler on any logits, history and options.

use arbitrary::{Arbitrary, Unstructured};
use trion_core::{TokenProbability, most_probable, token_probability};
use trion_engine::{Sampler, SamplerOptions, TokenLogit};

/// An input.
#[derive(Debug, Arbitrary)]
struct Input {
    temperature: f32,
    top_k: u16,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    repetition_window: u16,
    seed: u64,
    /// Which of the options above count; the others are off.
    uses: u8,
    history: Vec<u32>,
    mask: Vec<u32>,
    logits: Vec<f32>,
}

impl Input {
    fn options(&self) -> SamplerOptions {
        let uses = |bit: u8| self.uses >> bit & 1 == 1;
        let mut options = SamplerOptions { temperature: 1.0, seed: self.seed, ..SamplerOptions::GREEDY };
        if uses(0) {
            options.temperature = self.temperature;
        }
        if uses(1) {
            options.top_k = self.top_k.into();
        }
        if uses(2) {
            options.top_p = self.top_p;
        }
        if uses(3) {
            options.min_p = self.min_p;
        }
        if uses(4) {
            options.repetition_penalty = self.repetition_penalty;
        }
        if uses(5) {
            options.repetition_window = self.repetition_window.into();
        }
        if uses(6) {
            options.temperature = 0.0;
        }
        options
    }
}

/// A NaN is the least of all numbers to the sampler.
fn order(logit: f32) -> f32 {
    if logit.is_nan() { f32::MIN } else { logit }
}

/// Samples in every way, which agree.
///
/// # Panics
/// If they do not, or a token is not one that may be chosen.
pub fn run(bytes: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let (options, logits, history) = (input.options(), &input.logits[..], &input.history[..]);
    probabilities(logits);
    let sampler = match Sampler::new(options) {
        Ok(sampler) => sampler,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut plain = sampler;
    let token = plain.sample(logits, history);
    assert!((token as usize) < logits.len().max(1), "token {token} of {}", logits.len());

    let mut masked = sampler;
    let everything = vec![u32::MAX; logits.len().div_ceil(32)];
    assert_eq!(masked.sample_masked(logits, history, &everything), (!logits.is_empty()).then_some(token));
    assert_eq!(masked.state(), if logits.is_empty() { sampler.state() } else { plain.state() });

    let allowed = |token: usize| input.mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
    match masked.sample_masked(logits, history, &input.mask) {
        Some(token) => assert!((token as usize) < logits.len() && allowed(token as usize)),
        None => assert!(!(0..logits.len()).any(allowed)),
    }

    let mut candidates: Vec<TokenLogit> =
        logits.iter().enumerate().map(|(token, logit)| TokenLogit { token: token as u32, logit: *logit }).collect();
    if let Some(count) = sampler.candidates(history.len()) {
        // The order of zeros does not count their signs.
        candidates
            .sort_by(|a, b| order(b.logit).partial_cmp(&order(a.logit)).expect("no NaN").then(a.token.cmp(&b.token)));
        candidates.truncate(count);
        candidates.reverse();
    }
    let mut some = sampler;
    assert_eq!(some.sample_candidates(&candidates, history), token, "by the largest logits alone");
    assert_eq!(some.state(), plain.state());

    if options.repetition_penalty == 1.0 && !logits.is_empty() {
        let chosen = order(logits[token as usize]);
        let before = logits.iter().filter(|logit| order(**logit) > chosen).count();
        if options.temperature == 0.0 {
            assert_eq!(before, 0, "greedy is the largest logit");
        } else if options.top_k > 0 {
            assert!(before < options.top_k, "token {token} is not among the {} largest", options.top_k);
        }
    }
}

/// Probabilities are from 0 to 1 and fall, whichever way they are asked for.
fn probabilities(logits: &[f32]) {
    let mut found = [TokenProbability::default(); 5];
    let count = most_probable(logits, &mut found);
    assert_eq!(count, logits.len().min(found.len()));
    for (n, candidate) in found[..count].iter().enumerate() {
        let probability = candidate.probability;
        assert!((0.0..=1.0).contains(&probability), "{probability}");
        assert_eq!(token_probability(logits, candidate.token), probability);
        assert!(n == 0 || found[n - 1].probability >= probability);
    }
    assert_eq!(token_probability(logits, logits.len() as u32), 0.0);
}
