//! Looking into a forward pass: what each stage left behind, at the moment when it is complete.

use super::forward::{Stage, prepared};
use super::{Progress, Session};
use crate::Error;
use crate::matrix::{Input, Matrix};
use crate::model::Projection;
use crate::parallel::Parallel;

/// What a stage of a batch has just made, for [`Session::advance_observed`]. It lies in the session's memory, where the
/// next stages overwrite it.
#[derive(Debug, Clone, Copy)]
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
    /// The input of a projection, whose product is complete.
    Projection {
        /// The block.
        layer: usize,
        /// The projection.
        projection: Projection,
        /// Position of the first token.
        first: usize,
        /// Its input, after all norms.
        input: ProjectionInput<'a>,
    },
    /// The input of the head, for the tokens that want logits.
    Head {
        /// Position of the first of these tokens.
        first: usize,
        /// Its input, after the norm.
        input: ProjectionInput<'a>,
    },
}

/// What a matrix is multiplied with: for each token a row of floats, and for a ternary matrix the same quantised.
#[derive(Debug, Clone, Copy)]
pub struct ProjectionInput<'a> {
    input: Input<'a>,
    /// Columns that share a scale; 0 for a float matrix.
    span: usize,
}

impl<'a> ProjectionInput<'a> {
    fn new(input: Input<'a>, matrix: &Matrix<'_>) -> Self {
        let span = match matrix {
            Matrix::Ternary(matrix) => matrix.activation_span(),
            Matrix::Float(_) => 0,
        };
        ProjectionInput { input, span }
    }

    /// Rows.
    pub const fn tokens(&self) -> usize {
        self.input.tokens
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.input.cols
    }

    /// Columns that are quantised together; 0 if nothing is, since the matrix is not ternary.
    pub const fn span(&self) -> usize {
        self.span
    }

    /// The input of token `token` of these, `[cols]`; empty for a token that is not there.
    pub fn floats(&self, token: usize) -> &'a [f32] {
        row(self.input.x, token, self.input.tokens, self.input.x_stride, self.input.cols)
    }

    /// The same quantised, `[cols]`; empty for a token that is not there, and for a float matrix.
    pub fn quantized(&self, token: usize) -> &'a [i8] {
        let cols = if self.span == 0 { 0 } else { self.input.cols };
        row(self.input.q, token, self.input.tokens, self.input.q_stride, cols)
    }

    /// s, which the floats were multiplied by before they were rounded: one for each [`ProjectionInput::span`] columns.
    pub fn scales(&self, token: usize) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        let spans = if self.span == 0 { 0 } else { self.input.cols.div_ceil(self.span) };
        row(self.input.scales, token, self.input.tokens, self.input.spans, spans).iter().map(|scale| scale.scale)
    }
}

/// Elements 0 to `len - 1` of row `index` of `rows`.
fn row<T>(values: &[T], index: usize, rows: usize, stride: usize, len: usize) -> &[T] {
    let values = if index < rows { values } else { &[] };
    values.get(index.saturating_mul(stride)..).and_then(|row| row.get(..len)).unwrap_or(&[])
}

impl Session<'_, '_> {
    /// [`Session::advance`], which shows `observer` what each stage has made as soon as the stage is complete: for
    /// every batch the rows of the embedding, then for each block its seven projections in the order of
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

    /// Shows what a complete stage of the batch of `tokens` has made; `logits` of them are computed by the head.
    pub(super) fn observe(
        &self,
        layer: usize,
        stage: Stage,
        tokens: usize,
        logits: usize,
        observer: &mut dyn FnMut(Observation<'_>),
    ) {
        let (config, memory, first) = (self.model.config(), &self.memory, self.done);
        let hidden = memory.hidden.get(..tokens * config.hidden_size).unwrap_or(&[]);
        let input = |matrix: &Matrix<'_>, tokens| {
            let input = prepared(config, matrix, tokens, memory.input, memory.quantized, memory.scales);
            ProjectionInput::new(input, matrix)
        };
        match stage {
            Stage::Embed => observer(Observation::Hidden { layer: None, first, values: hidden }),
            Stage::Multiply(projection) => {
                let Some(weights) = self.model.layers().get(layer) else { return };
                let input = input(&weights.projection(projection).matrix, tokens);
                observer(Observation::Projection { layer, projection, first, input });
                if projection == Projection::Down {
                    observer(Observation::Hidden { layer: Some(layer), first, values: hidden });
                }
            }
            Stage::MultiplyHead => {
                let input = input(self.model.head(), logits);
                observer(Observation::Head { first: first + tokens - logits, input });
            }
            Stage::Prepare(_) | Stage::Rotate | Stage::Attend | Stage::PrepareHead => {}
        }
    }
}
