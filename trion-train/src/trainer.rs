//! A run: steps, evaluation, and checkpoints from which it goes on as if it had never stopped.
//!
//! What a step does depends on its number alone, so a checkpoint needs no other state than parameters and moments.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn_autodiff::Autodiff;
use burn_tensor::backend::Backend;
use burn_tensor::{Int, Tensor, TensorData};
use safetensors::tensor::SafeTensors;
use serde_json::{Value, json};

use crate::data::{Order, Tokens};
use crate::error::{Error, Result};
use crate::files::{make_directory, read_json, write_json, write_whole};
use crate::layout::{Entry, layout};
use crate::model::Forward;
use crate::optimizer::{AdamW, Muon, Optimizer, clip};
use crate::parameters::{Stored, floats, initial, load, read, save, tensor};
use crate::recipe::{OptimizerName, Recipe};
use crate::trained::{CHECKPOINT, METRICS, RECIPE, TOKENIZER, Trained};

/// The step of a checkpoint, in its metadata.
const STEP: &str = "step";

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss in nats a token, before the parameters moved.
    pub loss: f32,
    /// Norm of the gradient, before it was clipped.
    pub gradient_norm: f32,
}

/// A run in memory.
pub struct Trainer<B: Backend> {
    directory: PathBuf,
    recipe: Recipe,
    entries: Vec<Entry>,
    device: B::Device,
    data: Tokens,
    order: Order,
    forward: Forward<Autodiff<B>>,
    parameters: Vec<Tensor<B, 2>>,
    optimizer: Optimizer<B>,
}

impl<B: Backend> Trainer<B> {
    /// Begins a run in `directory`, or goes on with the one that is there.
    ///
    /// # Errors
    /// When files cannot be read or written, when the recipe has a number out of range, or when `directory` has a run of
    /// another recipe or tokenizer.
    pub fn open(directory: &Path, recipe: &Recipe, data: Tokens, device: &B::Device) -> Result<Self> {
        let config = recipe.config(data.manifest().vocab_size)?;
        if !recipe.is_for::<B>(device) {
            return Err(Error::Argument("this device computes no products in bfloat16, expected f32".to_owned()));
        }
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
        let parameters = match &recipe.from {
            Some(path) => load(path, &entries, device)?,
            None => initial(&entries, recipe.initialization, recipe.seed, device),
        };
        let muon = Muon { momentum: 0.95, steps: 5, precision: recipe.precision.dtype() };
        let muon = (recipe.optimizer == OptimizerName::Muon).then_some(muon);
        let optimizer = Optimizer::new(&entries, &parameters, AdamW::default(), muon);
        let forward = Forward::new(&config, recipe.positions, recipe.arithmetic(1), device);
        let mut trainer = Trainer {
            directory: directory.to_owned(),
            recipe: recipe.clone(),
            entries,
            device: device.clone(),
            data,
            order,
            forward,
            parameters,
            optimizer,
        };
        if directory.join(CHECKPOINT).exists() {
            trainer.restore()?;
        }
        trainer.cut_metrics()?;
        Ok(trainer)
    }

    /// Steps that were done.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn model(&self) -> Result<Trained<B>> {
        Trained::new(&self.directory, self.recipe.clone(), self.parameters.clone(), &self.device)
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss is not finite: nothing moved then. [`Error::Io`] for the data.
    pub fn step(&mut self) -> Result<Step> {
        let step = self.steps() + 1;
        self.forward.set_arithmetic(self.recipe.arithmetic(step));
        let (mut sum, mut gradients) = (None::<Tensor<B, 1>>, Vec::<Tensor<B, 2>>::new());
        for piece in 0..self.recipe.accumulate as u64 {
            let [ids, targets] = self.batch((step - 1) * self.recipe.accumulate as u64 + piece)?;
            let (loss, of_piece) = self.forward.gradients(&self.parameters, ids, targets);
            sum = Some(sum.map_or(loss.clone(), |sum| sum + loss));
            gradients = if gradients.is_empty() {
                of_piece
            } else {
                gradients.into_iter().zip(of_piece).map(|(sum, gradient)| sum + gradient).collect()
            };
        }
        let pieces = self.recipe.accumulate as f64;
        if pieces > 1.0 {
            gradients = gradients.into_iter().map(|gradient| gradient.div_scalar(pieces)).collect();
            sum = sum.map(|loss| loss.div_scalar(pieces));
        }
        let norm = clip(&mut gradients, self.recipe.clip);
        let [loss, gradient_norm] = [sum, norm].map(|value| value.map_or(f32::NAN, |v| floats(&v)[0]));
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(Error::Diverged { step, loss, gradient_norm });
        }
        self.optimizer.step(&mut self.parameters, &gradients, self.recipe.schedule.rates(step));
        Ok(Step { step, loss, gradient_norm })
    }

    /// The ids and targets `[sequences, positions]` of the `n`-th batch.
    fn batch(&self, n: u64) -> Result<[Tensor<B, 2, Int>; 2]> {
        let Recipe { sequences, positions, .. } = self.recipe;
        let mut windows = Vec::with_capacity(sequences);
        for i in 0..sequences as u64 {
            windows.push(self.data.read(self.order.start(n * sequences as u64 + i), positions + 1)?);
        }
        Ok([0, 1].map(|shift| {
            let ids = windows.iter().flat_map(|window| window[shift..][..positions].iter().map(|id| *id as i32));
            let ids = TensorData::new(ids.collect::<Vec<_>>(), [sequences, positions]);
            Tensor::from_data(ids, &self.device)
        }))
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
    /// [`Error::Io`]; the checkpoint before is still there then.
    pub fn save(&self) -> Result<()> {
        let mut tensors = Vec::new();
        for ((entry, parameter), moments) in self.entries.iter().zip(&self.parameters).zip(self.optimizer.moments()) {
            tensors.push(Stored::floats(entry.name.clone(), entry.stored_shape(), &floats(parameter)));
            for (n, moment) in moments.iter().enumerate() {
                tensors.push(Stored::floats(moment_name(entry, n), entry.stored_shape(), &floats(moment)));
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
        let get = |name: &str, e: &Entry| tensor(&path, &file, name, &e.stored_shape(), e.shape, &self.device);
        let mut moments = Vec::new();
        for (entry, old) in self.entries.iter().zip(self.optimizer.moments()) {
            moments.push((0..old.len()).map(|n| get(&moment_name(entry, n), entry)).collect::<Result<Vec<_>>>()?);
        }
        self.parameters = self.entries.iter().map(|entry| get(&entry.name, entry)).collect::<Result<_>>()?;
        self.optimizer.restore(moments, step);
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
