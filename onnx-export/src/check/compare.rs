//! The comparison of a pass through the graph with Trion's session, which follows it.
//!
//! Where an activation lies next to a half before it is quantised, the engines may round it apart. Trion's session then
//! takes ONNX Runtime's integer and goes on from it, so that everything behind is compared as strictly as before.

use trion_core::numeric::f16_to_f32;
use trion_core::{Kernel, Projection, Rescale, TernaryMatrix};
use trion_engine::{Model, Observation, Parallel, PreparedInput, Progress, Session};

use super::continuation::{Continuation, best};
use super::probe::{Module, Pass};
use super::report::{Failure, LayerReport, ModeReport, Tie};
use crate::names;

/// How far from a half a value may lie before rounding for the engines to round it apart. Sums in another order move
/// values by some units in the last place, here times up to 127. Measured: 5.4e-5 at most.
const TIE: f32 = 1e-3;
/// Largest difference of a residual stream, relative to its largest number. Measured: 8e-7 behind ternary projections
/// and 3.3e-6 behind float ones; wider models add up more.
const HIDDEN_TOLERANCE: f32 = 5e-5;
/// Largest difference of a projection's output from its own accumulators, rescaled, relative to the largest of them.
/// Measured: none, since the operations are the same; only groups may be added in another order.
const RESCALE_TOLERANCE: f32 = 1e-6;
/// Largest difference of logits, relative to the largest. Measured: 9e-7, and 2.8e-6 behind float projections.
const LOGITS_TOLERANCE: f32 = 5e-5;
/// Logit by which Trion's own greedy choice has to lead for ONNX Runtime to agree in spite of ties before it.
const TIE_MARGIN: f32 = 0.4;

/// Columns where two engines quantised activations differently.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Each differs by one and lay next to a half, at most `distance` from it; none if they are equal.
    Ties { cols: Vec<usize>, distance: f32 },
    /// This one differs otherwise.
    Different { col: usize },
}

/// Compares activations that ONNX Runtime quantised with Trion's; `value(col)` is Trion's before rounding.
fn compare_quantized(trion: &[i8], onnx: &[i8], value: impl Fn(usize) -> f32) -> Outcome {
    let (mut cols, mut distance) = (Vec::new(), 0.0_f32);
    for (col, (ours, theirs)) in trion.iter().zip(onnx).enumerate().filter(|(_, (a, b))| a != b) {
        let value = value(col);
        let from_half = (value - value.floor() - 0.5).abs();
        if from_half > TIE || from_half.is_nan() || (i32::from(*ours) - i32::from(*theirs)).abs() != 1 {
            return Outcome::Different { col };
        }
        cols.push(col);
        distance = distance.max(from_half);
    }
    Outcome::Ties { cols, distance }
}

/// The largest difference of two rows, infinite if one has a NaN that the other has not.
fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    ours.iter().zip(theirs).fold(0.0, |largest: f32, (a, b)| {
        let difference = if a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        if difference.is_nan() { f32::INFINITY } else { largest.max(difference) }
    })
}

/// The largest magnitude of a row; the smallest positive number if all are zero.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()))
}

/// A row of a pass, and the tokens of a sequence that went through it.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) pass: &'a Pass,
    /// Index of the prompt.
    pub(super) prompt: usize,
    pub(super) continuation: &'a Continuation,
    /// Row of the pass.
    pub(super) row: usize,
    /// The first position of the sequence that went through it.
    pub(super) from: usize,
    /// The one behind the last.
    pub(super) to: usize,
}

impl Row<'_> {
    /// The token of the pass, padding included, at a position of the sequence.
    fn token(&self, position: usize) -> usize {
        self.pass.sequence + position - self.to
    }

    fn positions(&self) -> std::ops::Range<usize> {
        self.from..self.to
    }
}

/// Why a comparison stops.
pub(super) enum Stop {
    /// The engines differ.
    Failure(Failure),
    /// The comparison cannot go on.
    Error(crate::Error),
}

impl From<crate::Error> for Stop {
    fn from(error: crate::Error) -> Self {
        Stop::Error(error)
    }
}

