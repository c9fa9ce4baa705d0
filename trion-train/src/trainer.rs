//! A run: steps, evaluation, and checkpoints from which it goes on as if it had never stopped.
//!
//! What a step does depends on its number alone, so a checkpoint needs no other state than parameters and moments.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::SafeTensors;
use serde_json::{Value, json};
use trion_engine::Config;

use crate::data::{Order, Tokens};
use crate::error::{Error, Result};
use crate::files::{make_directory, read_json, write_json, write_whole};
use crate::layout::{Entry, layout};
use crate::learner::{Batch, Device, Learner, Step};
use crate::parameters::{Stored, initial, load, read, save, tensor};
use crate::recipe::Recipe;
use crate::trained::{CHECKPOINT, Evaluation, METRICS, RECIPE, TOKENIZER, Trained, evaluate};

/// The step of a checkpoint, in its metadata.
const STEP: &str = "step";

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss in nats a token, before the parameters moved.
    pub loss: f32,
    /// Norm of the gradient, before it was clipped.
    pub gradient_norm: f32,
}

/// A run in memory.
pub struct Trainer {
    directory: PathBuf,
    recipe: Recipe,
    config: Config,
    entries: Vec<Entry>,
    data: Tokens,
    order: Order,
    learner: Box<dyn Learner>,
    /// Steps that were done.
    steps: u64,
}

impl Trainer {
    /// Begins a run in `directory`, or goes on with the one that is there.
    ///
    /// # Errors
    /// When files cannot be read or written, when the recipe has a number out of range, when `directory` has a run of another
    /// recipe or tokenizer, or when the device fails.
    pub fn open(directory: &Path, recipe: &Recipe, data: Tokens, device: Device) -> Result<Self> {
        let config = recipe.config(data.manifest().vocab_size)?;
        let order = Order::new(data.manifest().tokens(), recipe.positions, recipe.seed)?;
        let entries = layout(&config);
        make_directory(directory)?;
        let path = directory.join(RECIPE);
        if path.exists() {
            let found: Recipe = read_json(&path)?;
            if found != *recipe {
                let message = "is of another recipe; give the same, or another directory";
                return Err(Error::malformed(path, message));
            }
        } else {
            write_json(&path, recipe)?;
        }
        let own = fs::read(data.tokenizer_file()).map_err(Error::io(data.tokenizer_file()))?;
        let tokenizer = directory.join(TOKENIZER);
        if tokenizer.exists() {
            if fs::read(&tokenizer).map_err(Error::io(&tokenizer))? != own {
                return Err(Error::malformed(tokenizer, "is not the tokenizer that the data was encoded with"));
            }
        } else {
            write_whole(&tokenizer, |file| file.write_all(&own))?;
        }
        let mut trainer = Trainer {
            directory: directory.to_owned(),
            recipe: recipe.clone(),
            config,
            entries,
            data,
            order,
            learner: device.learner(recipe, &config)?,
            steps: 0,
        };
        if directory.join(CHECKPOINT).exists() {
            trainer.restore()?;
        } else {
            let parameters = match &recipe.from {
                Some(path) => load(path, &trainer.entries)?,
                None => initial(&trainer.entries, recipe.initialization, recipe.seed),
            };
            trainer.learner.set_parameters(&parameters)?;
        }
        trainer.cut_metrics()?;
        Ok(trainer)
    }

    /// Steps that were done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// When the tokenizer cannot be read; [`Error::Gpu`].
    pub fn model(&self) -> Result<Trained> {
        Trained::new(&self.directory, self.recipe.clone(), self.learner.parameters()?)
    }

    /// The loss on other data, of the model as it is ([`evaluate`]).
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn evaluate(&mut self, data: &Tokens) -> Result<Evaluation> {
        evaluate(&mut *self.learner, &self.recipe, &self.config, data)
    }

