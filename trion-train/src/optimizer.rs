//! What moves the parameters: `AdamW`, and Muon for the blocks' matrices.

use std::collections::BTreeMap;

use burn_tensor::backend::Backend;
use burn_tensor::{FloatDType, Tensor};

use crate::layout::{Entry, Kind};

/// Constants of [AdamW](https://arxiv.org/abs/1711.05101).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Decay of the mean of gradients, and of the mean of their squares.
    pub betas: [f64; 2],
    /// What is added to the root of the latter.
    pub eps: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: [0.9, 0.95], eps: 1e-8 }
    }
}

/// Constants of [Muon](https://kellerjordan.github.io/posts/muon/): momentum, made orthogonal by Newton-Schulz iteration.
#[derive(Debug, Clone, Copy)]
pub struct Muon {
    /// Decay of the sum of gradients.
    pub momentum: f64,
    /// Iterations.
    pub steps: usize,
    /// What they are computed in.
    pub precision: FloatDType,
}

impl Default for Muon {
    fn default() -> Self {
        Muon { momentum: 0.95, steps: 5, precision: FloatDType::F32 }
    }
}

/// Those of the iteration's quintic, by Jordan et al. 2024: five steps bring singular values from 0.01 to 1 between 0.7 and
/// 1.2.
pub(crate) const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate of `AdamW`.
    pub adamw: f64,
    /// Learning rate of Muon.
    pub muon: f64,
    /// Decay of weights, in parts of the learning rate.
    pub weight_decay: f64,
}

/// Moments of parameters.
pub struct Optimizer<B: Backend> {
    adamw: AdamW,
    muon: Option<Muon>,
    /// For each parameter: the mean or sum of its gradients and, for `AdamW`, the mean of their squares.
    moments: Vec<Vec<Tensor<B, 2>>>,
    /// Indices of the parameters that Muon moves, by their shape turned so that it is not higher than wide.
    stacks: BTreeMap<[usize; 2], Vec<usize>>,
}

impl<B: Backend> Optimizer<B> {
    /// For parameters of these kinds, which have not moved yet.
    pub fn new(entries: &[Entry], parameters: &[Tensor<B, 2>], adamw: AdamW, muon: Option<Muon>) -> Self {
        let mut stacks = BTreeMap::<[usize; 2], Vec<usize>>::new();
        let mut moments = Vec::new();
        for (index, (entry, parameter)) in entries.iter().zip(parameters).enumerate() {
            let zeros = || parameter.zeros_like();
            if muon.is_some() && matches!(entry.kind, Kind::Matrix(_)) {
                let [rows, cols] = entry.shape;
                stacks.entry([rows.min(cols), rows.max(cols)]).or_default().push(index);
                moments.push(vec![zeros()]);
            } else {
                moments.push(vec![zeros(), zeros()]);
            }
        }
        Optimizer { adamw, muon, moments, stacks }
    }

    /// The moments of each parameter.
    pub fn moments(&self) -> &[Vec<Tensor<B, 2>>] {
        &self.moments
    }

    /// Goes on from moments that were saved.
    pub fn set_moments(&mut self, moments: Vec<Vec<Tensor<B, 2>>>) {
        self.moments = moments;
    }

    /// Moves every parameter against its gradient, as step `number` from 1. Neither belongs to a graph.
    pub fn step(&mut self, number: u64, parameters: &mut [Tensor<B, 2>], gradients: &[Tensor<B, 2>], rates: Rates) {
        if let Some(muon) = self.muon {
            for stack in self.stacks.values() {
                step_muon(muon, stack, parameters, gradients, &mut self.moments, rates);
            }
        }
        let AdamW { betas: [beta1, beta2], eps } = self.adamw;
        let corrections = [beta1, beta2].map(|beta| 1.0 - beta.powf(number as f64));
        for ((parameter, gradient), moments) in parameters.iter_mut().zip(gradients).zip(&mut self.moments) {
            let [mean, square] = &mut moments[..] else { continue };
            *mean = mean.clone().mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
            let squares = gradient.clone() * gradient.clone();
            *square = square.clone().mul_scalar(beta2) + squares.mul_scalar(1.0 - beta2);
            let root = square.clone().sqrt().div_scalar(corrections[1].sqrt()).add_scalar(eps);
            let decayed = parameter.clone().mul_scalar(1.0 - rates.adamw * rates.weight_decay);
            *parameter = decayed - (mean.clone() / root).mul_scalar(rates.adamw / corrections[0]);
        }
    }
}

