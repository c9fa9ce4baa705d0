//! `trion bench --layers`: where the time of a prompt and of a token goes, by kinds of layers.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trion_core::Projection;
use trion_engine::{Model, Observation, Parallel, Progress, Session};

use crate::common::{Failure, matrix_bytes};

/// One kind, in all blocks together.
pub(crate) struct LayerTime {
    name: &'static str,
    /// Bytes of weights and of the cache that a token of decode reads.
    bytes: usize,
    /// Weights, each of which is a multiplication and an addition for each token of a prompt; none of the head, which is for
    /// the last token alone.
    weights: usize,
    /// Seconds of a token of decode, and of one of a prompt.
    decode: f64,
    prompt: f64,
}

/// What is told apart, in the order of a token. What an observation shows is the input of the next product, so that the
/// norm before a product counts to the one before it.
const NAMES: [&str; 6] = ["embedding", "query, key, value, attention", "output", "gate, up", "down", "head"];

/// The projections of each kind; the embedding and the head have none.
const PROJECTIONS: [&[Projection]; NAMES.len()] = [
    &[],
    &[Projection::Query, Projection::Key, Projection::Value],
    &[Projection::Output],
    &[Projection::Gate, Projection::Up],
    &[Projection::Down],
    &[],
];

impl LayerTime {
    /// Computes `prompt` from the beginning, then decodes `count` tokens, and gives the time of each kind; `cache_bytes` is
    /// of a number of the cache.
    pub(crate) fn measure(
        session: &mut Session,
        prompt: &[u32],
        count: u32,
        cache_bytes: usize,
        pool: &dyn Parallel,
    ) -> Result<Vec<Self>, Failure> {
        let vocab_size = session.model().config().vocab_size as u32;
        session.rewind(0)?;
        let prompt_times = times(session, prompt, pool)?;
        let mut decode_times = [Duration::ZERO; NAMES.len()];
        for token in 0..count {
            let times = times(session, &[token % vocab_size], pool)?;
            decode_times.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
        }
        let bytes = layer_bytes(session.model(), prompt.len() + count as usize / 2, cache_bytes);
        let weights = layer_weights(session.model());
        let layer = |kind: usize| LayerTime {
            name: NAMES[kind],
            bytes: bytes[kind],
            weights: weights[kind],
            decode: decode_times[kind].as_secs_f64() / f64::from(count),
            prompt: prompt_times[kind].as_secs_f64() / prompt.len() as f64,
        };
        Ok((0..NAMES.len()).map(layer).collect())
    }

    /// What the columns of a line are.
    pub(crate) const HEADING: &'static str =
        "                                  MB   ms a token      GB/s   of memory   prompt, ms a token   Gop/s";

    /// A line of the table, beside what memory gives in bytes a second.
    pub(crate) fn line(&self, bandwidth: f64) -> impl fmt::Display {
        let LayerTime { name, bytes, weights, decode, prompt } = self;
        let (mb, rate) = (*bytes as f64 / 1e6, *bytes as f64 / decode);
        let operations = 2.0 * *weights as f64 / prompt / 1e9;
        let percent = 100.0 * rate / bandwidth;
        let (decode, prompt) = (1e3 * decode, 1e3 * prompt);
        format!("{name:28} {mb:8.2} {decode:12.3} {:9.1} {percent:9.0} % {prompt:20.4} {operations:7.1}", rate / 1e9)
    }

    pub(crate) fn json(&self) -> Value {
        let LayerTime { name, bytes, weights, decode, prompt } = self;
        json!({
            "name": name,
            "bytes": bytes,
            "weights": weights,
            "seconds_per_decoded_token": decode,
            "seconds_per_prompt_token": prompt,
        })
    }
}

/// Computes tokens, and gives the time of each kind.
fn times(session: &mut Session, tokens: &[u32], pool: &dyn Parallel) -> Result<[Duration; NAMES.len()], Failure> {
    let mut times = [Duration::ZERO; NAMES.len()];
    session.push(tokens)?;
    let (mut kind, mut since) = (0, Instant::now());
    let mut observer = |observation: Observation<'_>| {
        let next = match observation {
            Observation::Hidden { layer: None, .. } => 0,
            Observation::Projection { projection: Projection::Query, .. } => 1,
            Observation::Projection { projection: Projection::Output, .. } => 2,
            Observation::Projection { projection: Projection::Gate, .. } => 3,
            Observation::Projection { projection: Projection::Down, .. } => 4,
            Observation::Head { .. } => 5,
            Observation::Projection { .. } | Observation::Hidden { .. } => return,
        };
        let now = Instant::now();
        times[kind] += now - since;
        (kind, since) = (next, now);
    };
    while session.advance_observed(usize::MAX, pool, &mut observer)? == Progress::More {}
    times[kind] += since.elapsed();
    Ok(times)
}

/// Bytes of weights and cache that a token of decode reads when `positions` are in the cache, for each of the kinds.
pub(crate) fn layer_bytes(model: &Model, positions: usize, cache_bytes: usize) -> [usize; NAMES.len()] {
    let (core, config) = (model.core(), model.config());
    let mut bytes = PROJECTIONS.map(|projections| {
        let each = core.layers().iter().flat_map(|layer| projections.iter().map(|p| layer.projection(*p)));
        each.map(|linear| matrix_bytes(&linear.matrix)).sum()
    });
    bytes[0] = matrix_bytes(core.embedding()) / config.vocab_size;
    bytes[1] += 2 * config.num_hidden_layers * config.key_value_size() * positions * cache_bytes;
    bytes[NAMES.len() - 1] = matrix_bytes(core.head());
    bytes
}

/// [`LayerTime::weights`] of each of the kinds.
fn layer_weights(model: &Model) -> [usize; NAMES.len()] {
    let config = model.config();
    PROJECTIONS.map(|projections| {
        let each = projections.iter().map(|p| p.shape(config).into_iter().product::<usize>());
        config.num_hidden_layers * each.sum::<usize>()
    })
}