    /// Joules that the device has taken since some moment, where the machine tells.
    pub fn energy(&self) -> Option<f64> {
        self.learner.energy()
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss is not finite: nothing moved then. [`Error::Io`] for the data, [`Error::Gpu`].
    pub fn step(&mut self) -> Result<Done> {
        let number = self.steps + 1;
        let accumulate = self.recipe.accumulate as u64;
        let pieces = (number - 1) * accumulate..number * accumulate;
        let step = Step {
            number,
            batches: &pieces.map(|piece| self.batch(piece)).collect::<Result<Vec<_>>>()?,
            lambda: self.recipe.lambda(number),
            rates: self.recipe.schedule.rates(number),
            clip: self.recipe.clip,
        };
        let [loss, gradient_norm] = self.learner.step(&step)?;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(Error::Diverged { step: number, loss, gradient_norm });
        }
        self.steps = number;
        Ok(Done { step: number, loss, gradient_norm })
    }

    /// The `n`-th batch.
    fn batch(&self, n: u64) -> Result<Batch> {
        let Recipe { sequences, positions, .. } = self.recipe;
        let starts = (0..sequences as u64).map(|i| self.order.start(n * sequences as u64 + i));
        let windows = starts.map(|start| self.data.read(start, positions + 1)).collect::<Result<Vec<_>>>()?;
        Ok(Batch::new(&windows, positions))
    }

    /// Appends an object to the metrics, with the step's number.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record(&self, mut metrics: Value) -> Result<()> {
        metrics["step"] = json!(self.steps());
        let path = self.directory.join(METRICS);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{metrics}\n").as_bytes()))
            .map_err(Error::io(&path))
    }

    /// Writes a checkpoint, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Gpu`]; the checkpoint before is still there then.
    pub fn save(&self) -> Result<()> {
        let mut tensors = Vec::new();
        let (parameters, moments) = (self.learner.parameters()?, self.learner.moments()?);
        for ((entry, parameter), moments) in self.entries.iter().zip(&parameters).zip(&moments) {
            tensors.push(Stored::floats(entry.name.clone(), entry.stored_shape(), parameter));
            for (n, moment) in moments.iter().enumerate() {
                tensors.push(Stored::floats(moment_name(entry, n), entry.stored_shape(), moment));
            }
        }
        let metadata = BTreeMap::from([(STEP.to_owned(), self.steps().to_string())]);
        save(&self.directory.join(CHECKPOINT), &tensors, metadata)
    }

    fn restore(&mut self) -> Result<()> {
        let path = self.directory.join(CHECKPOINT);
        let bytes = read(&path)?;
        let wrong = |e: safetensors::SafeTensorError| Error::malformed(&path, e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
        let step = metadata.metadata().as_ref().and_then(|metadata| metadata.get(STEP)?.parse().ok());
        let step = step.ok_or_else(|| Error::malformed(&path, "does not say which step it is of"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
        let get = |name: &str, entry: &Entry| tensor(&path, &file, name, entry);
        let mut moments = Vec::new();
        for (entry, old) in self.entries.iter().zip(self.learner.moments()?) {
            moments.push((0..old.len()).map(|n| get(&moment_name(entry, n), entry)).collect::<Result<Vec<_>>>()?);
        }
        let parameters = self.entries.iter().map(|entry| get(&entry.name, entry)).collect::<Result<Vec<_>>>()?;
        self.learner.set_parameters(&parameters)?;
        self.learner.set_moments(&moments)?;
        self.steps = step;
        Ok(())
    }

    /// Takes out of the metrics what a run recorded after its last checkpoint.
    fn cut_metrics(&self) -> Result<()> {
        let path = self.directory.join(METRICS);
        if !path.exists() {
            return Ok(());
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let done = |line: &str| {
            serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"].as_u64().is_some_and(|n| n <= self.steps()))
        };
        let kept: String = text.split_inclusive('\n').filter(|line| done(line)).collect();
        if kept.len() == text.len() { Ok(()) } else { write_whole(&path, |file| file.write_all(kept.as_bytes())) }
    }
}

/// The name of a parameter's `n`-th moment in a checkpoint.
fn moment_name(entry: &Entry, n: usize) -> String {
    format!("optimizer.{n}.{}", entry.name)
}
