//! Looking into a forward pass: what each stage leaves behind, at the moment when it is complete.

use super::forward::{Rows, Stage};
use super::memory::{quantized_stride, spans};
use super::{Member, Progress, Session};
use crate::Error;
use crate::matrix::Matrix;
use crate::model::Projection;
use crate::parallel::Parallel;
use crate::quant::ActivationScale;

/// What a stage of a batch has just made, for [`Session::advance_observed`]. It lies in the session's memory, where later
/// stages overwrite it.
#[derive(Debug)]
pub enum Observation<'a> {
    /// The residual stream, before the first block and behind each.
    Hidden {
        /// The block that it comes out of; `None` for rows of the embedding.
        layer: Option<usize>,
        /// Position of the first token.
        first: usize,
        /// `[tokens, hidden_size]`.
        values: &'a [f32],
    },
    /// The input of a projection, after all norms, before the product. Key, value and up projections show none where they
    /// read what was prepared for the projection before them.
    Projection {
        /// The block.
        layer: usize,
        /// The projection.
        projection: Projection,
        /// Position of the first token.
        first: usize,
        /// The input.
        input: PreparedInput<'a>,
    },
    /// The input of the head, after the norm, for the tokens that want logits.
    Head {
        /// Position of the first of these tokens.
        first: usize,
        /// The input.
        input: PreparedInput<'a>,
    },
}

/// What a matrix will be multiplied with: for each token a row of floats, and for a ternary matrix the same quantised.
#[derive(Debug)]
pub struct PreparedInput<'a> {
    tokens: usize,
    cols: usize,
    /// Columns that share a scale; 0 for a float matrix.
    span: usize,
    /// In rows of `x_stride`.
    x: &'a [f32],
    x_stride: usize,
    /// In rows of `q_stride`.
    q: &'a mut [i8],
    q_stride: usize,
    /// In rows of `spans`.
    scales: &'a mut [ActivationScale],
    spans: usize,
}

impl PreparedInput<'_> {
    /// Rows.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Columns that are quantised together; 0 if nothing is, since the matrix is not ternary.
    pub const fn span(&self) -> usize {
        self.span
    }

    /// The input of token `token` of these, `[cols]`; empty for a token that is not there.
    pub fn floats(&self, token: usize) -> &[f32] {
        row(self.x, token, self.tokens, self.x_stride, self.cols)
    }

    /// The same quantised, `[cols]`; empty for a token that is not there, and for a float matrix.
    pub fn quantized(&self, token: usize) -> &[i8] {
        let cols = if self.span == 0 { 0 } else { self.cols };
        row(self.q, token, self.tokens, self.q_stride, cols)
    }

    /// s, which the floats were multiplied by before they were rounded: one for each [`PreparedInput::span`] columns.
    pub fn scales(&self, token: usize) -> impl ExactSizeIterator<Item = f32> {
        let count = self.cols.checked_div(self.span).map_or(0, |_| self.cols.div_ceil(self.span));
        row(self.scales, token, self.tokens, self.spans, count).iter().map(|scale| scale.scale)
    }

    /// Puts another integer in the place of a quantised activation; the product reads it. So a pass can go on from the
    /// rounding of another engine. Nothing happens for a place that is not there.
    pub fn replace(&mut self, token: usize, col: usize, value: i8) {
        if token >= self.tokens || col >= self.cols || self.span == 0 {
            return;
        }
        let place = self.q.get_mut(token.saturating_mul(self.q_stride).saturating_add(col));
        let scale = self.scales.get_mut(token.saturating_mul(self.spans).saturating_add(col / self.span));
        if let (Some(place), Some(scale)) = (place, scale) {
            scale.sum = scale.sum.wrapping_add(i32::from(value) - i32::from(*place));
            *place = value;
        }
    }
}

/// Elements 0 to `len - 1` of row `index` of `rows`.
fn row<T>(values: &[T], index: usize, rows: usize, stride: usize, len: usize) -> &[T] {
    let values = if index < rows { values } else { &[] };
    values.get(index.saturating_mul(stride)..).and_then(|row| row.get(..len)).unwrap_or(&[])
}

impl Session<'_, '_> {
    /// [`Session::advance`], which shows `observer` what each stage has made as soon as the stage is complete: for
    /// every batch the rows of the embedding, then for each block the inputs of its projections in the order of
    /// [`Projection::ALL`] and its output, then the head's input if logits are wanted.
    ///
    /// Every stage is shown once, however the work is divided into calls; after a cancellation or a rewind the batch
    /// under way begins again, and so do its observations. Stages that [`Session::advance`] completes are not shown.
    ///
    /// # Errors
    /// As [`Session::advance`].
    pub fn advance_observed(
        &mut self,
        budget: usize,
        parallel: &dyn Parallel,
        observer: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Progress, Error> {
        self.advance_with(budget, parallel, Some(observer))
    }
}

impl Member<'_> {
    /// Shows what a complete stage has made of `rows`.
    pub(super) fn observe(
        &mut self,
        layer: usize,
        stage: Stage,
        rows: &Rows,
        observer: &mut dyn FnMut(Observation<'_>),
    ) {
        let (tokens, first) = (rows.tokens, rows.first);
        match stage {
            Stage::Embed => observer(Observation::Hidden { layer: None, first, values: self.hidden(tokens) }),
            Stage::Multiply(Projection::Down) => {
                observer(Observation::Hidden { layer: Some(layer), first, values: self.hidden(tokens) });
            }
            Stage::Prepare(projection) => {
                let Some(weights) = self.model.layers().get(layer) else { return };
                let input = self.prepared(&weights.projection(projection).matrix, tokens);
                observer(Observation::Projection { layer, projection, first, input });
            }
            Stage::PrepareHead => {
                let input = self.prepared(self.model.head(), rows.logits);
                observer(Observation::Head { first: first + tokens - rows.logits, input });
            }
            Stage::Multiply(_) | Stage::Rotate | Stage::Attend | Stage::MultiplyHead => {}
        }
    }

    /// The residual stream of the batch.
    fn hidden(&self, tokens: usize) -> &[f32] {
        self.memory.hidden.get(..tokens * self.model.config().hidden_size).unwrap_or(&[])
    }

    /// The input that is prepared for a matrix.
    fn prepared(&mut self, matrix: &Matrix<'_>, tokens: usize) -> PreparedInput<'_> {
        let config = self.model.config();
        PreparedInput {
            tokens,
            cols: matrix.shape()[1],
            span: matrix.activation_span().unwrap_or(0),
            x: self.memory.input,
            x_stride: config.widest_input(),
            q: self.memory.quantized,
            q_stride: quantized_stride(config),
            scales: self.memory.scales,
            spans: spans(config),
        }
    }
}
