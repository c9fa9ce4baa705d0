//! The comparison of one token in both engines, and what a tie before it allows.

use trion_core::numeric::f16_to_f32;
use trion_core::ternary::TILE_ROWS;
use trion_core::{Kernel, Projection, Rescale};
use trion_engine::Model;

use super::probe::{Module, Pass};
use super::recording::{Position, Quantized, Recording, best};
use super::report::{Failure, LayerReport, ModeReport, Parting};
use crate::names;

/// How far from a half a value may lie before rounding for the engines to round it apart. Sums in another order move values
/// by some units in the last place, up to 127 times 1e-5.
pub(super) const TIE: f32 = 1e-3;
/// Largest difference of a residual stream, relative to its largest number, while no integer differs.
pub(super) const HIDDEN_TOLERANCE: f32 = 1e-4;
/// Largest difference of a projection's output from its own accumulators, rescaled, relative to the largest of them.
pub(super) const RESCALE_TOLERANCE: f32 = 1e-6;
/// Largest difference of logits, relative to the largest, while no integer differs.
pub(super) const LOGITS_TOLERANCE: f32 = 1e-3;
/// Mean difference of logits behind a tie.
pub(super) const PARTED_MEAN: f32 = 0.02;
/// Logit by which the greedy choice has to lead for both engines to agree behind a tie.
pub(super) const PARTED_MARGIN: f32 = 0.4;

/// Where integers that differ have got to in one sequence.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Taint {
    /// For each layer, the first position whose key and value are computed from integers that differ; a later token attends
    /// to it.
    first: Vec<usize>,
}

impl Taint {
    /// Nothing differs yet.
    pub(super) fn none(layers: usize) -> Self {
        Taint { first: vec![usize::MAX; layers] }
    }

    /// Whether attention of a layer at `position` reads a key or value that differs.
    fn reaches(&self, layer: usize, position: usize) -> bool {
        self.first[layer] <= position
    }

    /// The key and value of a position differ.
    fn mark(&mut self, layer: usize, position: usize) {
        self.first[layer] = self.first[layer].min(position);
    }
}

/// What becomes of a token's quantised activations.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// All are equal.
    Equal,
    /// Some differ, each by one and next to a half; the first of them is at this column.
    Ties {
        count: u64,
        first: usize,
        /// The largest distance from a half.
        distance: f32,
    },
    /// One differs that no tie explains.
    Different { col: usize },
}

/// Compares activations that ONNX Runtime quantised with Trion's.
pub(super) fn compare_quantized(trion: &Quantized, onnx: &[i8]) -> Outcome {
    if trion.integers == onnx {
        return Outcome::Equal;
    }
    let (mut count, mut first, mut distance) = (0, None, 0.0_f32);
    for (col, (ours, theirs)) in trion.integers.iter().zip(onnx).enumerate().filter(|(_, (a, b))| a != b) {
        let value = trion.before_rounding(col);
        let from_half = (value - value.floor() - 0.5).abs();
        if from_half > TIE || from_half.is_nan() || (i32::from(*ours) - i32::from(*theirs)).abs() != 1 {
            return Outcome::Different { col };
        }
        count += 1;
        first = first.or(Some(col));
        distance = distance.max(from_half);
    }
    match first {
        Some(first) => Outcome::Ties { count, first, distance },
        // They are equal as far as both go.
        None => Outcome::Different { col: trion.integers.len().min(onnx.len()) },
    }
}

/// The largest difference of two rows, infinite if one has a NaN that the other has not.
pub(super) fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    ours.iter().zip(theirs).fold(0.0, |largest: f32, (a, b)| {
        let difference = if a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
        if difference.is_nan() { f32::INFINITY } else { largest.max(difference) }
    })
}

/// The largest magnitude of a row; the smallest positive number if all are zero.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()))
}

/// Which token is compared, for whoever reads of a failure.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    /// Index of the prompt.
    pub(super) prompt: usize,
    pub(super) recording: &'a Recording,
    /// Position of the token in its sequence.
    pub(super) position: usize,
    /// Row of the pass.
    pub(super) row: usize,
    /// Token of the row, padding included.
    pub(super) token: usize,
}

