//! Steps on a GPU beside those of the processor in single precision. A machine with a GPU runs them so:
//! `cargo test -p trion-train --features cuda --test cuda -- --ignored`.
#![cfg(feature = "cuda")]

use trion_engine::{Activation, Config};
use trion_train::Device;
use trion_train::layout::{Kind, layout};
use trion_train::learner::{Batch, Step};
use trion_train::optimizer::Rates;
use trion_train::parameters::{Initialization, initial};
use trion_train::recipe::{OptimizerName, Precision, Recipe};
use trion_train::schedule::Schedule;
use trion_train::shape::{Architecture, Shape};

/// Two layers of unusual sizes; heads of 16 numbers, three query heads to a key head.
const SMALL: Config = Config {
    vocab_size: 280,
    hidden_size: 96,
    intermediate_size: 176,
    num_hidden_layers: 2,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    head_dim: 16,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    projection_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    hidden_act: Activation::Relu2,
    activation_group: 0,
};

/// Two layers of the shape of 14 million parameters.
const WIDE: Config = Config { vocab_size: 1000, hidden_size: 384, intermediate_size: 1024, head_dim: 64, ..SMALL };

/// Heads of 32 numbers, `SiLU`.
const SILU: Config = Config { head_dim: 32, hidden_size: 192, hidden_act: Activation::Silu, ..SMALL };

fn recipe(optimizer: OptimizerName, precision: Precision, sequences: usize, positions: usize) -> Recipe {
    Recipe {
        shape: Architecture::Named(Shape::Micro),
        positions,
        sequences,
        accumulate: 1,
        schedule: Schedule {
            steps: 1,
            warmup: 0,
            adamw: 1.0,
            muon: 1.0,
            weight_decay: 0.0,
            middle: 1.0,
            last: 1.0,
            lambda_steps: 0,
        },
        optimizer,
        initialization: Initialization::Normal,
        from: None,
        ternary: true,
        weight_group: 0,
        precision,
        clip: 1.0,
        seed: 1,
    }
}

/// Numbers that are as good as random.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

fn batch(config: &Config, sequences: usize, positions: usize, seed: u64) -> Batch {
    let mut state = seed;
    // Some tokens are frequent.
    let mut token = || (random(&mut state) % config.vocab_size as u32).min(random(&mut state) % 400);
    let windows: Vec<Vec<u32>> = (0..sequences).map(|_| (0..=positions).map(|_| token()).collect()).collect();
    Batch::new(&windows, positions)
}

/// The length of the difference, in parts of that of `expected`.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    let apart = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (apart / squares(&mut expected.iter().copied()).max(1e-30)).sqrt()
}

