//! The linear layer of `BitNet` b1.58 with straight-through rounding.
//!
//! Forward, weights are trits times the mean of their magnitudes, and activations whole numbers of -128 to 127 over a
//! scale for each token, as the engine computes them (docs/numerics.md). Backward, rounding passes gradients on as if it
//! were not there, and scales are constants: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic
//! Neurons", as used by Wang et al. 2023, "`BitNet`".
//!
//! Products are of whole numbers: trits and quantised activations have no rounding in bfloat16 either, so that mixed
//! precision rounds nothing there but results, and gradients.

use burn_tensor::backend::Backend;
use burn_tensor::{FloatDType, Tensor};

/// Smallest scale, as the reference has it.
const SMALLEST: f64 = 1e-5;

/// How layers compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// How much of quantisation is applied, from 0 (a float model) to 1 (a ternary one). In between, weights and
    /// activations lie on the way from their float to their quantised value: a warm-up for models that were floats.
    pub lambda: f64,
    /// Columns of a row that have a scale of their own, with their activations; 0 for one scale of a matrix.
    pub group: usize,
    /// What products are computed in. Sums and everything else are single precision.
    pub products: FloatDType,
}

impl Arithmetic {
    /// Ternary, in single precision.
    pub const EXACT: Arithmetic = Arithmetic { lambda: 1.0, group: 0, products: FloatDType::F32 };
}

/// The product of two matrices, or of stacks of them, in the precision that was asked for.
pub(crate) fn product<B: Backend, const D: usize>(
    a: Tensor<B, D>,
    b: Tensor<B, D>,
    arithmetic: Arithmetic,
) -> Tensor<B, D> {
    match arithmetic.products {
        FloatDType::F32 => a.matmul(b),
        precision => a.cast(precision).matmul(b.cast(precision)).cast(FloatDType::F32),
    }
}

/// `value` forward, which is a constant, and the gradient of `through` backward.
fn straight_through<B: Backend, const D: usize>(value: Tensor<B, D>, through: Tensor<B, D>) -> Tensor<B, D> {
    // The difference is zero, so that what is added to `value` does not round it.
    value + (through.clone() - through.detach())
}

/// Rounds `scaled` to whole numbers within `range`, as far as `lambda` says.
fn round<B: Backend, const D: usize>(scaled: Tensor<B, D>, range: [f64; 2], lambda: f64) -> Tensor<B, D> {
    let constant = scaled.clone().detach();
    let rounded = constant.clone().round().clamp(range[0], range[1]);
    let value = if lambda < 1.0 { rounded.mul_scalar(lambda) + constant.mul_scalar(1.0 - lambda) } else { rounded };
    straight_through(value, scaled)
}

/// The rows of a matrix cut into groups, as rows of their own; `[rows, cols]` as it is if `group` is 0.
fn grouped<B: Backend>(x: Tensor<B, 2>, group: usize) -> Tensor<B, 2> {
    if group == 0 { x } else { x.reshape([-1, group as i32]) }
}

/// Activations `[tokens, cols]` that several projections share, quantised once.
pub struct Activations<B: Backend> {
    /// Multiplied by the scale and, where layers are ternary, rounded. With groups, divided by the scale again.
    scaled: Tensor<B, 2>,
    /// The scale of each token `[tokens, 1]`, if there is one for all of it.
    scale: Option<Tensor<B, 2>>,
}

impl<B: Backend> Activations<B> {
    /// Quantises each row of `x` `[tokens, cols]`, or each group of it: absmax, 127 steps.
    pub fn new(x: Tensor<B, 2>, arithmetic: Arithmetic) -> Self {
        if arithmetic.lambda <= 0.0 {
            return Activations { scaled: x, scale: None };
        }
        let shape = x.dims();
        let x = grouped(x, arithmetic.group);
        let largest = x.clone().detach().abs().max_dim(1).clamp_min(SMALLEST);
        let scale = largest.full_like(127.0) / largest;
        let scaled = round(x * scale.clone(), [-128.0, 127.0], arithmetic.lambda);
        if arithmetic.group > 0 {
            return Activations { scaled: (scaled / scale).reshape(shape), scale: None };
        }
        Activations { scaled, scale: Some(scale) }
    }

    /// The product `[tokens, rows]` with `weight` `[rows, cols]`, quantised by the mean of its magnitudes, or those of each
    /// group, rounded to half precision as files have it.
    pub fn project(&self, weight: &Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
        if arithmetic.group > 0 && arithmetic.lambda > 0.0 {
            let groups = grouped(weight.clone(), arithmetic.group);
            let mean = groups.clone().detach().abs().mean_dim(1).clamp_min(SMALLEST);
            let mean = mean.cast(FloatDType::F16).cast(FloatDType::F32);
            let trits = round(groups * mean.clone().recip(), [-1.0, 1.0], arithmetic.lambda);
            let weight = (trits * mean).reshape(weight.dims());
            return product(self.scaled.clone(), weight.transpose(), arithmetic);
        }
        let Some(scale) = &self.scale else {
            return product(self.scaled.clone(), weight.clone().transpose(), arithmetic);
        };
        let mean = weight.clone().detach().abs().mean().clamp_min(SMALLEST).reshape([1, 1]);
        let trits = round(weight.clone() * mean.clone().recip(), [-1.0, 1.0], arithmetic.lambda);
        product(self.scaled.clone(), trits.transpose(), arithmetic) * mean / scale.clone()
    }
}
