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

/// Counts of one mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModeReport {
    /// The mode.
    pub mode: Mode,
    /// Sequences compared.
    pub prompts: u64,
    /// Positions compared.
    pub positions: u64,
    /// Activations that the engines rounded apart, each a tie.
    pub ties: u64,
    /// Positions that choose a token of the continuation.
    pub greedy_tokens: u64,
    /// Those where ONNX Runtime chooses the token that Trion by itself chooses, without following ties.
    pub greedy_equal: u64,
    /// The largest lead of a choice of Trion's that ONNX Runtime does not share.
    pub greedy_margin: f32,
    /// Largest difference of logits relative to the largest logit, from the same ties on.
    pub logits: f32,
}

impl ModeReport {
    pub(super) fn new(mode: Mode) -> Self {
        ModeReport {
            mode,
            prompts: 0,
            positions: 0,
            ties: 0,
            greedy_tokens: 0,
            greedy_equal: 0,
            greedy_margin: 0.0,
            logits: 0.0,
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
    /// Sums compared; all are equal, or the check fails.
    pub accumulators: u64,
    /// Largest difference of an output from its rescaled sums, relative to the largest of them.
    pub rescale: f32,
    /// Largest difference of the residual stream behind the layer, relative to its largest number.
    pub hidden: f32,
}

impl LayerReport {
    pub(super) fn new(name: String) -> Self {
        LayerReport { name, activations: 0, ties: 0, tie_distance: 0.0, accumulators: 0, rescale: 0.0, hidden: 0.0 }
    }
}

/// An activation that lay next to a half, and that the engines rounded apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tie {
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
    /// The library of ONNX Runtime, and how it describes itself.
    pub runtime: String,
    /// Threads of either engine.
    pub threads: usize,
    /// Tokens of the prompts' continuations.
    pub tokens: usize,
    /// The modes that the graph allows.
    pub modes: Vec<ModeReport>,
    /// The layers.
    pub layers: Vec<LayerReport>,
    /// Where the engines part first; `None` if nowhere.
    pub first_tie: Option<Tie>,
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
        for ModeReport { mode, ties, greedy_tokens, greedy_equal, greedy_margin, logits, .. } in &self.modes {
            write!(f, "{mode}: {greedy_equal} of {greedy_tokens} greedy tokens equal")?;
            if greedy_equal < greedy_tokens {
                write!(f, " (others led by at most {greedy_margin:.2})")?;
            }
            writeln!(f, ", {ties} ties, logits within {logits:.1e} of the largest")?;
        }
        match &self.first_tie {
            None => writeln!(f, "the engines part nowhere")?,
            Some(Tie { mode, prompt, position, place, column, before_rounding, trion, onnx }) => writeln!(
                f,
                "they part first at the {place}, column {column}: {before_rounding} became {trion} in Trion and {onnx} in ONNX \
                 Runtime (prompt {prompt}, position {position}, {mode})"
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
