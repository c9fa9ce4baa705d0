//! A trained model: what it is measured by, and the directory that a run leaves.
//!
//! A run's directory has `recipe.json`, `tokenizer.json`, `checkpoint.safetensors` (parameters in the names of
//! Hugging Face's `BitNet`, and moments, of the last checkpoint) and `metrics.jsonl`.

use std::path::Path;

use tokenizers::Tokenizer;
use trion_engine::Config;

use crate::data::Tokens;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::layout::{Entry, layout};
use crate::learner::{Batch, Device, Learner};
use crate::parameters::load;
use crate::recipe::Recipe;
use crate::tokenizer;

pub(crate) const RECIPE: &str = "recipe.json";
pub(crate) const CHECKPOINT: &str = "checkpoint.safetensors";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// A model with its tokenizer.
pub struct Trained {
    /// How it was made.
    pub recipe: Recipe,
    /// Its shape.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The token that documents begin with.
    pub end: u32,
    /// Its parameters, in the order of [`layout`].
    pub parameters: Vec<Vec<f32>>,
}

/// A loss.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Mean cross entropy of a token.
    pub nats_per_token: f64,
    /// The same in bits for each byte of the text.
    pub bits_per_byte: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

impl Trained {
    pub(crate) fn new(directory: &Path, recipe: Recipe, parameters: Vec<Vec<f32>>) -> Result<Self> {
        let (tokenizer, end) = tokenizer::open(&directory.join(TOKENIZER))?;
        let config = recipe.config(tokenizer.get_vocab_size(true))?;
        Ok(Trained { recipe, config, tokenizer, end, parameters })
    }

    /// A run's recipe and tokenizer, without parameters.
    pub(crate) fn described(directory: &Path) -> Result<Self> {
        Self::new(directory, read_json(&directory.join(RECIPE))?, Vec::new())
    }

    /// The last checkpoint of a run.
    ///
    /// # Errors
    /// When a file is missing or does not hold what it should.
    pub fn open(directory: &Path) -> Result<Self> {
        let mut trained = Self::described(directory)?;
        trained.parameters = load(&directory.join(CHECKPOINT), &layout(&trained.config))?;
        Ok(trained)
    }

    /// What its parameters are.
    pub fn entries(&self) -> Vec<Entry> {
        layout(&self.config)
    }

    /// Its loss on other data ([`evaluate`]), computed on a device.
    ///
    /// # Errors
    /// As [`evaluate`], and [`Error::Gpu`].
    pub fn evaluate(&self, data: &Tokens, device: Device) -> Result<Evaluation> {
        let mut learner = device.learner(&self.recipe, &self.config)?;
        learner.set_parameters(&self.parameters)?;
        evaluate(&mut *learner, &self.recipe, &self.config, data)
    }
}

/// Loss on other data: windows of as many tokens as the model was trained on, which do not overlap, the first token of each
/// given, as `trion perplexity` measures.
///
/// # Errors
/// [`Error::Argument`] if the data has another vocabulary or is shorter than a window; [`Error::Gpu`].
pub fn evaluate(learner: &mut dyn Learner, recipe: &Recipe, config: &Config, data: &Tokens) -> Result<Evaluation> {
    let manifest = data.manifest();
    if manifest.vocab_size != config.vocab_size {
        let message = format!("the data has a vocabulary of {}, expected {}", manifest.vocab_size, config.vocab_size);
        return Err(Error::Argument(message));
    }
    let Recipe { positions, sequences, .. } = *recipe;
    let windows = manifest.tokens() / positions as u64;
    if windows == 0 || positions < 2 {
        let message = format!("the data has {} tokens, expected {positions} for a window", manifest.tokens());
        return Err(Error::Argument(message));
    }
    let mut nats = 0.0;
    for from in (0..windows).step_by(sequences) {
        let until = windows.min(from + sequences as u64);
        let windows = (from..until).map(|window| data.read(window * positions as u64, positions));
        let batch = Batch::new(&windows.collect::<Result<Vec<_>>>()?, positions - 1);
        nats += f64::from(learner.loss(&batch)?) * batch.ids.len() as f64;
    }
    let tokens = windows * (positions as u64 - 1);
    let covered = manifest.bytes as f64 * (windows * positions as u64) as f64 / manifest.tokens() as f64;
    Ok(Evaluation {
        nats_per_token: nats / tokens as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / covered,
        tokens,
    })
}
