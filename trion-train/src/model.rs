//! The forward pass: token ids to logits and loss, in the mathematics of the engine (docs/numerics.md).

use burn_tensor::backend::{AutodiffBackend, Backend};
use burn_tensor::{Int, Tensor, TensorData, activation};
use trion_engine::{Activation, Config};

use crate::bitlinear::{Activations, Arithmetic, product};
use crate::layout::BLOCK;

/// What a forward pass needs beside parameters: constants of a shape, on a device.
pub struct Forward<B: Backend> {
    config: Config,
    arithmetic: Arithmetic,
    /// Cosines and sines `[1, 1, positions, head_dim / 2]` of rotary embeddings.
    rotation: [Tensor<B, 4>; 2],
    /// What is added to attention scores `[1, 1, positions, positions]`: hides what comes later.
    mask: Tensor<B, 4>,
}

impl<B: Backend> Forward<B> {
    /// For sequences of `positions` tokens.
    pub fn new(config: &Config, positions: usize, arithmetic: Arithmetic, device: &B::Device) -> Self {
        let half = config.head_dim / 2;
        let mut rotation = [Vec::new(), Vec::new()];
        for position in 0..positions {
            for angle in angles(config, position) {
                rotation[0].push(angle.cos());
                rotation[1].push(angle.sin());
            }
        }
        let rotation =
            rotation.map(|values| Tensor::from_data(TensorData::new(values, [1, 1, positions, half]), device));
        let mut mask = vec![0.0_f32; positions * positions];
        for (row, mask) in mask.chunks_exact_mut(positions).enumerate() {
            mask[row + 1..].fill(-1e30);
        }
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, positions, positions]), device);
        Forward { config: *config, arithmetic, rotation, mask }
    }

    /// Changes how layers compute from here on.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        self.arithmetic = arithmetic;
    }

    /// Logits `[sequences * positions, vocab_size]` of `ids` `[sequences, positions]`, for parameters in the order of
    /// [`crate::layout::layout`].
    pub fn logits(&self, parameters: &[Tensor<B, 2>], ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [sequences, positions] = ids.dims();
        let config = &self.config;
        let mut h = parameters[0].clone().select(0, ids.reshape([sequences * positions]));
        for block in parameters[1..].chunks_exact(BLOCK) {
            let [input_norm, query, key, value, attention_norm, output, mlp_norm, gate, up, ffn_norm, down] = block
            else {
                unreachable!("chunks of {BLOCK}")
            };
            let x = Activations::new(self.norm(h.clone(), input_norm), self.arithmetic);
            let qkv = [query, key, value].map(|weight| x.project(weight, self.arithmetic));
            let attended = self.attention(qkv, sequences, positions);
            let x = Activations::new(self.norm(attended, attention_norm), self.arithmetic);
            h = h + x.project(output, self.arithmetic);
            let x = Activations::new(self.norm(h.clone(), mlp_norm), self.arithmetic);
            let [gate, up] = [gate, up].map(|weight| x.project(weight, self.arithmetic));
            let gate = match config.hidden_act {
                Activation::Relu2 => {
                    let positive = activation::relu(gate);
                    positive.clone() * positive
                }
                Activation::Silu => activation::silu(gate),
            };
            let x = Activations::new(self.norm(gate * up, ffn_norm), self.arithmetic);
            h = h + x.project(down, self.arithmetic);
        }
        let last = &parameters[parameters.len() - 1];
        product(self.norm(h, last), parameters[0].clone().transpose(), self.arithmetic)
    }

    /// The loss: mean cross entropy of `targets` `[sequences, positions]`, in nats a token.
    pub fn loss(
        &self,
        parameters: &[Tensor<B, 2>],
        ids: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
    ) -> Tensor<B, 1> {
        cross_entropy(self.logits(parameters, ids), targets)
    }

    /// `RMSNorm` of each row of `x` with `weights` `[1, cols]`.
    fn norm(&self, x: Tensor<B, 2>, weights: &Tensor<B, 2>) -> Tensor<B, 2> {
        let mean = (x.clone() * x.clone()).mean_dim(1).add_scalar(f64::from(self.config.rms_norm_eps));
        x * mean.sqrt().recip() * weights.clone()
    }

    /// Grouped-query attention over whole sequences, which nothing precedes: `[tokens, query_size]`.
    fn attention(&self, [query, key, value]: [Tensor<B, 2>; 3], sequences: usize, positions: usize) -> Tensor<B, 2> {
        let Config { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = self.config;
        let split = |x: Tensor<B, 2>, heads| x.reshape([sequences, positions, heads, head_dim]).swap_dims(1, 2);
        let query = self.rotate(split(query, heads));
        let key = self.rotate(split(key, kv_heads));
        let value = split(value, kv_heads);
        // The query heads of a key head follow each other, so they are more rows of the same product.
        let group = heads / kv_heads;
        let query = query.reshape([sequences, kv_heads, group * positions, head_dim]);
        let scores = product(query, key.swap_dims(2, 3), self.arithmetic).mul_scalar(1.0 / (head_dim as f64).sqrt());
        let scores = scores.reshape([sequences * kv_heads, group, positions, positions]) + self.mask.clone();
        let weights = activation::softmax(scores, 3).reshape([sequences, kv_heads, group * positions, positions]);
        let mixed = product(weights, value, self.arithmetic);
        let mixed = mixed.reshape([sequences, heads, positions, head_dim]).swap_dims(1, 2);
        mixed.reshape([sequences * positions, heads * head_dim])
    }

    /// Rotary embedding of `x` `[sequences, heads, positions, head_dim]`, the halves of a head paired.
    fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [cos, sin] = self.rotation.clone();
        let half = self.config.head_dim / 2;
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![first, b * cos + a * sin], 3)
    }
}

/// The angles by which rotary embedding turns the pairs of a head, at a position.
pub(crate) fn angles(config: &Config, position: usize) -> impl Iterator<Item = f32> {
    let (theta, head_dim) = (config.rope_theta, config.head_dim);
    // As the engine: the frequency in single precision, the angle's sine and cosine rounded once.
    (0..head_dim / 2).map(move |i| position as f32 * (1.0 / theta.powf((2 * i) as f32 / head_dim as f32)))
}

/// Gradients by parameters.
impl<A: AutodiffBackend> Forward<A> {
    /// The loss `[1]`, and its gradient by each parameter.
    pub fn gradients(
        &self,
        parameters: &[Tensor<A::InnerBackend, 2>],
        ids: Tensor<A::InnerBackend, 2, Int>,
        targets: Tensor<A::InnerBackend, 2, Int>,
    ) -> (Tensor<A::InnerBackend, 1>, Vec<Tensor<A::InnerBackend, 2>>) {
        let tracked: Vec<Tensor<A, 2>> =
            parameters.iter().map(|parameter| Tensor::from_inner(parameter.clone()).require_grad()).collect();
        let loss = self.loss(&tracked, Tensor::from_inner(ids), Tensor::from_inner(targets));
        let mut gradients = loss.backward();
        let of = |parameter: &Tensor<A, 2>| {
            parameter.grad_remove(&mut gradients).unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        let all = tracked.iter().map(of).collect();
        (loss.inner(), all)
    }
}

/// Mean cross entropy of `targets` `[sequences, positions]` by `logits` `[sequences * positions, vocab_size]`.
fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [sequences, positions] = targets.dims();
    let targets = targets.reshape([sequences * positions, 1]);
    activation::log_softmax(logits, 1).gather(1, targets).mean().neg()
}
