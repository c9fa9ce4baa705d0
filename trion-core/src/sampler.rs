//! From logits to a token: deterministic, in plain data, without allocation.

use heapless::Vec;

use crate::Error;
use crate::numeric::exp_f32;

/// Most candidates that truncation keeps. Top-k goes up to this, and top-p looks at no more.
const CANDIDATES: usize = 256;

/// How a token is chosen. The steps, in order:
///
/// 1. **Repetition penalty**: the logit of each token of the recent history is divided by the penalty if positive,
///    multiplied if negative, once however often the token occurs (Keskar et al. 2019).
/// 2. **Greedy**: at temperature 0 the largest logit wins; of equals, the smallest token.
/// 3. **Temperature**: logits are divided by it.
/// 4. **Top-k**: the k largest stay.
/// 5. **Top-p**: of these, the most probable whose sum first reaches p stay (Holtzman et al. 2019).
/// 6. **Min-p**: of these, those at least `min_p` times as probable as the most probable stay.
/// 7. **Draw** by what is left of the probabilities, with a generator of our own that the seed starts.
///
/// Without top-k and top-p nothing is cut off but by min-p, and any token of the vocabulary can be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// 0 for greedy, 1 for the model's own distribution.
    pub temperature: f32,
    /// 1 to 256; 0 for off.
    pub top_k: usize,
    /// Above 0 up to 1; 1 for off.
    pub top_p: f32,
    /// 0 to 1; 0 for off.
    pub min_p: f32,
    /// Above 0; 1 for off.
    pub repetition_penalty: f32,
    /// Tokens of the history that the penalty looks at.
    pub repetition_window: usize,
    /// Starts the generator.
    pub seed: u64,
}

impl SamplerOptions {
    /// Always the most probable token.
    pub const GREEDY: SamplerOptions = SamplerOptions {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        repetition_window: 64,
        seed: 0,
    };

    fn penalize(&self, token: u32, logit: f32, recent: &[u32]) -> Candidate {
        let penalty = self.repetition_penalty;
        let logit = if logit.is_nan() { f32::MIN } else { logit };
        let logit = if penalty == 1.0 || !recent.contains(&token) {
            logit
        } else if logit > 0.0 {
            logit / penalty
        } else {
            logit * penalty
        };
        Candidate { token, logit, weight: 0.0 }
    }
}

/// A sampler with its generator; copy it to save its state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f32,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// [`Error::Sampler`] names the first option that is outside its range.
    pub fn new(options: SamplerOptions) -> Result<Self, Error> {
        let o = &options;
        let checks = [
            ("temperature", o.temperature.is_finite() && o.temperature >= 0.0, "a finite number of at least 0"),
            ("top_k", o.top_k <= CANDIDATES, "0 to 256"),
            ("top_p", o.top_p > 0.0 && o.top_p <= 1.0, "above 0, up to 1"),
            ("min_p", (0.0..=1.0).contains(&o.min_p), "0 to 1"),
            (
                "repetition_penalty",
                o.repetition_penalty.is_finite() && o.repetition_penalty > 0.0,
                "a finite number above 0",
            ),
        ];
        for (field, holds, expected) in checks {
            if !holds {
                return Err(Error::Sampler { field, expected });
            }
        }
        Ok(Sampler { options, state: options.seed })
    }

    /// A sampler that goes on where another had come to, by that one's [`Sampler::state`].
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn resume(options: SamplerOptions, state: u64) -> Result<Self, Error> {
        Ok(Sampler { state, ..Sampler::new(options)? })
    }

    /// How far the generator has come.
    pub const fn state(&self) -> u64 {
        self.state
    }

    /// The options.
    pub const fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses a token by its logit in `logits` `[vocab_size]`, given the tokens before it. A NaN counts as the smallest
    /// logit, and an empty slice gives token 0.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        let options = self.options;
        let recent = &history[history.len().saturating_sub(options.repetition_window)..];
        let logits = logits.iter().enumerate().map(|(token, logit)| options.penalize(token as u32, *logit, recent));
        if options.temperature == 0.0 {
            return largest(logits).token;
        }
        if options.top_k == 0 && options.top_p >= 1.0 { self.draw_any(logits) } else { self.draw_some(logits) }
    }

    /// Draws from the whole vocabulary, less what min-p cuts off.
    fn draw_any(&mut self, logits: impl Iterator<Item = Candidate> + Clone) -> u32 {
        let best = largest(logits.clone());
        let (temperature, min_p) = (self.options.temperature, self.options.min_p);
        let weights = logits.map(|c| {
            let weight = exp_f32((c.logit - best.logit) / temperature);
            (c.token, if weight >= min_p { weight } else { 0.0 })
        });
        let mut left = self.uniform() * weights.clone().map(|(_, weight)| f64::from(weight)).sum::<f64>();
        for (token, weight) in weights {
            left -= f64::from(weight);
            if left < 0.0 {
                return token;
            }
        }
        best.token // rounding alone leads here
    }

    /// Draws from the candidates that top-k, top-p and min-p leave.
    fn draw_some(&mut self, logits: impl Iterator<Item = Candidate>) -> u32 {
        let keep = if self.options.top_k == 0 { CANDIDATES } else { self.options.top_k };
        let mut candidates: Vec<Candidate, CANDIDATES> = Vec::new();
        for candidate in logits {
            // Sorted from the most probable; equals stay in the order of the vocabulary.
            if candidates.len() >= keep && candidates.last().is_some_and(|last| last.logit >= candidate.logit) {
                continue;
            }
            if candidates.len() >= keep {
                candidates.pop();
            }
            let place = candidates.partition_point(|c| c.logit >= candidate.logit);
            // There is room: the list is shorter than `keep`, and `keep` is at most its capacity.
            let _ = candidates.insert(place, candidate);
        }
        let Some(best) = candidates.first().copied() else { return 0 };
        let mut total = 0.0_f64;
        for candidate in &mut candidates {
            candidate.weight = exp_f32((candidate.logit - best.logit) / self.options.temperature);
            total += f64::from(candidate.weight);
        }
        let (mut sum, mut kept) = (0.0, 0);
        for candidate in &candidates {
            let enough = sum >= f64::from(self.options.top_p) * total;
            if enough || candidate.weight < self.options.min_p {
                break;
            }
            sum += f64::from(candidate.weight);
            kept += 1;
        }
        let mut left = self.uniform() * sum;
        for candidate in &candidates[..kept] {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return candidate.token;
            }
        }
        best.token // rounding alone leads here
    }

    /// A number in [0, 1) with 53 random bits: `SplitMix64` (Steele, Lea and Flood 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The candidate with the largest logit; of equals, the first.
fn largest(logits: impl Iterator<Item = Candidate>) -> Candidate {
    let none = Candidate { token: 0, logit: f32::NEG_INFINITY, weight: 0.0 };
    logits.fold(none, |best, c| if c.logit > best.logit { c } else { best })
}
