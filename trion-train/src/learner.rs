//! What a run needs of a device: parameters and moments live there, losses are computed and parameters moved there.

use trion_engine::Config;

use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::optimizer::Rates;
use crate::recipe::Recipe;

/// The optimizer's numbers for each parameter: the mean or sum of gradients and, for `AdamW`, the mean of their squares.
pub type Moments = Vec<Vec<Vec<f32>>>;

/// Sequences that go through the model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Tokens of a sequence.
    pub positions: usize,
    /// Token ids `[sequences, positions]`.
    pub ids: Vec<u32>,
    /// What follows each `[sequences, positions]`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Of windows of one more token than `positions` each.
    pub fn new(windows: &[Vec<u32>], positions: usize) -> Self {
        let of = |shift: usize| windows.iter().flat_map(|window| window[shift..][..positions].to_vec()).collect();
        Batch { positions, ids: of(0), targets: of(1) }
    }
}

/// What one step does.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// Batches whose gradients are averaged.
    pub batches: &'a [Batch],
    /// How much of quantisation is applied ([`crate::Arithmetic::lambda`]).
    pub lambda: f64,
    /// Learning rates.
    pub rates: Rates,
    /// Gradients are scaled so that their norm is at most this.
    pub clip: f64,
}

/// A model in training on a device. Parameters are in the order of [`crate::layout::layout`], `[rows, cols]` each.
pub trait Learner {
    /// Does a step: the mean loss in nats a token before parameters moved, and the norm of the gradient before it was clipped.
    /// If either is not finite, nothing moves.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn step(&mut self, step: &Step<'_>) -> Result<[f32; 2]>;

    /// Mean cross entropy of a batch in nats a token, in the arithmetic of the finished model.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn loss(&mut self, batch: &Batch) -> Result<f32>;

    /// The parameters as they are.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn parameters(&self) -> Result<Vec<Vec<f32>>>;

    /// Sets all parameters.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn set_parameters(&mut self, parameters: &[Vec<f32>]) -> Result<()>;

    /// The moments as they are.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn moments(&self) -> Result<Moments>;

    /// Sets all moments.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    fn set_moments(&mut self, moments: &Moments) -> Result<()>;

    /// Joules that the device has taken since some moment, where the machine tells.
    fn energy(&self) -> Option<f64>;
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the processor.
    Cpu,
    /// On an NVIDIA GPU, by its number.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl Device {
    /// Gets ready for a run there. All parameters are zero.
    ///
    /// # Errors
    /// [`Error::Gpu`]; [`Error::Argument`] if the device cannot compute what the recipe says.
    pub fn learner(self, recipe: &Recipe, config: &Config) -> Result<Box<dyn Learner>> {
        Ok(match self {
            Device::Cpu => Box::new(Cpu::new(recipe, config)),
            #[cfg(feature = "cuda")]
            Device::Cuda(index) => Box::new(crate::cuda::Cuda::open(index, recipe, config)?),
        })
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` or `cuda:N`.
    fn from_str(name: &str) -> Result<Self> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", "0") => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            ("cuda", index) => {
                let wrong = |_| Error::Argument(format!("device {name}: expected cpu, cuda or cuda:N"));
                Ok(Device::Cuda(index.parse().map_err(wrong)?))
            }
            #[cfg(not(feature = "cuda"))]
            ("cuda", _) => Err(Error::Argument("this program was built without --features cuda".to_owned())),
            _ => Err(Error::Argument(format!("device {name}: expected cpu, cuda or cuda:N"))),
        }
    }
}
