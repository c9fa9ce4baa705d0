//! What a check found, for people and for programs.

use std::fmt;

use serde::Serialize;

/// How tokens go through the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The prompt, then one token after another, with keys and values going in and out.
    Cache,
    /// All positions at once, from nothing.
    Whole,
    /// Three sequences together, step by step, with padding before the shorter ones.
    Batch,
    /// Three sequences together, all positions at once, with padding before the shorter ones.
    WholeBatch,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Cache => "step by step",
            Mode::Whole => "all positions at once",
            Mode::Batch => "three together, step by step",
            Mode::WholeBatch => "three together, all positions at once",
        })
    }
}

/// Counts of one mode. "Parted" are tokens behind a tie, where the engines compute with other integers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModeReport {
    /// The mode.
    pub mode: Mode,
    /// Sequences compared.
    pub prompts: u64,
    /// Positions compared.
    pub positions: u64,
    /// Those of them that are parted.
    pub parted: u64,
    /// Positions that choose a token of the continuation.
    pub greedy_tokens: u64,
    /// Those where both engines choose the same.
    pub greedy_equal: u64,
    /// Largest difference of logits relative to the largest logit, where nothing is parted.
    pub logits: f32,
    /// Largest mean difference of a parted position's logits.
    pub logits_parted_mean: f32,
    /// Largest difference of a logit of a parted position.
    pub logits_parted_largest: f32,
}

impl ModeReport {
    pub(super) fn new(mode: Mode) -> Self {
        ModeReport {
            mode,
            prompts: 0,
            positions: 0,
            parted: 0,
            greedy_tokens: 0,
            greedy_equal: 0,
            logits: 0.0,
            logits_parted_mean: 0.0,
            logits_parted_largest: 0.0,
        }
    }
}

/// Counts of one layer, over all modes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// The layer's name, or that of a ternary head.
    pub name: String,
    /// Quantised activations compared.
    pub activations: u64,
    /// Those that differ by a tie.
    pub ties: u64,
    /// The farthest that a tie lay from a half before rounding.
    pub tie_distance: f32,
    /// Activations that differ behind a tie.
    pub parted: u64,
    /// Sums compared; all are equal, or the check fails.
    pub accumulators: u64,
    /// Largest difference of an output from its rescaled sums, relative to the largest of them.
    pub rescale: f32,
    /// Largest difference of the residual stream behind the layer, relative to its largest number, where nothing is parted.
    pub hidden: f32,
}

impl LayerReport {
    pub(super) fn new(name: String) -> Self {
        LayerReport {
            name,
            activations: 0,
            ties: 0,
            tie_distance: 0.0,
            parted: 0,
            accumulators: 0,
            rescale: 0.0,
            hidden: 0.0,
        }
    }
}

/// The first tie that the engines rounded apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parting {
    /// The mode.
    pub mode: Mode,
    /// Index of the prompt.
    pub prompt: usize,
    /// Position of the token.
    pub position: usize,
    /// `input of model.layers.3.mlp.down_proj`.
    pub place: String,
    /// Column of the activation.
    pub column: usize,
    /// Trion's value before it was rounded.
    pub before_rounding: f32,
    /// Trion's integer.
    pub trion: i8,
    /// ONNX Runtime's integer.
    pub onnx: i8,
}

/// The first difference that nothing allows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// The mode.
    pub mode: Mode,
    /// Index of the prompt.
    pub prompt: usize,
    /// Position of the token.
    pub position: usize,
    /// `model.layers.3.mlp.up_proj`, `input of ...`, `output of ...` or `logits`.
    pub place: String,
    /// What was found, and what was expected.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { mode, prompt, position, place, message } = self;
        write!(f, "{place}: {message} (prompt {prompt}, position {position}, {mode})")
    }
}

/// Tokens a second of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Of a prompt.
    pub prompt: f64,
    /// One after another; `None` for a graph without a cache.
    pub decode: Option<f64>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether everything agrees as it should.
    pub passed: bool,
    /// How ONNX Runtime describes itself.
    pub runtime: String,
    /// Threads of either engine.
    pub threads: usize,
    /// Tokens of the prompts' continuations.
    pub tokens: usize,
    /// Ties that the engines rounded apart.
    pub ties: u64,
    /// The modes that the graph allows.
    pub modes: Vec<ModeReport>,
    /// The layers.
    pub layers: Vec<LayerReport>,
    /// Where the engines part; `None` if nowhere.
    pub first_parting: Option<Parting>,
    /// Why the check fails.
    pub failure: Option<Failure>,
    /// Speed of Trion.
    pub trion: Option<Speed>,
    /// Speed of ONNX Runtime.
    pub onnx: Option<Speed>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} threads", self.runtime, self.threads)?;
        writeln!(
            f,
            "\n{:24} {:>12} {:>6} {:>12} {:>9} {:>9}",
            "", "activations", "ties", "sums", "rescaled", "output"
        )?;
        for layer in &self.layers {
            let LayerReport { name, activations, ties, accumulators, rescale, hidden, .. } = layer;
            writeln!(f, "{name:24} {activations:>12} {ties:>6} {accumulators:>12} {rescale:>9.1e} {hidden:>9.1e}")?;
        }
        writeln!(f, "\nSums are equal bit by bit; the last two columns are relative differences.\n")?;
        for mode in &self.modes {
            let ModeReport { mode, positions, parted, greedy_tokens, greedy_equal, logits, .. } = mode;
            writeln!(f, "{mode}: {greedy_equal} of {greedy_tokens} greedy tokens equal, logits within {logits:.1e}")?;
            if *parted > 0 {
                writeln!(f, "    {parted} of {positions} positions lie behind a tie")?;
            }
        }
        match &self.first_parting {
            None => writeln!(f, "the engines part nowhere")?,
            Some(Parting { mode, prompt, position, place, column, before_rounding, trion, onnx }) => writeln!(
                f,
                "{} ties; the first: {place}, column {column}, {before_rounding} is rounded to {trion} by Trion and to {onnx} \
                 by ONNX Runtime (prompt {prompt}, position {position}, {mode})",
                self.ties
            )?,
        }
        for (name, speed) in [("Trion", self.trion), ("ONNX Runtime", self.onnx)] {
            let Some(Speed { prompt, decode }) = speed else { continue };
            write!(f, "{name}: {prompt:.1} tokens/s of a prompt")?;
            match decode {
                Some(decode) => writeln!(f, ", {decode:.1} tokens/s decoding")?,
                None => writeln!(f)?,
            }
        }
        match &self.failure {
            None => writeln!(f, "passed"),
            Some(failure) => writeln!(f, "failed: {failure}"),
        }
    }
}
