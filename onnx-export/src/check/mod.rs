//! The check of an exported graph: both engines are fed the same tokens, and everything that they compute is compared.
//!
//! Integer sums have to be equal bit by bit. Floats differ a little, since their sums have another order; where an
//! activation lies next to a half before it is quantised, that may part the engines by one, which is called a tie
//! (docs/numerics.md, Against other implementations). Trion then goes on from ONNX Runtime's integer.

mod compare;
mod continuation;
mod probe;
mod prompts;
mod report;
mod speed;

use std::path::Path;

use trion_engine::{Logits, Model, Parallel, Pool, Session, SessionOptions};

use crate::error::{Error, Result};
use crate::names;
use crate::runtime::Runtime;
use compare::{Comparison, Row, Stop};
use continuation::Continuation;
use probe::{Pass, Probed, Sequences, pass};
pub use prompts::default_prompts;
pub use report::{Failure, LayerReport, Mode, ModeReport, Report, Speed, Tie};

/// Sequences that go through a graph together.
const BATCH: usize = 3;

/// What [`check`] compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOptions {
    /// Prompts, as tokens.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens that are generated behind each prompt, at least 1.
    pub tokens: usize,
    /// Threads of either engine; 0 for as many as the machine has cores.
    pub threads: usize,
}

/// Compares the graph of the export in `directory` with the model that it was made of.
///
/// A difference is no error: it stands in the report, and ends the comparison.
///
/// # Errors
/// [`Error::Argument`] for a prompt that is empty or too long together with its continuation, [`Error::Graph`] for a
/// file that is no export of this model, [`Error::Runtime`] if ONNX Runtime refuses it.
pub fn check(model: &Model, directory: &Path, runtime: &Runtime, options: &CheckOptions) -> Result<Report> {
    let limit = model.config().max_position_embeddings;
    for (index, prompt) in options.prompts.iter().enumerate() {
        let found = prompt.len().saturating_add(options.tokens);
        if prompt.is_empty() || options.tokens == 0 || found > limit {
            return Err(Error::Argument(format!(
                "prompt {index} has {} tokens, and {} are generated behind it; expected at least one of each, and at most \
                 {limit} together",
                prompt.len(),
                options.tokens
            )));
        }
    }
    if options.prompts.is_empty() {
        return Err(Error::Argument("there are no prompts, expected at least one".to_owned()));
    }
    let pool = Pool::new(options.threads)?;
    let threads = pool.threads();
    let mut probed = Probed::open(model, directory, runtime, threads)?;
    let mut comparison = Comparison::new(model);
    let modes =
        if probed.cache { vec![Mode::Cache, Mode::Whole, Mode::Batch] } else { vec![Mode::Whole, Mode::WholeBatch] };
    let mut modes: Vec<ModeReport> = modes.into_iter().map(ModeReport::new).collect();
    let mut failure = None;
    'prompts: for (index, prompts) in options.prompts.chunks(BATCH).enumerate() {
        let continuations: Vec<Continuation> =
            prompts.iter().map(|p| Continuation::new(model, p, options.tokens, &pool)).collect::<Result<_>>()?;
        for mode in &mut modes {
            let first = index * BATCH;
            match compare_group(model, &mut probed, &mut comparison, first, &continuations, mode, &pool) {
                Ok(()) => {}
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Failure(found)) => {
                    failure = Some(found);
                    break 'prompts;
                }
            }
        }
    }
    let (trion, onnx) = match failure {
        None => {
            let (trion, onnx) = speed::measure(model, &mut probed, &options.prompts[0], options.tokens, &pool)?;
            (Some(trion), Some(onnx))
        }
        Some(_) => (None, None),
    };
    Ok(Report {
        passed: failure.is_none(),
        runtime: runtime.description(),
        threads,
        tokens: options.tokens,
        modes,
        layers: comparison.layers,
        first_tie: comparison.first_tie,
        failure,
        trion,
        onnx,
    })
}

/// Compares some prompts, the first of which has the index `first`, in one mode.
fn compare_group(
    model: &Model,
    probed: &mut Probed,
    comparison: &mut Comparison<'_>,
    first: usize,
    continuations: &[Continuation],
    mode: &mut ModeReport,
    parallel: &dyn Parallel,
) -> std::result::Result<(), Stop> {
    let together = match mode.mode {
        Mode::Cache | Mode::Whole => 1,
        Mode::Batch | Mode::WholeBatch => BATCH,
    };
    let step_by_step = matches!(mode.mode, Mode::Cache | Mode::Batch);
    for (index, continuations) in continuations.chunks(together).enumerate() {
        mode.prompts += continuations.len() as u64;
        // Positions that have gone through the graph, and those that will have after the next pass.
        let mut from = vec![0; continuations.len()];
        let mut to: Vec<usize> =
            continuations.iter().map(|c| if step_by_step { c.prompt } else { c.computed().len() }).collect();
        let mut sequences = Sequences::new(model, probed.cache, &to);
        let mut followers = Vec::new();
        for (continuation, batch) in continuations.iter().zip(&to) {
            let context = continuation.computed().len();
            let options = SessionOptions { max_batch: *batch, logits: Logits::All, ..SessionOptions::new(context) };
            followers.push((Session::new(model, options)?, 0));
        }
        while to.iter().zip(continuations).all(|(to, continuation)| *to <= continuation.computed().len()) {
            let tokens: Vec<&[u32]> =
                continuations.iter().zip(from.iter().zip(&to)).map(|(c, (a, b))| &c.computed()[*a..*b]).collect();
            let pass = pass(&mut probed.graph, &mut sequences, &tokens)?;
            if first == 0 && index == 0 && from[0] == 0 {
                without_probes(model, probed, &tokens, &pass, mode)?;
            }
            for (row, (continuation, (session, ties))) in continuations.iter().zip(&mut followers).enumerate() {
                let prompt = first + index * together + row;
                let row = Row { pass: &pass, prompt, continuation, row, from: from[row], to: to[row] };
                comparison.follow(session, row, ties, mode, parallel)?;
            }
            from.clone_from(&to);
            to.iter_mut().for_each(|to| *to += 1);
        }
    }
    Ok(())
}

/// Probes may keep ONNX Runtime from fusing nodes: the graph as it is must give the logits of this first pass bit for
/// bit.
fn without_probes(
    model: &Model,
    probed: &mut Probed,
    tokens: &[&[u32]],
    probed_pass: &Pass,
    mode: &ModeReport,
) -> std::result::Result<(), Stop> {
    let lengths: Vec<usize> = tokens.iter().map(|row| row.len()).collect();
    let plain = pass(&mut probed.plain, &mut Sequences::new(model, probed.cache, &lengths), tokens)?;
    let unequal = plain.logits()?.iter().zip(probed_pass.logits()?).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if unequal == 0 {
        return Ok(());
    }
    let message = format!("{unequal} differ between the graph with outputs for the check and the graph as it is");
    Err(Stop::Failure(Failure { mode: mode.mode, prompt: 0, position: 0, place: names::LOGITS.to_owned(), message }))
}
