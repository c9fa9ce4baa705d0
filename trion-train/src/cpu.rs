//! Training on a processor, by burn's tensors and automatic differentiation.

use std::fs;
use std::path::Path;

use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexDevice};
use burn_tensor::{Int, Tensor, TensorData};
use trion_engine::Config;

use crate::bitlinear::Arithmetic;
use crate::error::Result;
use crate::layout::{Entry, layout};
use crate::learner::{Batch, Learner, Moments, Step};
use crate::model::Forward;
use crate::optimizer::{AdamW, Muon, Optimizer, clip};
use crate::recipe::{OptimizerName, Recipe};

/// A model in training on the processor.
pub(crate) struct Cpu {
    config: Config,
    entries: Vec<Entry>,
    finished: Arithmetic,
    forward: Forward<Autodiff<Flex>>,
    parameters: Vec<Tensor<Flex, 2>>,
    optimizer: Optimizer<Flex>,
}

impl Cpu {
    /// For a run; all parameters are zero.
    pub(crate) fn new(recipe: &Recipe, config: &Config) -> Self {
        let entries = layout(config);
        let parameters: Vec<_> = entries.iter().map(|entry| Tensor::zeros(entry.shape, &FlexDevice)).collect();
        let products = recipe.precision.dtype();
        let muon = Muon { precision: products, ..Muon::default() };
        let muon = (recipe.optimizer == OptimizerName::Muon).then_some(muon);
        let finished = Arithmetic { lambda: f64::from(u8::from(recipe.ternary)), group: recipe.weight_group, products };
        Cpu {
            config: *config,
            finished,
            forward: Forward::new(config, recipe.positions, finished, &FlexDevice),
            optimizer: Optimizer::new(&entries, &parameters, AdamW::default(), muon),
            entries,
            parameters,
        }
    }

    fn tensor(&self, index: usize, values: &[f32]) -> Tensor<Flex, 2> {
        Tensor::from_data(TensorData::new(values.to_vec(), self.entries[index].shape), &FlexDevice)
    }
}

/// Ids and targets `[sequences, positions]`.
fn tensors(batch: &Batch) -> [Tensor<Flex, 2, Int>; 2] {
    [&batch.ids, &batch.targets].map(|ids| {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let shape = [ids.len() / batch.positions, batch.positions];
        Tensor::from_data(TensorData::new(ids, shape), &FlexDevice)
    })
}

/// The numbers of a tensor.
fn floats<const D: usize>(tensor: &Tensor<Flex, D>) -> Vec<f32> {
    // The tensor is of this type, and this device has it.
    tensor.clone().into_data().into_vec().unwrap_or_default()
}

impl Learner for Cpu {
    fn step(&mut self, step: &Step<'_>) -> Result<[f32; 2]> {
        self.forward.set_arithmetic(Arithmetic { lambda: step.lambda, ..self.finished });
        let (mut sum, mut gradients) = (None::<Tensor<Flex, 1>>, Vec::<Tensor<Flex, 2>>::new());
        for batch in step.batches {
            let [ids, targets] = tensors(batch);
            let (loss, of_batch) = self.forward.gradients(&self.parameters, ids, targets);
            sum = Some(sum.map_or(loss.clone(), |sum| sum + loss));
            gradients = if gradients.is_empty() {
                of_batch
            } else {
                gradients.into_iter().zip(of_batch).map(|(sum, gradient)| sum + gradient).collect()
            };
        }
        let batches = step.batches.len() as f64;
        if batches > 1.0 {
            gradients = gradients.into_iter().map(|gradient| gradient.div_scalar(batches)).collect();
            sum = sum.map(|loss| loss.div_scalar(batches));
        }
        let norm = clip(&mut gradients, step.clip);
        let found = [sum, norm].map(|value| value.map_or(f32::NAN, |value| floats(&value)[0]));
        if found.iter().all(|value| value.is_finite()) {
            self.optimizer.step(step.number, &mut self.parameters, &gradients, step.rates);
        }
        Ok(found)
    }

    fn loss(&mut self, batch: &Batch) -> Result<f32> {
        let [ids, targets] = tensors(batch);
        let forward = Forward::<Flex>::new(&self.config, batch.positions, self.finished, &FlexDevice);
        Ok(floats(&forward.loss(&self.parameters, ids, targets))[0])
    }

    fn parameters(&self) -> Result<Vec<Vec<f32>>> {
        Ok(self.parameters.iter().map(floats).collect())
    }

    fn set_parameters(&mut self, parameters: &[Vec<f32>]) -> Result<()> {
        self.parameters = parameters.iter().enumerate().map(|(index, values)| self.tensor(index, values)).collect();
        Ok(())
    }

    fn moments(&self) -> Result<Moments> {
        Ok(self.optimizer.moments().iter().map(|moments| moments.iter().map(floats).collect()).collect())
    }

    fn set_moments(&mut self, moments: &Moments) -> Result<()> {
        let of = |(index, moments): (usize, &Vec<Vec<f32>>)| {
            moments.iter().map(|values| self.tensor(index, values)).collect()
        };
        self.optimizer.set_moments(moments.iter().enumerate().map(of).collect());
        Ok(())
    }

    fn energy(&self) -> Option<f64> {
        processors_energy(Path::new("/sys/class/powercap"))
    }
}

/// What Linux knows of the energy of all processors, in joules: counters of microjoules in `intel-rapl:N`, which AMD's
/// processors have, too. Most machines let only root read them.
fn processors_energy(counters: &Path) -> Option<f64> {
    let processors = fs::read_dir(counters).ok()?.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(|name| name.strip_prefix("intel-rapl:")).is_some_and(|number| !number.contains(':'))
    });
    let joules = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("energy_uj")).ok()?;
        Some(text.trim().parse::<f64>().ok()? / 1e6)
    };
    let joules = processors.map(joules).collect::<Option<Vec<_>>>()?;
    if joules.is_empty() { None } else { Some(joules.iter().sum()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_processors_are_added_up() {
        let counters = std::env::temp_dir().join(format!("trion-energy-{}", std::process::id()));
        for (name, value) in [("intel-rapl:0", "1500000\n"), ("intel-rapl:1", "250000\n"), ("intel-rapl:0:0", "7\n")] {
            fs::create_dir_all(counters.join(name)).unwrap();
            fs::write(counters.join(name).join("energy_uj"), value).unwrap();
        }
        assert_eq!(processors_energy(&counters), Some(1.75));
        fs::write(counters.join("intel-rapl:1/energy_uj"), "?").unwrap();
        assert_eq!(processors_energy(&counters), None);
        fs::remove_dir_all(&counters).unwrap();
        assert_eq!(processors_energy(&counters), None);
    }
}
