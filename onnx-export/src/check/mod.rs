//! The check of an exported graph: both engines are fed the same tokens, and everything that they compute is compared.
//!
//! Integer sums have to be equal bit by bit. Floats differ a little, since their sums have another order; where an activation
//! lies next to a half before it is quantised, that may part the engines by one, which is called a tie. From there on other
//! integers are right (docs/numerics.md, Against other implementations), and only what does not depend on them is compared as
//! strictly as before.

mod compare;
mod probe;
mod prompts;
mod recording;
mod report;
mod speed;
#[cfg(test)]
mod tests;

use std::path::Path;

use trion_engine::{Model, Pool};

use crate::error::{Error, Result};
use crate::runtime::Runtime;
use compare::{At, Comparison, Stop, Taint};
use probe::{Probed, Sequences, computed, pass};
pub use prompts::default_prompts;
use recording::Recording;
pub use report::{Failure, LayerReport, Mode, ModeReport, Parting, Report, Speed};

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
/// [`Error::Argument`] for a prompt that is empty or too long together with its continuation, [`Error::Graph`] for a file that
/// is no export of this model, [`Error::Runtime`] if ONNX Runtime refuses it.
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
    let threads = trion_engine::Parallel::threads(&pool);
    let mut probed = Probed::open(model, directory, runtime, threads)?;
    let mut comparison = Comparison::new(model);
    let modes =
        if probed.cache { vec![Mode::Cache, Mode::Whole, Mode::Batch] } else { vec![Mode::Whole, Mode::WholeBatch] };
    let mut modes: Vec<ModeReport> = modes.into_iter().map(ModeReport::new).collect();
    let mut failure = None;
    'prompts: for (index, prompts) in options.prompts.chunks(BATCH).enumerate() {
        let recordings: Vec<Recording> =
            prompts.iter().map(|p| Recording::new(model, p, options.tokens, &pool)).collect::<Result<_>>()?;
        for mode in &mut modes {
            let first = index * BATCH;
            match compare_group(model, &mut probed, &mut comparison, first, &recordings, mode) {
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
        runtime: runtime.version().to_owned(),
        threads,
        tokens: options.tokens,
        ties: comparison.layers.iter().map(|layer| layer.ties).sum(),
        modes,
        layers: comparison.layers,
        first_parting: comparison.first_parting,
        failure,
        trion,
        onnx,
    })
}

/// Compares some recordings, the first of which is of prompt `first`, in one mode.
fn compare_group(
    model: &Model,
    probed: &mut Probed,
    comparison: &mut Comparison<'_>,
    first: usize,
    recordings: &[Recording],
    mode: &mut ModeReport,
) -> std::result::Result<(), Stop> {
    let together = match mode.mode {
        Mode::Cache | Mode::Whole => 1,
        Mode::Batch | Mode::WholeBatch => BATCH,
    };
    let step_by_step = matches!(mode.mode, Mode::Cache | Mode::Batch);
    for (index, recordings) in recordings.chunks(together).enumerate() {
        mode.prompts += recordings.len() as u64;
        let rows: Vec<&[u32]> = recordings.iter().map(computed).collect();
        let mut from = vec![0; rows.len()];
        let mut to: Vec<usize> =
            recordings.iter().map(|r| if step_by_step { r.prompt } else { r.positions.len() }).collect();
        let mut sequences = Sequences::new(model, probed.cache, &to);
        let mut taints = vec![Taint::none(model.config().num_hidden_layers); rows.len()];
        while to.iter().zip(&rows).all(|(to, row)| *to <= row.len()) {
            let tokens: Vec<&[u32]> = rows.iter().zip(from.iter().zip(&to)).map(|(row, (a, b))| &row[*a..*b]).collect();
            let pass = pass(&mut probed.graph, &mut sequences, &tokens)?;
            for (row, recording) in recordings.iter().enumerate() {
                let padding = pass.sequence - tokens[row].len();
                for position in from[row]..to[row] {
                    let prompt = first + index * together + row;
                    let at = At { prompt, recording, position, row, token: padding + position - from[row] };
                    comparison.token(&pass, at, &mut taints[row], mode)?;
                }
            }
            from.clone_from(&to);
            to.iter_mut().for_each(|to| *to += 1);
        }
    }
    Ok(())
}
