//! From logits to a token: deterministic, in plain data, without allocation.

use heapless::Vec;

use crate::Error;
use crate::numeric::exp_f32;

/// Most candidates that truncation keeps. Top-k goes up to this, and top-p looks at no more.
const CANDIDATES: usize = 256;

/// How a token is chosen. The steps, in order:
///
/// 0. **Mask**, with [`Sampler::sample_masked`]: tokens that it forbids take no part in what follows.
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

    fn penalize(&self, token: u32, logit: f32, recent: &Recent<'_>) -> Candidate {
        let penalty = self.repetition_penalty;
        let logit = if logit.is_nan() { f32::MIN } else { logit };
        let logit = if penalty == 1.0 || !recent.contains(token) {
            logit
        } else if logit > 0.0 {
            logit / penalty
        } else {
            logit * penalty
        };
        Candidate { token, logit, weight: 0.0 }
    }
}

/// A token with its logit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenLogit {
    /// The token.
    pub token: u32,
    /// Its logit, as the model gave it.
    pub logit: f32,
}

/// Words of the filter of recent tokens.
const FILTER_WORDS: usize = 64;

/// Tokens of the recent history, and a filter before them: nearly every token of the vocabulary is told apart by one bit, and
/// the tokens themselves are looked through for the others.
#[derive(Clone, Copy)]
struct Recent<'a> {
    tokens: &'a [u32],
    filter: [u64; FILTER_WORDS],
}

impl<'a> Recent<'a> {
    fn new(tokens: &'a [u32]) -> Self {
        let mut filter = [0; FILTER_WORDS];
        for token in tokens {
            filter[Self::word(*token)] |= 1 << (token % 64);
        }
        Recent { tokens, filter }
    }

    const fn word(token: u32) -> usize {
        (token / 64) as usize % FILTER_WORDS
    }

    fn contains(&self, token: u32) -> bool {
        self.filter[Self::word(token)] >> (token % 64) & 1 == 1 && self.tokens.contains(&token)
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

impl Candidate {
    /// Whether it comes first in the order of logits, from the largest; equals are in the order of the vocabulary.
    fn is_before(&self, other: &Candidate) -> bool {
        self.logit > other.logit || (self.logit == other.logit && self.token < other.token)
    }
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

    /// Chooses a token by its logit in `logits` `[vocab_size]`, given the tokens before it. A NaN counts as the
    /// smallest logit, and an empty slice gives token 0.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        self.choose(all(logits), history).unwrap_or(0)
    }

    /// [`Sampler::sample`] among the tokens that `mask` allows: bit `token % 32` of word `token / 32` is set for those.
    /// Tokens beyond the mask are not allowed. The mask comes first, so top-k and top-p count allowed tokens alone, and
    /// a mask that allows everything gives what [`Sampler::sample`] gives.
    ///
    /// None if no token of the vocabulary is allowed; the generator is then as it was.
    pub fn sample_masked(&mut self, logits: &[f32], history: &[u32], mask: &[u32]) -> Option<u32> {
        let allowed = |token: u32| mask.get((token / 32) as usize).is_some_and(|word| word >> (token % 32) & 1 == 1);
        self.choose(all(logits).filter(|l| allowed(l.token)), history)
    }

    /// How many logits suffice for the choice after `history` tokens: the largest ones, of equals those of the smaller
    /// tokens, with a NaN counted as `f32::MIN`. [`Sampler::sample_candidates`] then gives what [`Sampler::sample`]
    /// gives by all logits. None if all of them matter: at a temperature without top-k and top-p, and with a repetition
    /// penalty below 1.
    pub fn candidates(&self, history: usize) -> Option<usize> {
        let options = &self.options;
        let keep = match options.top_k {
            _ if options.temperature == 0.0 => 1,
            0 if options.top_p >= 1.0 => return None,
            0 => CANDIDATES,
            k => k,
        };
        if options.repetition_penalty == 1.0 {
            Some(keep)
        } else if options.repetition_penalty > 1.0 {
            // Only logits of recent tokens change, and they go down: of so many, enough stay before all others.
            Some(keep.saturating_add(options.repetition_window.min(history)))
        } else {
            // A logit from anywhere may come up.
            None
        }
    }

    /// Chooses among tokens that were found elsewhere, on a GPU for example: as many as [`Sampler::candidates`] says,
    /// or more, in any order, no token twice; where it says none, all of the vocabulary in its order. The choice is that
    /// of [`Sampler::sample`], with the same generator behind it; no candidates give token 0.
    pub fn sample_candidates(&mut self, candidates: &[TokenLogit], history: &[u32]) -> u32 {
        self.choose(candidates.iter().copied(), history).unwrap_or(0)
    }

    /// None if there is no token to choose among.
    fn choose(&mut self, logits: impl Iterator<Item = TokenLogit> + Clone, history: &[u32]) -> Option<u32> {
        let options = self.options;
        let recent = &Recent::new(&history[history.len().saturating_sub(options.repetition_window)..]);
        let logits = logits.map(|l| options.penalize(l.token, l.logit, recent));
        if options.temperature == 0.0 {
            return largest(logits).map(|best| best.token);
        }
        if options.top_k == 0 && options.top_p >= 1.0 { self.draw_any(logits) } else { self.draw_some(logits) }
    }

    /// Draws from the whole vocabulary, less what min-p cuts off.
    fn draw_any(&mut self, logits: impl Iterator<Item = Candidate> + Clone) -> Option<u32> {
        let best = largest(logits.clone())?;
        let (temperature, min_p) = (self.options.temperature, self.options.min_p);
        let weights = logits.map(|c| {
            let weight = exp_f32((c.logit - best.logit) / temperature);
            (c.token, if weight >= min_p { weight } else { 0.0 })
        });
        let mut left = self.uniform() * weights.clone().map(|(_, weight)| f64::from(weight)).sum::<f64>();
        for (token, weight) in weights {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(token);
            }
        }
        Some(best.token) // rounding alone leads here
    }