impl At<'_> {
    fn recorded(&self) -> &Position {
        &self.recording.positions[self.position]
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

/// Compares tokens, and counts.
pub(super) struct Comparison<'m> {
    kernel: Kernel,
    /// Indexed by layer and [`Projection`].
    modules: Vec<[Option<Module<'m>>; Projection::ALL.len()]>,
    head: Option<Module<'m>>,
    /// The blocks, and a ternary head behind them.
    pub(super) layers: Vec<LayerReport>,
    pub(super) first_parting: Option<Parting>,
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
            first_parting: None,
        }
    }

    /// Compares everything about one token. Tokens of a sequence come in order of their positions.
    pub(super) fn token(
        &mut self,
        pass: &Pass,
        at: At<'_>,
        taint: &mut Taint,
        mode: &mut ModeReport,
    ) -> std::result::Result<(), Stop> {
        mode.positions += 1;
        self.hidden(pass, at, None, mode)?;
        let mut parted = false;
        for layer in 0..self.modules.len() {
            for projection in Projection::ALL {
                parted |= projection == Projection::Output && taint.reaches(layer, at.position);
                if let Some(module) = &self.modules[layer][projection as usize] {
                    let input = at.recorded().inputs.get(layer).and_then(|inputs| inputs[projection as usize].as_ref());
                    let matrix = Matrix { module, kernel: self.kernel, counts: &mut self.layers[layer] };
                    parted |= matrix.compare(pass, at, input, parted, mode, &mut self.first_parting)?;
                }
                if parted && matches!(projection, Projection::Query | Projection::Key | Projection::Value) {
                    taint.mark(layer, at.position);
                }
            }
            if !parted {
                self.hidden(pass, at, Some(layer), mode)?;
            }
        }
        if let (Some(module), Some(counts)) = (&self.head, self.layers.last_mut()) {
            let matrix = Matrix { module, kernel: self.kernel, counts };
            let head = at.recorded().head.as_ref();
            parted |= matrix.compare(pass, at, head, parted, mode, &mut self.first_parting)?;
        }
        mode.parted += u64::from(parted);
        self.logits(pass, at, parted, mode)
    }

    /// The residual stream behind a layer, or the embedding.
    fn hidden(
        &mut self,
        pass: &Pass,
        at: At<'_>,
        layer: Option<usize>,
        mode: &ModeReport,
    ) -> std::result::Result<(), Stop> {
        let module = layer.map_or_else(|| names::EMBEDDING.to_owned(), names::layer);
        let ours = &at.recorded().hidden[layer.map_or(0, |layer| layer + 1)];
        let theirs = pass.row(&names::output(&module), ours.len(), at.row, at.token)?;
        let difference = largest_difference(ours, theirs) / largest(ours);
        if let Some(layer) = layer {
            let counts = &mut self.layers[layer];
            counts.hidden = counts.hidden.max(difference);
        }
        if difference > HIDDEN_TOLERANCE {
            let message = format!("differs by {difference:.1e} of its largest number, expected {HIDDEN_TOLERANCE:.0e}");
            return Err(failure(at, mode, format!("output of {module}"), message));
        }
        Ok(())
    }

    fn logits(&self, pass: &Pass, at: At<'_>, parted: bool, mode: &mut ModeReport) -> std::result::Result<(), Stop> {
        let ours = &at.recorded().logits;
        let theirs = pass.row(names::LOGITS, ours.len(), at.row, at.token)?;
        let difference = largest_difference(ours, theirs);
        let ((our_choice, margin), (their_choice, _)) = (best(ours), best(theirs));
        if at.position + 1 >= at.recording.prompt {
            mode.greedy_tokens += 1;
            mode.greedy_equal += u64::from(our_choice == their_choice);
        }
        let fail = |mode: &ModeReport, message| Err(failure(at, mode, "logits".to_owned(), message));
        let allowed = if parted {
            let sum: f64 = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs())).sum();
            let mean = (sum / ours.len().max(1) as f64) as f32;
            mode.logits_parted_mean = mode.logits_parted_mean.max(mean);
            mode.logits_parted_largest = mode.logits_parted_largest.max(difference);
            if mean >= PARTED_MEAN || mean.is_nan() {
                return fail(
                    mode,
                    format!("differ by {mean} in the mean behind a tie, expected less than {PARTED_MEAN}"),
                );
            }
            PARTED_MARGIN
        } else {
            let relative = difference / largest(ours);
            mode.logits = mode.logits.max(relative);
            if relative > LOGITS_TOLERANCE {
                let message = format!("differ by {relative:.1e} of the largest, expected {LOGITS_TOLERANCE:.0e}");
                return fail(mode, message);
            }
            LOGITS_TOLERANCE * largest(ours)
        };
        if our_choice != their_choice && margin > allowed {
            let message = format!(
                "ONNX Runtime chooses token {their_choice}, Trion {our_choice} by {margin}; equals may differ by {allowed}"
            );
            return fail(mode, message);
        }
        Ok(())
    }
}

/// The comparison of one ternary matrix.
struct Matrix<'c, 'm> {
    module: &'c Module<'m>,
    kernel: Kernel,
    counts: &'c mut LayerReport,
}

