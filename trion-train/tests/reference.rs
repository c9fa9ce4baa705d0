//! Losses, gradients and steps beside the reference: a tiny `BitNet` that `PyTorch` trained for two steps with straight-through
//! rounding (case e of the shared cases).

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trion_engine::{Activation, Config};
use trion_train::layout::{Entry, layout};
use trion_train::model::Forward;
use trion_train::optimizer::{AdamW, Optimizer, Rates};
use trion_train::parameters::load;
use trion_train::{Arithmetic, Autodiff, Flex, FlexDevice, Int, Tensor, TensorData};

/// The case, where the shared files are.
fn case() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/e_ste_gradients");
    if !path.exists() {
        println!("skipped: {} is not here", path.display());
    }
    path.exists().then_some(path)
}

const CONFIG: Config = Config {
    vocab_size: 512,
    hidden_size: 64,
    intermediate_size: 176,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    projection_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    hidden_act: Activation::Relu2,
    activation_group: 0,
};

/// Learning rate of the reference.
const RATE: f64 = 1e-3;

fn values(tensor: &Tensor<Flex, 2>) -> Vec<f32> {
    tensor.clone().into_data().into_vec().unwrap()
}

/// The largest difference, in parts of the largest magnitude of `expected`.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

fn reference<'a>(file: &'a SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data: &'a [u8] = file.tensor(name).unwrap().data();
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn losses_gradients_and_steps_are_those_of_the_reference() {
    let Some(case) = case() else { return };
    let device = FlexDevice;
    let entries: Vec<Entry> = layout(&CONFIG);
    let stored = load(&case.join("model.safetensors"), &entries).unwrap();
    let parameter = |(entry, values): (&Entry, Vec<f32>)| {
        Tensor::<Flex, 2>::from_data(TensorData::new(values, entry.shape), &device)
    };
    let mut parameters: Vec<_> = entries.iter().zip(stored).map(parameter).collect();
    let bytes = fs::read(case.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids: Vec<i32> =
        file.tensor("input_ids").unwrap().data().as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [3, 24]), &device);
    let (inputs, targets) = (ids.clone().narrow(1, 0, 23), ids.clone().narrow(1, 1, 23));

    let logits = Forward::<Flex>::new(&CONFIG, 24, Arithmetic::EXACT, &device).logits(&parameters, ids);
    let found = values(&logits);
    println!("logits {}", difference(&found, &reference(&file, "logits")));
    assert!(difference(&found, &reference(&file, "logits")) < 1e-5);

    let losses = reference(&file, "losses");
    let forward = Forward::<Autodiff<Flex>>::new(&CONFIG, 23, Arithmetic::EXACT, &device);
    let mut optimizer = Optimizer::new(&entries, &parameters, AdamW::default(), None);
    for (step, expected) in losses.iter().enumerate() {
        let (loss, gradients) = forward.gradients(&parameters, inputs.clone(), targets.clone());
        let found = loss.into_data().into_vec::<f32>().unwrap()[0];
        println!("loss {step}: {found}, expected {expected}");
        assert!((found - expected).abs() < 2e-5 * expected.abs(), "loss {step} is {found}, expected {expected}");
        if step == 0 {
            for (entry, gradient) in entries.iter().zip(&gradients) {
                let expected = reference(&file, &format!("grad.{}", entry.name));
                let found = difference(&values(gradient), &expected);
                println!("{}: {found}", entry.name);
                assert!(found < 1e-4, "the gradient of {} differs by {found} of its largest element", entry.name);
            }
        }
        let rates = Rates { adamw: RATE, muon: 0.0, weight_decay: 0.1 };
        optimizer.step(step as u64 + 1, &mut parameters, &gradients, rates);
        if step == 0 {
            for ((entry, parameter), gradient) in entries.iter().zip(&parameters).zip(&gradients) {
                let expected = reference(&file, &format!("step1.{}", entry.name));
                for ((found, expected), gradient) in values(parameter).iter().zip(&expected).zip(values(gradient)) {
                    // The first step is that of g / (|g| + 1e-8): of no more precision than g where g is small, and in any
                    // case no longer than the rate.
                    let tolerance = if gradient.abs() > 1e-5 { 1e-6 } else { 2.0 * RATE };
                    let found = f64::from(found - expected).abs();
                    assert!(found < tolerance, "{} differs by {found} after a step", entry.name);
                }
            }
        }
    }
}