    /// Draws from the candidates that top-k, top-p and min-p leave.
    fn draw_some(&mut self, logits: impl Iterator<Item = Candidate>) -> Option<u32> {
        let keep = if self.options.top_k == 0 { CANDIDATES } else { self.options.top_k };
        let mut candidates: Vec<Candidate, CANDIDATES> = Vec::new();
        for candidate in logits {
            // Sorted, the most probable first.
            if candidates.len() >= keep && candidates.last().is_some_and(|last| last.is_before(&candidate)) {
                continue;
            }
            if candidates.len() >= keep {
                candidates.pop();
            }
            let place = candidates.partition_point(|c| c.is_before(&candidate));
            // There is room: the list is shorter than `keep`, and `keep` is at most its capacity.
            let _ = candidates.insert(place, candidate);
        }
        let best = candidates.first().copied()?;
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
                return Some(candidate.token);
            }
        }
        Some(best.token) // rounding alone leads here
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

/// Logits `[vocab_size]` with their tokens.
fn all(logits: &[f32]) -> impl Iterator<Item = TokenLogit> + Clone {
    logits.iter().enumerate().map(|(token, logit)| TokenLogit { token: token as u32, logit: *logit })
}

/// The candidate with the largest logit; of equals, that of the smallest token.
fn largest(logits: impl Iterator<Item = Candidate>) -> Option<Candidate> {
    logits.reduce(|best, c| if c.is_before(&best) { c } else { best })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const VOCABULARY: usize = 100;

    /// Greedy, top-k, top-p, min-p, top-k with all others, and the draw from everything.
    fn samplers() -> [Sampler; 6] {
        let any = SamplerOptions { temperature: 1.0, seed: 5, repetition_penalty: 1.3, ..SamplerOptions::GREEDY };
        [
            SamplerOptions { temperature: 0.0, ..any },
            SamplerOptions { top_k: 7, ..any },
            SamplerOptions { top_p: 0.8, ..any },
            SamplerOptions { min_p: 0.05, ..any },
            SamplerOptions { top_k: 20, top_p: 0.9, min_p: 0.02, temperature: 0.7, ..any },
            any,
        ]
        .map(|options| Sampler::new(options).unwrap())
    }

    fn logits(seed: u64) -> [f32; VOCABULARY] {
        let mut random = Sampler::new(SamplerOptions { seed, ..SamplerOptions::GREEDY }).unwrap();
        core::array::from_fn(|_| (random.uniform() * 8.0) as f32)
    }

    #[test]
    fn a_mask_of_everything_changes_nothing() {
        for mut plain in samplers() {
            let mut masked = plain;
            for round in 0..200 {
                let (logits, history) = (logits(round), [3, 50, 99]);
                let token = plain.sample(&logits, &history);
                assert_eq!(masked.sample_masked(&logits, &history, &[u32::MAX; 4]), Some(token));
                assert_eq!(masked, plain);
            }
        }
    }

    #[test]
    fn only_allowed_tokens_are_drawn_and_all_of_them() {
        // Beyond the mask of three words, 96 to 99 are forbidden.
        let mask = [1 << 3, 0, 1 << 1 | 1 << 31];
        let allowed = [3, 65, 95];
        for mut sampler in samplers() {
            let mut seen = [0; 3];
            for round in 0..2000 {
                let token = sampler.sample_masked(&logits(round), &[], &mask).unwrap();
                seen[allowed.iter().position(|a| *a == token).unwrap()] += 1;
            }
            assert!(seen.iter().all(|count| *count > 200), "{seen:?}");
        }
    }

    #[test]
    fn the_mask_comes_before_truncation() {
        let mut logits = [10.0; VOCABULARY];
        logits[40] = -10.0;
        logits[41] = -11.0;
        let mask = [0, 1 << 8 | 1 << 9];
        let options = SamplerOptions { temperature: 1.0, ..SamplerOptions::GREEDY };
        for options in [
            SamplerOptions { top_k: 1, ..options },
            SamplerOptions { top_p: 0.01, ..options },
            SamplerOptions { min_p: 0.9, ..options },
            SamplerOptions::GREEDY,
        ] {
            let mut sampler = Sampler::new(options).unwrap();
            assert_eq!(sampler.sample_masked(&logits, &[], &mask), Some(40));
        }
    }

    /// The largest logits with their tokens, as somebody else finds them.
    fn largest_of(logits: &[f32], count: usize) -> std::vec::Vec<TokenLogit> {
        let key = |l: &TokenLogit| if l.logit.is_nan() { f32::MIN } else { l.logit };
        let mut found: std::vec::Vec<TokenLogit> = all(logits).collect();
        found.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap().then(a.token.cmp(&b.token)));
        found.truncate(count);
        found
    }

    #[test]
    fn the_largest_logits_suffice_where_the_sampler_says_so() {
        let mut samplers = samplers().to_vec();
        for (top_k, top_p, min_p, repetition_penalty, temperature) in [
            (1, 1.0, 0.0, 1.0, 1.0),
            (40, 1.0, 0.0, 1.0, 0.8),
            (5, 0.7, 0.1, 1.0, 1.5),
            (5, 1.0, 0.0, 30.0, 0.01),
            (256, 1.0, 0.0, 1.1, 2.0),
            (0, 0.95, 0.0, 1.2, 3.0),
            (0, 1.0, 0.0, 2.0, 0.0),
        ] {
            for repetition_window in [0, 2, 64] {
                let options =
                    SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, seed: 9 };
                samplers.push(Sampler::new(options).unwrap());
            }
        }
        let (mut narrowed, mut without_enough) = (0, 0);
        for sampler in samplers {
            let (mut all_seen, mut fewer) = (sampler, sampler);
            let mut history = std::vec![];
            for round in 0..300 {
                // Steps, so that there are ties, and now and then what is no number.
                let mut logits = logits(round);
                for (i, logit) in logits.iter_mut().enumerate() {
                    *logit = match (round as usize * 31 + i) % 97 {
                        0 => f32::NAN,
                        1 if round % 7 == 0 => f32::INFINITY,
                        2 => f32::NEG_INFINITY,
                        3 => -0.0,
                        4 => f32::MIN,
                        _ if round % 3 == 0 => (*logit * 2.0 - 8.0).floor() / 4.0,
                        _ => *logit - 4.0,
                    };
                }
                let token = all_seen.sample(&logits, &history);
                let Some(count) = fewer.candidates(history.len()) else { break };
                let mut found = largest_of(&logits, count);
                narrowed += usize::from(found.len() < VOCABULARY);
                if fewer.options.repetition_penalty > 1.0 && fewer.options.temperature == 0.0 {
                    let one = &found[..1];
                    without_enough += usize::from(fewer.sample_candidates(one, &history) != token);
                }
                // In any order.
                let middle = found.len() / 3;
                found.rotate_left(middle);
                assert_eq!(fewer.sample_candidates(&found, &history), token, "{:?}, round {round}", fewer.options);
                assert_eq!(fewer, all_seen);
                history.push(token);
            }
        }
        assert!(narrowed > 1000 && without_enough > 100, "{narrowed}, {without_enough}: this compared nothing");
    }

    #[test]
    fn the_number_of_candidates_follows_the_options() {
        let greedy = SamplerOptions::GREEDY;
        let warm = SamplerOptions { temperature: 1.0, ..greedy };
        for (options, history, expected) in [
            (greedy, 100, Some(1)),
            (SamplerOptions { top_k: 40, ..greedy }, 100, Some(1)),
            (SamplerOptions { repetition_penalty: 1.1, ..greedy }, 100, Some(65)),
            (warm, 0, None),
            (SamplerOptions { min_p: 0.1, ..warm }, 0, None),
            (SamplerOptions { top_k: 40, ..warm }, 100, Some(40)),
            (SamplerOptions { top_p: 0.9, ..warm }, 100, Some(256)),
            (SamplerOptions { top_k: 40, repetition_penalty: 1.1, ..warm }, 5, Some(45)),
            (SamplerOptions { top_k: 40, repetition_penalty: 0.9, ..warm }, 0, None),
        ] {
            assert_eq!(Sampler::new(options).unwrap().candidates(history), expected, "{options:?}");
        }
        let mut sampler = Sampler::new(greedy).unwrap();
        assert_eq!(sampler.sample_candidates(&[], &[]), 0);
    }

    #[test]
    fn nothing_allowed_gives_none_and_draws_nothing() {
        for mut sampler in samplers() {
            let before = sampler;
            // Bits beyond the vocabulary allow nothing.
            for mask in [&[][..], &[0; 4], &[0, 0, 0, !0b1111], &[0, 0, 0, 0, 1]] {
                assert_eq!(sampler.sample_masked(&[1.0; VOCABULARY], &[], mask), None);
            }
            assert_eq!(sampler.sample_masked(&[], &[], &[u32::MAX]), None);
            assert_eq!(sampler, before);
            assert_eq!(sampler.sample(&[], &[]), 0);
        }
    }

    #[test]
    fn an_allowed_token_is_found_among_logits_that_are_no_numbers() {
        for mut sampler in samplers() {
            for logit in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
                assert_eq!(sampler.sample_masked(&[logit; VOCABULARY], &[], &[0, 0b100]), Some(34));
            }
        }
    }
}