/// One step of Muon for parameters whose shapes are the same when turned: their updates are one product after the other of
/// the whole stack.
fn step_muon<B: Backend>(
    muon: Muon,
    stack: &[usize],
    parameters: &mut [Tensor<B, 2>],
    gradients: &[Tensor<B, 2>],
    moments: &mut [Vec<Tensor<B, 2>>],
    rates: Rates,
) {
    let mut updates = Vec::new();
    for &index in stack {
        let gradient = gradients[index].clone();
        let sum = moments[index][0].clone().mul_scalar(muon.momentum) + gradient.clone();
        moments[index][0] = sum.clone();
        // Nesterov's look ahead.
        let update = gradient + sum.mul_scalar(muon.momentum);
        let [rows, cols] = update.dims();
        updates.push(if rows > cols { update.transpose() } else { update });
    }
    let updates = orthogonalize(Tensor::stack::<3>(updates, 0), muon);
    for (update, &index) in updates.iter_dim(0).zip(stack) {
        let update = update.squeeze_dim::<2>(0);
        let [rows, cols] = parameters[index].dims();
        let update = if rows > cols { update.transpose() } else { update };
        // An update of a high matrix has the size of one whose rows are as many as its columns.
        let rate = rates.muon * (rows as f64 / cols as f64).max(1.0).sqrt();
        let decayed = parameters[index].clone().mul_scalar(1.0 - rates.muon * rates.weight_decay);
        parameters[index] = decayed - update.mul_scalar(rate);
    }
}

/// Matrices `[count, rows, cols]`, not higher than wide, with singular values of about 1.
fn orthogonalize<B: Backend>(x: Tensor<B, 3>, muon: Muon) -> Tensor<B, 3> {
    let [a, b, c] = COEFFICIENTS;
    let norm = (x.clone() * x.clone()).sum_dims(&[1, 2]).sqrt().add_scalar(1e-7);
    let mut x = (x / norm).cast(muon.precision);
    for _ in 0..muon.steps {
        let square = x.clone().matmul(x.clone().transpose());
        let polynomial = square.clone().mul_scalar(b) + square.clone().matmul(square).mul_scalar(c);
        x = x.clone().mul_scalar(a) + polynomial.matmul(x);
    }
    x.cast(FloatDType::F32)
}

/// Scales gradients so that the norm of all together is at most `largest`; gives the norm before `[1]`.
pub fn clip<B: Backend>(gradients: &mut [Tensor<B, 2>], largest: f64) -> Option<Tensor<B, 1>> {
    let squares = gradients.iter().map(|gradient| (gradient.clone() * gradient.clone()).sum());
    let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(largest).clamp_max(1.0).reshape([1, 1]);
    for gradient in gradients {
        *gradient = gradient.clone() * factor.clone();
    }
    Some(norm)
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_tensor::TensorData;

    use super::*;

    fn matrices(count: usize, rows: usize, cols: usize) -> Tensor<Flex, 3> {
        let values: Vec<f32> = (0..count * rows * cols).map(|i| ((i * i * 7 + i * 13) % 101) as f32 - 50.0).collect();
        Tensor::from_data(TensorData::new(values, [count, rows, cols]), &FlexDevice)
    }

    #[test]
    fn updates_of_muon_are_about_as_long_in_every_direction() {
        let muon = Muon { momentum: 0.95, steps: 5, precision: FloatDType::F32 };
        let x = orthogonalize(matrices(3, 12, 20), muon);
        // Rows are combined in several ways; the length of each result is between the extreme singular values.
        let ways = matrices(3, 30, 12);
        let length = |x: Tensor<Flex, 3>| (x.clone() * x).sum_dim(2).sqrt();
        let ratios = (length(ways.clone().matmul(x)) / length(ways)).into_data().into_vec::<f32>().unwrap();
        assert!(ratios.iter().all(|ratio| (0.6..1.3).contains(ratio)), "{ratios:?}");
    }

    #[test]
    fn gradients_are_clipped_together() {
        let of = |value: f32| Tensor::<Flex, 2>::full([2, 2], value, &FlexDevice);
        let mut gradients = [of(3.0), of(4.0)];
        let norm = clip(&mut gradients, 1.0).unwrap().into_data().into_vec::<f32>().unwrap();
        assert_eq!(norm, [10.0]);
        let found = gradients[1].clone().into_data().into_vec::<f32>().unwrap();
        assert!(found.iter().all(|value| (value - 0.4).abs() < 1e-6), "{found:?}");
        // Short ones stay as they are.
        let mut gradients = [of(0.25)];
        clip(&mut gradients, 1.0);
        assert_eq!(gradients[0].clone().into_data().into_vec::<f32>().unwrap(), [0.25; 4]);
    }
}