impl From<trion_engine::Error> for Stop {
    fn from(error: trion_engine::Error) -> Self {
        Stop::Error(error.into())
    }
}

/// What a comparison gives.
type Compared = Result<(), Stop>;

/// Compares passes, and counts.
pub(super) struct Comparison<'m> {
    kernel: Kernel,
    /// Indexed by layer and [`Projection`].
    modules: Vec<[Option<Module<'m>>; Projection::ALL.len()]>,
    head: Option<Module<'m>>,
    /// The blocks, and a ternary head behind them.
    pub(super) layers: Vec<LayerReport>,
    pub(super) first_tie: Option<Tie>,
}

impl<'m> Comparison<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        let layers = 0..model.config().num_hidden_layers;
        let head = Module::of_head(model);
        let names = layers.clone().map(names::layer).chain(head.as_ref().map(|head| head.name.clone()));
        Comparison {
            kernel: Kernel::detect(),
            modules: layers.map(|n| Projection::ALL.map(|p| Module::of_projection(model, n, p))).collect(),
            head,
            layers: names.map(LayerReport::new).collect(),
            first_tie: None,
        }
    }

    /// Leads `session` through the tokens of a row, and compares all that it computes; `ties` counts those of the
    /// sequence.
    pub(super) fn follow(
        &mut self,
        session: &mut Session,
        row: Row<'_>,
        ties: &mut u64,
        mode: &mut ModeReport,
        parallel: &dyn Parallel,
    ) -> Compared {
        mode.positions += row.positions().len() as u64;
        session.push(&row.continuation.computed()[row.positions()])?;
        let mut compared = Ok(());
        let before = mode.ties;
        let observer = &mut |observation: Observation<'_>| {
            if compared.is_ok() {
                compared = self.observe(observation, row, mode);
            }
        };
        while session.advance_observed(usize::MAX, parallel, observer)? == Progress::More {}
        compared?;
        *ties += mode.ties - before;
        let vocab_size = session.model().config().vocab_size;
        let logits = session.logits().unwrap_or(&[]);
        for (position, logits) in row.positions().zip(logits.chunks_exact(vocab_size)) {
            compare_logits(row, position, logits, *ties, mode)?;
        }
        Ok(())
    }

    fn observe(&mut self, observation: Observation<'_>, row: Row<'_>, mode: &mut ModeReport) -> Compared {
        match observation {
            Observation::Hidden { layer, first, values } => {
                let hidden_size = values.len() / (row.to - first);
                for (position, values) in (first..row.to).zip(values.chunks_exact(hidden_size)) {
                    self.hidden(row, position, layer, values, mode)?;
                }
                Ok(())
            }
            Observation::Projection { layer, projection, first, mut input } => {
                let (modules, counts) = (&self.modules[layer], &mut self.layers[layer]);
                if let Some(module) = &modules[projection as usize] {
                    quantized(module, counts, row, first, &mut input, mode, &mut self.first_tie)?;
                }
                // These products come next, from this input or from ones of their own.
                let products: &[Projection] = match projection {
                    Projection::Query => &[Projection::Query, Projection::Key, Projection::Value],
                    Projection::Gate => &[Projection::Gate, Projection::Up],
                    Projection::Output | Projection::Down => &[projection],
                    Projection::Key | Projection::Value | Projection::Up => &[],
                };
                let products = products.iter().filter_map(|projection| modules[*projection as usize].as_ref());
                products.into_iter().try_for_each(|module| product(module, self.kernel, counts, row, first, mode))
            }
            Observation::Head { first, mut input } => {
                let (Some(module), Some(counts)) = (&self.head, self.layers.last_mut()) else { return Ok(()) };
                quantized(module, counts, row, first, &mut input, mode, &mut self.first_tie)?;
                product(module, self.kernel, counts, row, first, mode)
            }
        }
    }

    /// The residual stream behind a layer, or the embedding.
    fn hidden(
        &mut self,
        row: Row<'_>,
        position: usize,
        layer: Option<usize>,
        ours: &[f32],
        mode: &ModeReport,
    ) -> Compared {
        let module = layer.map_or_else(|| names::EMBEDDING.to_owned(), names::layer);
        let theirs = row.pass.row(&names::output(&module), ours.len(), row.row, row.token(position))?;
        let difference = largest_difference(ours, theirs) / largest(ours);
        if let Some(layer) = layer {
            let counts = &mut self.layers[layer];
            counts.hidden = counts.hidden.max(difference);
        }
        if difference > HIDDEN_TOLERANCE {
            let message = format!("differs by {difference:.1e} of its largest number, expected {HIDDEN_TOLERANCE:.0e}");
            return Err(failure(row, position, mode, format!("output of {module}"), message));
        }
        Ok(())
    }
}