impl Matrix<'_, '_> {
    /// Compares a token's activations, sums and outputs; tells whether its integers part here. `input` is what Trion
    /// quantised, if it did that for this matrix.
    fn compare(
        self,
        pass: &Pass,
        at: At<'_>,
        input: Option<&Quantized>,
        parted: bool,
        mode: &mut ModeReport,
        first_parting: &mut Option<Parting>,
    ) -> std::result::Result<bool, Stop> {
        let quantized = pass.quantized(self.module, at.row, at.token)?;
        let mut ties = false;
        if let Some(input) = input {
            self.counts.activations += quantized.len() as u64;
            match compare_quantized(input, &quantized) {
                Outcome::Equal => {}
                _ if parted => {
                    let unequal = input.integers.iter().zip(&quantized).filter(|(a, b)| a != b).count();
                    self.counts.parted += unequal as u64;
                }
                Outcome::Ties { count, first, distance } => {
                    ties = true;
                    self.counts.ties += count;
                    self.counts.tie_distance = self.counts.tie_distance.max(distance);
                    first_parting.get_or_insert_with(|| Parting {
                        mode: mode.mode,
                        prompt: at.prompt,
                        position: at.position,
                        place: format!("input of {}", self.module.name),
                        column: first,
                        before_rounding: input.before_rounding(first),
                        trion: input.integers[first],
                        onnx: quantized[first],
                    });
                }
                Outcome::Different { col } => {
                    let message = format!(
                        "column {col} is {:?} in ONNX Runtime and {:?} in Trion, which rounded {:?}: no tie",
                        quantized.get(col),
                        input.integers.get(col),
                        input.integers.get(col).map(|_| input.before_rounding(col)),
                    );
                    return Err(failure(at, mode, format!("input of {}", self.module.name), message));
                }
            }
        }
        let sums = self.sums(pass, at, &quantized, mode)?;
        if self.module.name != names::HEAD {
            self.rescaled(pass, at, &sums, mode)?;
        }
        Ok(ties)
    }

    /// The accumulators, which have to be Trion's for the very activations that ONNX Runtime had: `[groups, rows]`.
    fn sums(
        &self,
        pass: &Pass,
        at: At<'_>,
        quantized: &[i8],
        mode: &ModeReport,
    ) -> std::result::Result<Vec<i32>, Stop> {
        let accumulators = pass.accumulators(self.module, at.row, at.token)?;
        let mut sums = vec![0; accumulators.len()];
        let matrix = &self.module.matrix;
        matrix.sums(self.kernel, quantized, &mut sums).map_err(|e| Stop::Error(trion_engine::Error::from(e).into()))?;
        Ok(sums).and_then(|sums| {
            let unequal = sums.iter().zip(&accumulators).position(|(ours, theirs)| f64::from(*ours) != *theirs);
            let Some(i) = unequal else { return Ok(sums) };
            let (group, row) = (i / matrix.rows(), i % matrix.rows());
            let groups = sums.len() / matrix.rows();
            let of_group = if groups > 1 { format!(" of group {group}") } else { String::new() };
            let message = format!(
                "the sum of row {row}{of_group} is {} in ONNX Runtime, and {} in Trion for the same activations",
                accumulators[i], sums[i]
            );
            Err(failure(at, mode, self.module.name.clone(), message))
        })
    }

    /// The output, which has to be the sums divided by the activations' scale and multiplied by the weights'.
    fn rescaled(self, pass: &Pass, at: At<'_>, sums: &[i32], mode: &ModeReport) -> std::result::Result<(), Stop> {
        let rows = self.module.matrix.rows();
        let scales: Vec<f32> =
            pass.scales(self.module, at.row, at.token)?.into_iter().map(|scale| scale as f32).collect();
        let expected = rescale(self.module.matrix.rescale(), rows, sums, &scales);
        let found = pass.row(&names::output(&self.module.name), rows, at.row, at.token)?;
        let difference = largest_difference(&expected, found) / largest(&expected);
        self.counts.accumulators += sums.len() as u64;
        self.counts.rescale = self.counts.rescale.max(difference);
        if difference > RESCALE_TOLERANCE {
            let message = format!(
                "its sums, rescaled, differ by {difference:.1e} of the largest, expected {RESCALE_TOLERANCE:.0e}"
            );
            return Err(failure(at, mode, format!("output of {}", self.module.name), message));
        }
        Ok(())
    }
}

/// Sums `[groups, rows]` as floats `[rows]`, in the contract's order of operations.
fn rescale(rule: Rescale<'_>, rows: usize, sums: &[i32], scales: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; rows];
    for (group, (sums, s)) in sums.chunks(rows).zip(scales).enumerate() {
        for (row, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
            *y += match rule {
                Rescale::Multiply(m) => *sum as f32 / s * m,
                Rescale::Divide(d) => *sum as f32 / (d * s),
                Rescale::Groups { scales: multipliers, .. } => {
                    let of_row = (row / TILE_ROWS * scales.len() + group) * TILE_ROWS + row % TILE_ROWS;
                    *sum as f32 / s * f16_to_f32(multipliers[of_row])
                }
            };
        }
    }
    y
}

fn failure(at: At<'_>, mode: &ModeReport, place: String, message: String) -> Stop {
    Stop::Failure(Failure { mode: mode.mode, prompt: at.prompt, position: at.position, place, message })
}
