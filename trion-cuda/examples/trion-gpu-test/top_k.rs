//! The largest logits: right, and how fast.

use trion_core::TokenLogit;
use trion_cuda::{CudaDevice, CudaSession, measure};

use crate::Outcome;

/// A number of a random one and of the place in its row.
type Numbers = &'static dyn Fn(u32, usize) -> f32;

/// The largest logits, as the sampler orders them.
pub(crate) fn largest(logits: &[f32]) -> Vec<TokenLogit> {
    let number = |l: &TokenLogit| if l.logit.is_nan() { f32::MIN } else { l.logit };
    let mut all: Vec<TokenLogit> = (0..).zip(logits).map(|(token, &logit)| TokenLogit { token, logit }).collect();
    all.sort_unstable_by(|a, b| number(b).total_cmp(&number(a)).then(a.token.cmp(&b.token)));
    // To total_cmp zeros differ by their sign.
    for zeros in all.chunk_by_mut(|a, b| number(a) == number(b)) {
        zeros.sort_unstable_by_key(|l| l.token);
    }
    all
}

/// What differs first between what a GPU found and the `k` largest, if anything.
pub(crate) fn difference_of_top_k(found: &[TokenLogit], logits: &[f32], k: usize) -> Option<String> {
    let mut expected = largest(logits);
    expected.truncate(k);
    difference_of_found(found, &expected)
}

pub(crate) fn difference_of_found(found: &[TokenLogit], expected: &[TokenLogit]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} of the largest logits, expected {}", found.len(), expected.len()));
    }
    let equal = |a: &TokenLogit, b: &TokenLogit| {
        a.token == b.token && (a.logit.to_bits() == b.logit.to_bits() || (a.logit.is_nan() && b.logit.is_nan()))
    };
    let first = (0..found.len()).find(|i| !equal(&found[*i], &expected[*i]))?;
    Some(format!("number {first} of the largest logits is {:?}, expected {:?}", found[first], expected[first]))
}

/// A number without a pattern.
fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as u32
}

/// Between -8 and 8.
fn wide(random: u32) -> f32 {
    (random >> 8) as f32 / (1 << 20) as f32 - 8.0
}

/// The largest logits of random rows, with ties, zeros of both signs, NaN and infinities, against the host's.
pub(crate) fn compare_top_k(device: &CudaDevice) -> Outcome<Option<String>> {
    let kinds: [(&str, Numbers); 9] = [
        ("random", &|r, _| wide(r)),
        ("any bits", &|r, _| f32::from_bits(r)),
        ("few numbers", &|r, _| wide(r).floor()),
        ("all equal", &|_, _| -1.5),
        ("no numbers", &|r, _| if r % 50 == 0 { f32::NAN } else { f32::NEG_INFINITY }),
        ("NaN and the smallest", &|r, _| [f32::NAN, f32::MIN, f32::NEG_INFINITY, f32::MIN][r as usize % 4]),
        ("zeros and infinity", &|r, _| [0.0, -0.0, -0.0, f32::INFINITY][if r % 99 == 0 { 3 } else { r as usize % 3 }]),
        ("falling", &|_, i| -(i as f32)),
        ("rising", &|_, i| i as f32 - 1000.0),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for (vocab_size, rows) in
        [(1, 1), (2, 3), (31, 1), (301, 2), (4096, 1), (4097, 2), (9000, 1), (128_256, 2), (600_000, 1)]
    {
        for (kind, number) in kinds {
            let logits: Vec<f32> = (0..rows * vocab_size).map(|i| number(random(&mut state), i % vocab_size)).collect();
            let sorted: Vec<_> = logits.chunks(vocab_size).map(largest).collect();
            for k in [1, 2, 40, 256, 320, CudaSession::MOST_CANDIDATES] {
                let (found, _) = measure::top_k(device, &logits, rows, k)?;
                let expected: Vec<_> = sorted.iter().flat_map(|row| &row[..k.min(vocab_size)]).copied().collect();
                if let Some(what) = difference_of_found(&found, &expected) {
                    return Ok(Some(format!("{kind}, {rows} x {vocab_size}, k {k}: {what}")));
                }
            }
        }
    }
    Ok(None)
}

/// Times of finding the largest logits of a vocabulary of 128256, without the way to the host.
pub(crate) fn speed_of_top_k(device: &CudaDevice) -> Outcome<()> {
    let mut state = 1;
    // Sums of some numbers, which are more often small than large, as logits are.
    let logits: Vec<f32> = (0..128_256)
        .map(|_| (0..6).map(|_| (random(&mut state) >> 8) as f32).sum::<f32>() / (1 << 23) as f32)
        .collect();
    for k in [1, 40, 104, 256, 320] {
        println!("the {k} largest of {} logits: {:.2} us", logits.len(), measure::top_k(device, &logits, 1, k)?.1);
    }
    Ok(())
}
