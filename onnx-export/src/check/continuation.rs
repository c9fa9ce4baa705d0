//! Trion's own greedy continuation of a prompt, which both engines are led along.

use trion_engine::{Model, Parallel, Session, SessionOptions};

use crate::error::Result;

/// A prompt and its greedy continuation.
pub(super) struct Continuation {
    /// The prompt, and the tokens behind it.
    pub(super) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// For each token behind the prompt, by how much its logit exceeds the next one's.
    pub(super) margins: Vec<f32>,
}

impl Continuation {
    /// Runs a prompt, and generates `count` tokens.
    ///
    /// # Errors
    /// If the prompt is empty, has a token that the model has not, or is too long for it together with the
    /// continuation.
    pub(super) fn new(model: &Model, prompt: &[u32], count: usize, parallel: &dyn Parallel) -> Result<Self> {
        let context = prompt.len() + count;
        let options = SessionOptions { max_batch: context.min(64), ..SessionOptions::new(context) };
        let mut session = Session::new(model, options)?;
        let mut continuation = Continuation { tokens: prompt.to_vec(), prompt: prompt.len(), margins: Vec::new() };
        let mut next = prompt;
        let mut token;
        for _ in 0..count {
            let (choice, margin) = best(session.evaluate(next, parallel)?);
            token = [choice as u32];
            continuation.tokens.push(token[0]);
            continuation.margins.push(margin);
            next = &token;
        }
        Ok(continuation)
    }

    /// The tokens that are computed: all but the last.
    pub(super) fn computed(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The token chosen behind `position`, and its margin; `None` within the prompt.
    pub(super) fn choice(&self, position: usize) -> Option<(u32, f32)> {
        let index = (position + 1).checked_sub(self.prompt)?;
        Some((self.tokens[position + 1], *self.margins.get(index)?))
    }
}

/// The greedy choice, the largest logit and of equals the first, and by how much it exceeds the next one. A NaN counts
/// as the smallest number.
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

    #[test]
    fn choices_belong_to_the_position_before_them() {
        let continuation = Continuation { tokens: vec![4, 5, 6, 7], prompt: 2, margins: vec![0.5, 0.25] };
        assert_eq!(continuation.computed(), [4, 5, 6]);
        assert_eq!([0, 1, 2].map(|p| continuation.choice(p)), [None, Some((6, 0.5)), Some((7, 0.25))]);
    }
}
