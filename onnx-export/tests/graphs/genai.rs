//! onnxruntime-genai on exported folders.

use std::fs;

use serde_json::{Value, json};
use trion_engine::{Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};
use trion_onnx::{ExportOptions, export};
use trion_tests::{golden, onnx_packages, python, scratch};

use crate::default_model;

/// The most that a rounding tie may decide (docs/onnx.md).
const MARGIN: f32 = 0.4;

/// Trion's greedy continuation, and for each token by how much its logit exceeds the next one's.
fn greedy(model: &Model, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
    let context = prompt.len() + count;
    let options = SessionOptions { max_batch: context.min(64), ..SessionOptions::new(context) };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
    let (mut tokens, mut margins) = (Vec::new(), Vec::new());
    session.evaluate(prompt, &Serial).unwrap();
    while tokens.len() < count {
        let logits = session.logits().unwrap();
        let token = sampler.sample(logits, &[]);
        let others = logits.iter().enumerate().filter(|(i, _)| *i != token as usize).map(|(_, logit)| *logit);
        margins.push(logits[token as usize] - others.fold(f32::MIN, f32::max));
        tokens.push(token);
        session.evaluate(&[token], &Serial).unwrap();
    }
    (tokens, margins)
}

#[test]
fn onnxruntime_genai_goes_on_as_trion_does() {
    let Some(packages) = onnx_packages() else { return };
    let scratch = scratch("onnx-genai");
    for (name, path) in
        [("default", default_model()), ("bitnet", golden("bitnet_offline")), ("qwen3", golden("qwen3_online"))]
    {
        let model = Model::open(path).unwrap();
        let directory = scratch.join(name);
        export(&model, &directory, &ExportOptions::default()).unwrap();
        let mut cases: Vec<Value> = Vec::new();
        let mut margins = Vec::new();
        let vocab_size = model.config().vocab_size as u32;
        for length in [1, 2, 5, 9, 14] {
            let prompt: Vec<u32> =
                (0..length).map(|i| (i * i * 31 + i * 7 + length) % (vocab_size - 16) + 16).collect();
            let (mut expected, margin) = greedy(&model, &prompt, 32);
            if let Some(end) = expected.iter().position(|token| model.eos_token_ids().contains(token)) {
                expected.truncate(end + 1);
            }
            cases.push(json!({ "prompt": prompt, "expected": expected }));
            margins.push(margin);
        }
        if model.has_tokenizer() {
            for text in ["Once upon a time", "\"Well,\" he said, \"it's 1842 – naïve?\""] {
                let ids = model.tokenizer().unwrap().encode(text, false).unwrap();
                cases.push(json!({ "text": text, "ids": ids }));
            }
        }
        let file = scratch.join(format!("{name}.json"));
        fs::write(&file, Value::from(cases.clone()).to_string()).unwrap();
        let output = python(&packages, "onnx-export/tests/python/genai_generate.py", &[&directory, &file]);
        let errors = String::from_utf8_lossy(&output.stderr);
        let found: Vec<Vec<u32>> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{name}: {errors}"));
        assert_eq!(found.len(), cases.len(), "{errors}");
        let mut equal = 0;
        for (i, (case, found)) in cases.iter().zip(&found).enumerate() {
            let key = if case.get("text").is_some() { "ids" } else { "expected" };
            let expected: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
            let ended = |token: &u32| model.eos_token_ids().contains(token);
            let part = found.iter().zip(&expected).position(|(a, b)| a != b);
            match (part, margins.get(i)) {
                (Some(at), Some(margins)) => {
                    println!("{name}: prompt {i} parts at token {at}, by a margin of {}", margins[at]);
                    assert!(margins[at] < MARGIN, "{name}: {errors}");
                }
                (Some(_), None) => panic!("{name}: {errors}"),
                (None, _) => {
                    // The token that ends a text is not given out.
                    let expected_len =
                        expected.len() - usize::from(key == "expected" && expected.last().is_some_and(ended));
                    assert_eq!(found.len(), expected_len, "{name}: {errors}");
                    equal += 1;
                }
            }
        }
        println!("{name}: {equal} of {} equal", cases.len());
        assert!(equal + 1 >= cases.len(), "{name}: {errors}");
    }
}
