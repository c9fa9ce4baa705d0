//! Training on an NVIDIA GPU: forward, backward and optimizer for this one architecture, with kernels of our own between
//! cuBLAS's products. What they compute is what [`crate::model`] and [`crate::optimizer`] say, with products, and their
//! gradients, in bfloat16.

mod gpu;
mod kernels;
mod optimizer;
mod pass;
mod plan;

use trion_engine::Config;

use crate::error::{Error, Result};
use crate::layout::{Entry, Kind, layout};
use crate::learner::{Batch, Learner, Moments, Step};
use crate::recipe::{OptimizerName, Precision, Recipe};
use gpu::{Address, Gpu, HALF, SINGLE, arguments};
use kernels::Kernels;
use pass::Activations;
use plan::Plan;

/// Parts that a sum over a matrix is made of.
const PARTS: usize = 64;

/// Parameters, moments and everything between on a GPU.
pub(crate) struct Cuda {
    gpu: Gpu,
    kernels: Kernels,
    config: Config,
    entries: Vec<Entry>,
    plan: Plan,
    muon: bool,
    /// How the finished model computes: 1 if it is ternary.
    finished: f64,
    /// Singles, as [`Plan`] lays them out: parameters, gradients, and both moments.
    parameters: Address,
    gradients: Address,
    moments: [Address; 2],
    weights: Weights,
    activations: Activations,
    optimizer: optimizer::Memory,
}

/// Weights as products take them.
struct Weights {
    /// Where matrices begin, and their sizes.
    offsets: Address,
    counts: Address,
    /// Parts of sums of magnitudes, and means.
    sums: Address,
    means: Address,
    /// bfloat16, as parameters lie.
    forward: Address,
    backward: Address,
}

impl Cuda {
    /// Opens GPU number `index` for a run.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is none or its memory is too small, [`Error::Argument`] for shapes it has no kernels for.
    pub(crate) fn open(index: usize, recipe: &Recipe, config: &Config) -> Result<Self> {
        if recipe.precision != Precision::Bf16 {
            return Err(Error::Argument("a GPU computes products in bf16, which the recipe has to say".to_owned()));
        }
        if recipe.weight_group > 0 {
            let message = "a GPU trains one scale for each matrix; scales for groups are trained on a processor";
            return Err(Error::Argument(message.to_owned()));
        }
        let mut gpu = Gpu::open(index)?;
        let kernels = Kernels::compile(&gpu, config)?;
        let entries = layout(config);
        let plan = Plan::new(&entries);
        let [parameters, gradients, mean, square] = [
            gpu.allocate(plan.count * SINGLE)?,
            gpu.allocate(plan.count * SINGLE)?,
            gpu.allocate(plan.count * SINGLE)?,
            gpu.allocate(plan.count * SINGLE)?,
        ];
        let [offsets, counts] = [0, 1].map(|i| plan.matrices.iter().map(|matrix| matrix[i]).collect::<Vec<_>>());
        let weights = Weights {
            offsets: gpu.constant(&offsets)?,
            counts: gpu.constant(&counts)?,
            sums: gpu.allocate(plan.matrices.len() * PARTS * SINGLE)?,
            means: gpu.allocate(plan.matrices.len() * SINGLE)?,
            forward: gpu.allocate(plan.count * HALF)?,
            backward: gpu.allocate(plan.count * HALF)?,
        };
        let activations = Activations::new(&mut gpu, config, recipe.sequences, recipe.positions)?;
        let optimizer = optimizer::Memory::new(&mut gpu, &plan)?;
        Ok(Cuda {
            gpu,
            kernels,
            config: *config,
            entries,
            plan,
            muon: recipe.optimizer == OptimizerName::Muon,
            finished: f64::from(u8::from(recipe.ternary)),
            parameters,
            gradients,
            moments: [mean, square],
            weights,
            activations,
            optimizer,
        })
    }

    /// Makes weights of the parameters as they are.
    fn quantize(&self, lambda: f64) -> Result<()> {
        let (gpu, w) = (&self.gpu, &self.weights);
        let matrices = self.plan.matrices.len();
        let magnitudes = arguments![self.parameters, w.offsets, w.counts, w.sums];
        gpu.launch(&self.kernels.magnitudes, [PARTS, matrices, 1], 256, magnitudes)?;
        let quantize = arguments![self.parameters, w.offsets, w.counts, w.sums, lambda, w.means, w.forward, w.backward];
        gpu.launch(&self.kernels.quantize_weights, [PARTS, matrices, 1], 256, quantize)?;
        let narrow = arguments![self.parameters, w.forward, self.config.vocab_size * self.config.hidden_size];
        gpu.launch(&self.kernels.narrow_all, [gpu.blocks, 1, 1], 256, narrow)
    }

    /// All numbers of a parameter, or what belongs to it.
    fn of_entry(&self, from: Address, index: usize) -> Result<Vec<f32>> {
        self.gpu.read(from.element(self.plan.offsets[index], SINGLE), self.entries[index].count())
    }

    /// Moments that the optimizer keeps of a parameter.
    fn moments_of(&self, entry: &Entry) -> usize {
        if self.muon && matches!(entry.kind, Kind::Matrix(_)) { 1 } else { 2 }
    }
}

impl Learner for Cuda {
    fn step(&mut self, step: &Step<'_>) -> Result<[f32; 2]> {
        self.quantize(step.lambda)?;
        self.gpu.clear(self.optimizer.control, optimizer::CONTROL)?;
        for (n, batch) in step.batches.iter().enumerate() {
            let share = 1.0 / (step.batches.len() * batch.ids.len()) as f64;
            self.upload(batch)?;
            self.forward(batch, step.lambda)?;
            self.backward(batch, share, n > 0)?;
        }
        self.move_parameters(step)
    }

    fn loss(&mut self, batch: &Batch) -> Result<f32> {
        self.quantize(self.finished)?;
        self.gpu.clear(self.optimizer.control, optimizer::CONTROL)?;
        self.upload(batch)?;
        self.forward(batch, self.finished)?;
        self.head(batch, 1.0 / batch.ids.len() as f64, None)?;
        Ok(self.gpu.read::<f32>(self.optimizer.control, 1)?[0])
    }

    fn parameters(&self) -> Result<Vec<Vec<f32>>> {
        (0..self.entries.len()).map(|index| self.of_entry(self.parameters, index)).collect()
    }

    fn set_parameters(&mut self, parameters: &[Vec<f32>]) -> Result<()> {
        for (values, offset) in parameters.iter().zip(&self.plan.offsets) {
            self.gpu.write(self.parameters.element(*offset, SINGLE), values)?;
        }
        Ok(())
    }

    fn moments(&self) -> Result<Moments> {
        let of = |(index, entry)| {
            let moments = self.moments[..self.moments_of(entry)].iter();
            moments.map(|moment| self.of_entry(*moment, index)).collect::<Result<Vec<_>>>()
        };
        self.entries.iter().enumerate().map(of).collect()
    }

    fn set_moments(&mut self, moments: &Moments) -> Result<()> {
        for (moments, offset) in moments.iter().zip(&self.plan.offsets) {
            for (values, moment) in moments.iter().zip(self.moments) {
                self.gpu.write(moment.element(*offset, SINGLE), values)?;
            }
        }
        Ok(())
    }

    fn energy(&self) -> Option<f64> {
        self.gpu.energy()
    }
}
