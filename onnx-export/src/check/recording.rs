//! What Trion computes for a prompt and its greedy continuation, position by position.

use trion_core::Projection;
use trion_engine::{
    CacheType, Logits, Model, Observation, Parallel, Progress, ProjectionInput, Session, SessionOptions,
};

use crate::error::{Error, Result};
use crate::names;

/// The quantised input of a matrix, for one token.
pub(super) struct Quantized {
    /// Before quantisation `[cols]`.
    pub(super) floats: Vec<f32>,
    /// `[cols]`.
    pub(super) integers: Vec<i8>,
    /// A scale for each `span` columns.
    pub(super) scales: Vec<f32>,
    /// Columns that share a scale.
    pub(super) span: usize,
}

impl Quantized {
    fn new(input: &ProjectionInput<'_>, token: usize) -> Option<Self> {
        let (floats, integers) = (input.floats(token).to_vec(), input.quantized(token).to_vec());
        (input.span() > 0).then(|| Quantized {
            floats,
            integers,
            scales: input.scales(token).collect(),
            span: input.span(),
        })
    }

    /// The value of a column before rounding.
    pub(super) fn before_rounding(&self, col: usize) -> f32 {
        self.floats[col] * self.scales[col / self.span]
    }
}

/// Everything about one position.
#[derive(Default)]
pub(super) struct Position {
    /// Indexed by layer and [`Projection`]; `None` where a projection is not ternary or reads what another one quantised.
    pub(super) inputs: Vec<[Option<Quantized>; Projection::ALL.len()]>,
    /// The residual stream `[hidden_size]`: the embedding, then behind each block.
    pub(super) hidden: Vec<Vec<f32>>,
    /// The input of a ternary head.
    pub(super) head: Option<Quantized>,
    /// `[vocab_size]`.
    pub(super) logits: Vec<f32>,
}

/// A prompt, its greedy continuation, and every position that was computed on the way.
pub(super) struct Recording {
    /// The prompt and the tokens generated.
    pub(super) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// Of every token but the last.
    pub(super) positions: Vec<Position>,
}

impl Recording {
    /// Runs a prompt and generates `count` tokens, at least one.
    ///
    /// # Errors
    /// If the prompt is empty, has a token that the model has not, or is too long for it together with the continuation.
    pub(super) fn new(model: &Model, prompt: &[u32], count: usize, parallel: &dyn Parallel) -> Result<Self> {
        if prompt.is_empty() || count == 0 {
            return Err(Error::Argument(format!(
                "a prompt of {} tokens with {count} tokens behind it, expected at least 1 of each",
                prompt.len()
            )));
        }
        let (context, max_batch) = (prompt.len() + count - 1, prompt.len());
        let options = SessionOptions { context, max_batch, cache: CacheType::F32, logits: Logits::All };
        let mut session = Session::new(model, options)?;
        let mut recording = Recording { tokens: prompt.to_vec(), prompt: prompt.len(), positions: Vec::new() };
        let mut from = 0;
        while recording.tokens.len() < prompt.len() + count {
            session.push(&recording.tokens[from..])?;
            recording.positions.resize_with(recording.tokens.len(), Position::default);
            let observer = &mut |observation: Observation<'_>| recording.note(model, &observation);
            while session.advance_observed(usize::MAX, parallel, observer)? == Progress::More {}
            let rows = session.logits().unwrap_or(&[]).chunks_exact(model.config().vocab_size);
            for (position, logits) in recording.positions[from..].iter_mut().zip(rows) {
                position.logits = logits.to_vec();
            }
            from = recording.tokens.len();
            let last = recording.positions.last().map_or(&[][..], |position| &position.logits);
            recording.tokens.push(best(last).0 as u32);
        }
        Ok(recording)
    }

    fn note(&mut self, model: &Model, observation: &Observation<'_>) {
        match observation {
            Observation::Hidden { first, values, .. } => {
                let rows = values.chunks_exact(model.config().hidden_size);
                for (position, row) in self.positions[*first..].iter_mut().zip(rows) {
                    position.hidden.push(row.to_vec());
                }
            }
            Observation::Projection { layer, projection, first, input } => {
                if names::quantized_by(&model.core().layers()[*layer], *projection) != *projection {
                    return;
                }
                for token in 0..input.tokens() {
                    let inputs = &mut self.positions[first + token].inputs;
                    inputs.resize_with(inputs.len().max(layer + 1), Default::default);
                    inputs[*layer][*projection as usize] = Quantized::new(input, token);
                }
            }
            Observation::Head { first, input } => {
                for token in 0..input.tokens() {
                    self.positions[first + token].head = Quantized::new(input, token);
                }
            }
        }
    }
}

/// The greedy choice, the largest logit and of equals the first, and by how much it exceeds the next one. A NaN counts as the
/// smallest number.
pub(super) fn best(logits: &[f32]) -> (usize, f32) {
    let (mut at, mut largest, mut second) = (0, f32::MIN, f32::MIN);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > largest {
            (at, second, largest) = (i, largest, *logit);
        } else if *logit > second {
            second = *logit;
        }
    }
    (at, largest - second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_logit_is_the_first_of_equals() {
        assert_eq!(best(&[1.0, 3.0, f32::NAN, 3.0, 2.0]), (1, 0.0));
        assert_eq!(best(&[1.0, -1.0, 3.5]), (2, 2.5));
        assert_eq!(best(&[f32::NAN, f32::NAN]), (0, 0.0));
    }
}
