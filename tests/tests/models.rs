//! The models of the repository: what models/README.md promises of them.

use std::fs;

use trion_engine::{GenerateOptions, Model, Pool, SamplerOptions, generate};
use trion_tests::root;

#[test]
fn models_are_as_small_as_promised_and_write() {
    for (name, most) in [("tales-14m", 8_000_000), ("micro", 300_000)] {
        let path = root().join("models").join(name).with_extension("safetensors");
        let bytes = fs::metadata(&path).unwrap().len();
        assert!(bytes <= most, "{name} has {bytes} bytes");
        let model = Model::open(&path).unwrap();
        let options = GenerateOptions { max_tokens: 24, sampler: SamplerOptions::GREEDY, ..GenerateOptions::default() };
        let written = generate(&model, "<|endoftext|>Once upon a time", &options, &Pool::new(1).unwrap(), |_| true);
        let text = written.unwrap().text;
        let words = text.split_whitespace().filter(|word| word.bytes().all(|b| b.is_ascii_alphabetic()));
        assert!(words.count() >= 4, "{name} wrote {text:?}");
    }
}