/// Logits of one position, and the greedy choice.
fn compare_logits(row: Row<'_>, position: usize, ours: &[f32], ties: u64, mode: &mut ModeReport) -> Compared {
    let theirs = row.pass.row(names::LOGITS, ours.len(), row.row, row.token(position))?;
    let relative = largest_difference(ours, theirs) / largest(ours);
    mode.logits = mode.logits.max(relative);
    if relative > LOGITS_TOLERANCE {
        let message = format!("differ by {relative:.1e} of the largest, expected {LOGITS_TOLERANCE:.0e}");
        return Err(failure(row, position, mode, names::LOGITS.to_owned(), message));
    }
    let Some((expected, margin)) = row.continuation.choice(position) else { return Ok(()) };
    let (found, _) = best(theirs);
    mode.greedy_tokens += 1;
    if found == expected as usize {
        mode.greedy_equal += 1;
        return Ok(());
    }
    mode.greedy_margin = mode.greedy_margin.max(margin);
    let allowed = if ties > 0 { TIE_MARGIN } else { LOGITS_TOLERANCE * largest(ours) };
    if margin > allowed {
        let message = format!(
            "ONNX Runtime chooses token {found}, and Trion token {expected} by {margin}; after {ties} ties they may differ \
             up to {allowed}"
        );
        return Err(failure(row, position, mode, names::LOGITS.to_owned(), message));
    }
    Ok(())
}

/// Quantised activations of the tokens of an input. Ties are put into the input as ONNX Runtime rounded them.
fn quantized(
    module: &Module<'_>,
    counts: &mut LayerReport,
    row: Row<'_>,
    first: usize,
    input: &mut PreparedInput<'_>,
    mode: &mut ModeReport,
    first_tie: &mut Option<Tie>,
) -> Compared {
    for token in 0..input.tokens() {
        let position = first + token;
        let onnx = row.pass.quantized(module, row.row, row.token(position))?;
        counts.activations += onnx.len() as u64;
        let scales: Vec<f32> = input.scales(token).collect();
        let value = |col: usize| input.floats(token)[col] * scales[col / input.span().max(1)];
        let place = || format!("input of {}", module.name);
        match compare_quantized(input.quantized(token), &onnx, value) {
            Outcome::Different { col } => {
                let ours = input.quantized(token)[col];
                let message = format!(
                    "column {col} is {} in ONNX Runtime and {ours} in Trion, which rounded {}: no tie",
                    onnx[col],
                    value(col)
                );
                return Err(failure(row, position, mode, place(), message));
            }
            Outcome::Ties { cols, distance } => {
                counts.ties += cols.len() as u64;
                mode.ties += cols.len() as u64;
                counts.tie_distance = counts.tie_distance.max(distance);
                if let [col, ..] = cols[..] {
                    first_tie.get_or_insert_with(|| Tie {
                        mode: mode.mode,
                        prompt: row.prompt,
                        position,
                        place: place(),
                        column: col,
                        before_rounding: value(col),
                        trion: input.quantized(token)[col],
                        onnx: onnx[col],
                    });
                }
                cols.into_iter().for_each(|col| input.replace(token, col, onnx[col]));
            }
        }
    }
    Ok(())
}

