//! `trion bench --layers`: where the time of a token goes, by kinds of layers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trion_core::Projection;
use trion_engine::{Model, Observation, Parallel, Progress, Session};

use crate::common::{Failure, matrix_bytes};

/// One kind, in all blocks together.
pub(crate) struct LayerTime {
    pub(crate) name: &'static str,
    /// Bytes of weights and of the cache that a token reads.
    pub(crate) bytes: usize,
    /// Seconds of a token.
    pub(crate) seconds: f64,
}

impl LayerTime {
    pub(crate) fn json(&self) -> Value {
        json!({ "name": self.name, "bytes": self.bytes, "seconds": self.seconds })
    }
}

/// What is told apart, in the order of a token. What an observation shows is the input of the next product, so that the
/// norm before a product counts to the one before it.
const NAMES: [&str; 6] = ["embedding", "query, key, value, attention", "output", "gate, up", "down", "head"];

/// Decodes `count` tokens, and gives the time of each kind; `cache_bytes` is of a number of the cache.
pub(crate) fn layer_times(
    session: &mut Session,
    count: u32,
    cache_bytes: usize,
    pool: &dyn Parallel,
) -> Result<Vec<LayerTime>, Failure> {
    let model = session.model().clone();
    let vocab_size = model.config().vocab_size as u32;
    let positions = session.tokens().len() + count as usize / 2;
    let mut times = [Duration::ZERO; NAMES.len()];
    for token in 0..count {
        session.push(&[token % vocab_size])?;
        let (mut kind, mut since) = (0, Instant::now());
        let mut observer = |observation: Observation<'_>| {
            let next = match observation {
                Observation::Projection { projection, .. } => match projection {
                    Projection::Query => 1,
                    Projection::Output => 2,
                    Projection::Gate => 3,
                    Projection::Down => 4,
                    Projection::Key | Projection::Value | Projection::Up => return,
                },
                Observation::Head { .. } => 5,
                Observation::Hidden { .. } => return,
            };
            let now = Instant::now();
            times[kind] += now - since;
            (kind, since) = (next, now);
        };
        while session.advance_observed(usize::MAX, pool, &mut observer)? == Progress::More {}
        times[kind] += since.elapsed();
    }
    let bytes = layer_bytes(&model, positions, cache_bytes);
    let kinds = NAMES.into_iter().zip(bytes).zip(times);
    Ok(kinds
        .map(|((name, bytes), time)| LayerTime { name, bytes, seconds: time.as_secs_f64() / f64::from(count) })
        .collect())
}

/// Bytes of weights and cache that a token of decode reads when `positions` are in the cache, for each of the kinds.
pub(crate) fn layer_bytes(model: &Model, positions: usize, cache_bytes: usize) -> [usize; NAMES.len()] {
    use Projection as P;
    let (core, config) = (model.core(), model.config());
    let of = |projections: &[P]| -> usize {
        let each = core.layers().iter().flat_map(|layer| projections.iter().map(|p| layer.projection(*p)));
        each.map(|linear| matrix_bytes(&linear.matrix)).sum()
    };
    let cache = 2 * config.num_hidden_layers * config.key_value_size() * positions * cache_bytes;
    [
        matrix_bytes(core.embedding()) / config.vocab_size,
        of(&[P::Query, P::Key, P::Value]) + cache,
        of(&[P::Output]),
        of(&[P::Gate, P::Up]),
        of(&[P::Down]),
        matrix_bytes(core.head()),
    ]
}
