//! The speed of both engines on the same tokens.

use std::time::Instant;

use trion_engine::{Model, Pool, Session, SessionOptions};

use super::continuation::best;
use super::probe::{Probed, Sequences, pass};

use super::report::Speed;
use crate::error::Result;

/// Repetitions, of which the fastest counts.
const REPETITIONS: usize = 3;
/// Tokens of a continuation that are timed.
const TIMED: usize = 16;

/// Measures Trion, and the graph without probes: a prompt of as many tokens as a prompt and its continuation have, and
/// the continuation token by token.
pub(super) fn measure(
    model: &Model,
    probed: &mut Probed,
    prompt: &[u32],
    count: usize,
    pool: &Pool,
) -> Result<(Speed, Speed)> {
    let count = count.min(TIMED);
    let context = prompt.len() + count;
    let mut session =
        Session::new(model, SessionOptions { max_batch: context.min(64), ..SessionOptions::new(context) })?;
    let mut tokens = prompt.to_vec();
    let mut trion = Speed { prompt: 0.0, decode: None };
    for _ in 0..REPETITIONS {
        tokens.truncate(prompt.len());
        session.rewind(0)?;
        let mut next = best(session.evaluate(&tokens, pool)?).0 as u32;
        let start = Instant::now();
        for _ in 0..count {
            tokens.push(next);
            next = best(session.evaluate(&[next], pool)?).0 as u32;
        }
        let decode = rate(count, start);
        session.rewind(0)?;
        let start = Instant::now();
        session.evaluate(&tokens, pool)?;
        trion.prompt = trion.prompt.max(rate(tokens.len(), start));
        trion.decode = Some(trion.decode.unwrap_or(0.0).max(decode));
    }
    let mut onnx = Speed { prompt: 0.0, decode: None };
    for _ in 0..REPETITIONS {
        if probed.cache {
            let mut sequences = Sequences::new(model, true, &[prompt.len()]);
            choose(probed, &mut sequences, prompt)?;
            let start = Instant::now();
            for token in &tokens[prompt.len()..] {
                choose(probed, &mut sequences, &[*token])?;
            }
            onnx.decode = Some(onnx.decode.unwrap_or(0.0).max(rate(count, start)));
        }
        let mut sequences = Sequences::new(model, probed.cache, &[tokens.len()]);
        let start = Instant::now();
        choose(probed, &mut sequences, &tokens)?;
        onnx.prompt = onnx.prompt.max(rate(tokens.len(), start));
    }
    Ok((trion, onnx))
}

/// Runs the graph without probes, and finds the largest of the last logits.
fn choose(probed: &mut Probed, sequences: &mut Sequences<'_>, tokens: &[u32]) -> Result<usize> {
    let pass = pass(&mut probed.plain, sequences, &[tokens])?;
    let logits = pass.logits()?;
    Ok(best(&logits[logits.len() - logits.len() / tokens.len()..]).0)
}

/// Tokens a second.
fn rate(tokens: usize, since: Instant) -> f64 {
    tokens as f64 / since.elapsed().as_secs_f64()
}