/// The accumulators of a matrix, which have to be Trion's for the very activations that ONNX Runtime had; and its
/// output, which has to be the sums divided by the activations' scale and multiplied by the weights'.
fn product(
    module: &Module<'_>,
    kernel: Kernel,
    counts: &mut LayerReport,
    row: Row<'_>,
    first: usize,
    mode: &ModeReport,
) -> Compared {
    let (matrix, rows) = (&module.matrix, module.matrix.rows());
    for position in first..row.to {
        let token = row.token(position);
        let accumulators = row.pass.accumulators(module, row.row, token)?;
        let mut sums = vec![0; accumulators.len()];
        let quantized = row.pass.quantized(module, row.row, token)?;
        matrix.sums(kernel, &quantized, &mut sums).map_err(trion_engine::Error::from)?;
        counts.accumulators += sums.len() as u64;
        if let Some(i) = sums.iter().zip(&accumulators).position(|(ours, theirs)| f64::from(*ours) != *theirs) {
            let of_group = if sums.len() > rows { format!(" of group {}", i / rows) } else { String::new() };
            let message = format!(
                "the sum of row {}{of_group} is {} in ONNX Runtime, and {} in Trion for the same activations",
                i % rows,
                accumulators[i],
                sums[i]
            );
            return Err(failure(row, position, mode, module.name.clone(), message));
        }
        if module.name == names::HEAD {
            continue; // Its output is the logits.
        }
        let scales: Vec<f32> = row.pass.scales(module, row.row, token)?.into_iter().map(|scale| scale as f32).collect();
        let expected = rescale(matrix, &sums, &scales);
        let found = row.pass.row(&names::output(&module.name), rows, row.row, token)?;
        let difference = largest_difference(&expected, found) / largest(&expected);
        counts.rescale = counts.rescale.max(difference);
        if difference > RESCALE_TOLERANCE {
            let message = format!(
                "its sums, rescaled, differ by {difference:.1e} of the largest, expected {RESCALE_TOLERANCE:.0e}"
            );
            return Err(failure(row, position, mode, format!("output of {}", module.name), message));
        }
    }
    Ok(())
}

/// Sums `[groups, rows]` as floats `[rows]`, in the contract's order of operations.
fn rescale(matrix: &TernaryMatrix<'_>, sums: &[i32], scales: &[f32]) -> Vec<f32> {
    let rows = matrix.rows();
    let mut y = vec![0.0; rows];
    for (group, (sums, s)) in sums.chunks(rows).zip(scales).enumerate() {
        for (row, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
            *y += match matrix.rescale() {
                Rescale::Multiply(m) => *sum as f32 / s * m,
                Rescale::Divide(d) => *sum as f32 / (d * s),
                Rescale::Groups { .. } => *sum as f32 / s * matrix.group_scale(row, group).map_or(0.0, f16_to_f32),
            };
        }
    }
    y
}

fn failure(row: Row<'_>, position: usize, mode: &ModeReport, place: String, message: String) -> Stop {
    Stop::Failure(Failure { mode: mode.mode, prompt: row.prompt, position, place, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_differ_by_one_next_to_a_half() {
        let compare = |trion: &[i8], onnx: &[i8], values: &[f32]| compare_quantized(trion, onnx, |col| values[col]);
        let ties = |cols: &[usize], distance| Outcome::Ties { cols: cols.to_vec(), distance };
        assert_eq!(compare(&[1, -2, 3], &[1, -2, 3], &[9.0; 3]), ties(&[], 0.0));
        assert_eq!(compare(&[2, -2, -1], &[1, -2, 0], &[1.500_5, -2.0, -0.5]), ties(&[0, 2], 1.500_5 - 1.5));
        // Too far from a half, too far from each other, no number.
        assert_eq!(compare(&[2, 5], &[1, 4], &[1.5, 4.51]), Outcome::Different { col: 1 });
        assert_eq!(compare(&[2], &[0], &[1.5]), Outcome::Different { col: 0 });
        assert_eq!(compare(&[0], &[1], &[f32::NAN]), Outcome::Different { col: 0 });
    }

    #[test]
    fn a_nan_on_one_side_differs_from_everything() {
        assert_eq!(largest_difference(&[1.0, f32::NAN], &[1.5, f32::NAN]), 0.5);
        assert_eq!(largest_difference(&[1.0, 2.0], &[1.0, f32::NAN]), f32::INFINITY);
    }
}
