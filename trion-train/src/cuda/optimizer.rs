//! `AdamW` and Muon on a GPU.

use super::gpu::{Address, Form, Gpu, HALF, Product, SINGLE, arguments};
use super::plan::{Plan, Stack};
use super::{Cuda, PARTS};
use crate::error::Result;
use crate::learner::Step;
use crate::optimizer::{AdamW, COEFFICIENTS, Muon};

/// Bytes of `Control` in `kernels/optimizer.cu`: loss, norm, factor, whether all is finite.
pub(super) const CONTROL: usize = 16;

pub(super) struct Memory {
    pub(super) control: Address,
    /// Parts of sums of squares.
    sums: Address,
    stacks: Vec<StackMemory>,
    /// Updates of the largest stack, twice; and its squares, twice.
    updates: [Address; 2],
    squares: [Address; 2],
}

struct StackMemory {
    offsets: Address,
    heights: Address,
}

impl Memory {
    pub(super) fn new(gpu: &mut Gpu, plan: &Plan) -> Result<Self> {
        let largest = |bytes: fn(&Stack) -> usize| plan.stacks.iter().map(bytes).max().unwrap_or(0);
        let updates = largest(|stack| stack.offsets.len() * stack.shape[0] * stack.shape[1] * HALF);
        let squares = largest(|stack| stack.offsets.len() * stack.shape[0] * stack.shape[0] * HALF);
        let mut stacks = Vec::new();
        for stack in &plan.stacks {
            stacks.push(StackMemory { offsets: gpu.constant(&stack.offsets)?, heights: gpu.constant(&stack.heights)? });
        }
        Ok(Memory {
            control: gpu.allocate(CONTROL)?,
            sums: gpu.allocate(gpu.blocks.max(plan.matrices.len() * PARTS) * SINGLE)?,
            stacks,
            updates: [gpu.allocate(updates)?, gpu.allocate(updates)?],
            squares: [gpu.allocate(squares)?, gpu.allocate(squares)?],
        })
    }
}

impl Cuda {
    /// Clips the gradients and moves the parameters; the loss, and the norm before.
    pub(super) fn move_parameters(&mut self, step: &Step<'_>) -> Result<[f32; 2]> {
        let (gpu, kernels, m) = (&self.gpu, &self.kernels, &self.optimizer);
        let squares = arguments![self.gradients, self.plan.count, m.sums];
        gpu.launch(&kernels.squares, [gpu.blocks, 1, 1], 256, squares)?;
        gpu.launch(&kernels.clip, [1, 1, 1], 1024, arguments![m.sums, gpu.blocks, step.clip, m.control])?;
        if self.muon {
            for (stack, memory) in self.plan.stacks.iter().zip(&m.stacks) {
                self.muon(stack, memory, step)?;
            }
        }
        let AdamW { betas: [beta1, beta2], eps } = AdamW::default();
        let [mean, square] = self.moments;
        let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(step.number as f64));
        let count = if self.muon { self.plan.matrices_at } else { self.plan.count };
        let adamw = arguments![
            self.parameters,
            self.gradients,
            mean,
            square,
            m.control,
            step.rates.adamw,
            step.rates.weight_decay,
            beta1,
            beta2,
            eps,
            correction1,
            correction2,
            count,
        ];
        gpu.launch(&kernels.adamw, [gpu.blocks, 1, 1], 256, adamw)?;
        let control = gpu.read::<f32>(m.control, 2)?;
        Ok([control[0], control[1]])
    }

    /// One step of Muon for the matrices of a stack ([`crate::optimizer`]).
    fn muon(&self, stack: &Stack, memory: &StackMemory, step: &Step<'_>) -> Result<()> {
        let (gpu, kernels, m) = (&self.gpu, &self.kernels, &self.optimizer);
        let Muon { momentum, steps, .. } = Muon::default();
        let StackMemory { offsets, heights } = *memory;
        let [short, long] = stack.shape;
        let (matrices, count) = (stack.offsets.len(), short * long);
        let grid = [PARTS, matrices, 1];
        let first = arguments![self.gradients, self.moments[0], offsets, count, m.control, momentum, m.sums];
        gpu.launch(&kernels.muon_momentum, grid, 256, first)?;
        let [mut x, mut next] = m.updates;
        let normalize =
            arguments![self.gradients, self.moments[0], offsets, heights, count, m.control, momentum, m.sums, PARTS, x];
        gpu.launch(&kernels.muon_normalize, grid, 256, normalize)?;
        let [a, b, c] = COEFFICIENTS.map(|coefficient| coefficient as f32);
        let [square, polynomial] = m.squares;
        let product = |form, shape, [left, right, to]: [Address; 3], factors| Product {
            form,
            shape,
            a: left,
            b: right,
            to,
            single: false,
            factors,
            count: matrices,
        };
        for _ in 0..steps {
            gpu.multiply(&product(Form::Turned, [short, short, long], [x, x, square], [1.0, 0.0]))?;
            gpu.copy(square, polynomial, matrices * short * short * HALF)?;
            gpu.multiply(&product(Form::Turned, [short, short, short], [square, square, polynomial], [c, b]))?;
            gpu.copy(x, next, matrices * count * HALF)?;
            gpu.multiply(&product(Form::Plain, [short, long, short], [polynomial, x, next], [1.0, a]))?;
            (x, next) = (next, x);
        }
        let (rate, decay) = (step.rates.muon, step.rates.weight_decay);
        let last = arguments![self.parameters, offsets, heights, count, m.control, rate, decay, x];
        gpu.launch(&kernels.muon_move, grid, 256, last)
    }
}