/// Compares a step from the same parameters.
fn compare(config: &Config, optimizer: OptimizerName, lambda: f64, [sequences, positions, batches]: [usize; 3]) {
    let entries = layout(config);
    let mut start = initial(&entries, Initialization::Normal, 3);
    let mut state = 5;
    for (entry, values) in entries.iter().zip(&mut start) {
        if entry.kind == Kind::Norm {
            values.iter_mut().for_each(|value| *value = 0.5 + random(&mut state) as f32 / 2_f32.powi(31));
        }
    }
    let batches: Vec<Batch> = (0..batches as u64).map(|n| batch(config, sequences, positions, n + 1)).collect();
    let step = Step {
        number: 1,
        batches: &batches,
        lambda,
        rates: Rates { adamw: 1e-3, muon: 0.02, weight_decay: 0.1 },
        clip: 1.0,
    };
    let run = |device: Device, precision| {
        let recipe = recipe(optimizer, precision, sequences, positions);
        let mut learner = device.learner(&recipe, config).unwrap();
        learner.set_parameters(&start).unwrap();
        let before = learner.loss(&batches[0]).unwrap();
        let found = learner.step(&step).unwrap();
        (before, found, learner.parameters().unwrap(), learner.moments().unwrap())
    };
    let expected = run(Device::Cpu, Precision::F32);
    let found = run(Device::Cuda(0), Precision::Bf16);
    println!("{optimizer:?} {lambda} {positions}: losses {:?} and {:?}", found.1, expected.1);
    let close = |a: f32, b: f32, tolerance: f32| (a - b).abs() < tolerance * b.abs();
    assert!(close(found.0, expected.0, 3e-3), "the loss is {}, expected {}", found.0, expected.0);
    assert!(close(found.1[0], expected.1[0], 3e-3), "the loss is {}, expected {}", found.1[0], expected.1[0]);
    assert!(close(found.1[1], expected.1[1], 2e-2), "the norm is {}, expected {}", found.1[1], expected.1[1]);
    for (index, entry) in entries.iter().enumerate() {
        // The first moment is in proportion to the gradient.
        let gradient = difference(&found.3[index][0], &expected.3[index][0]);
        let moved = |parameters: &[Vec<f32>]| -> Vec<f32> {
            parameters[index].iter().zip(&start[index]).map(|(now, before)| now - before).collect()
        };
        let step = difference(&moved(&found.2), &moved(&expected.2));
        println!("{}: gradient {gradient:.4}, step {step:.4}", entry.name);
        assert!(gradient < 0.06, "the gradient of {} is {gradient} apart", entry.name);
        // Muon makes every direction of the gradient as long as any, those that are little more than rounding, too; steps that
        // have nothing to do with each other are 1.4 apart.
        assert!(step < 0.7, "the step of {} is {step} apart", entry.name);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gradients_of_float_layers_are_the_processors() {
    compare(&SMALL, OptimizerName::Adamw, 0.0, [3, 23, 1]);
    compare(&WIDE, OptimizerName::Muon, 0.0, [2, 150, 1]);
}

#[test]
#[ignore = "needs a GPU"]
fn gradients_of_ternary_layers_are_the_processors() {
    // More tokens than columns, since Muon makes as much of directions that no token has as of any.
    compare(&SMALL, OptimizerName::Muon, 1.0, [16, 23, 1]);
    compare(&WIDE, OptimizerName::Muon, 1.0, [2, 150, 2]);
    compare(&SILU, OptimizerName::Adamw, 1.0, [2, 64, 1]);
    compare(&SILU, OptimizerName::Adamw, 0.5, [1, 129, 1]);
}

#[test]
#[ignore = "needs a GPU"]
fn a_step_of_no_number_moves_nothing_and_steps_repeat() {
    let recipe = recipe(OptimizerName::Muon, Precision::Bf16, 2, 40);
    let mut learner = Device::Cuda(0).learner(&recipe, &SMALL).unwrap();
    let entries = layout(&SMALL);
    let start = initial(&entries, Initialization::Identity, 1);
    let batches = [batch(&SMALL, 2, 40, 9)];
    let rates = Rates { adamw: 1e-3, muon: 0.02, weight_decay: 0.1 };
    let step = Step { number: 1, batches: &batches, lambda: 1.0, rates, clip: 1.0 };
    let mut ends = Vec::new();
    for _ in 0..2 {
        learner.set_parameters(&start).unwrap();
        let zeros = learner.moments().unwrap().iter().map(|m| m.iter().map(|v| vec![0.0; v.len()]).collect()).collect();
        learner.set_moments(&zeros).unwrap();
        learner.step(&step).unwrap();
        ends.push((learner.parameters().unwrap(), learner.moments().unwrap()));
    }
    assert!(ends[0] == ends[1], "the same step gave other numbers");
    assert!(ends[0].0[1] != start[1]);

    let mut broken = start;
    broken[0][0] = f32::NAN;
    let batches = [Batch { ids: vec![0; 80], ..batches[0].clone() }];
    learner.set_parameters(&broken).unwrap();
    let [loss, _] = learner.step(&Step { batches: &batches, ..step }).unwrap();
    assert!(loss.is_nan());
    let bits = |parameters: &[Vec<f32>]| parameters.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&learner.parameters().unwrap()), bits(&broken));
}
