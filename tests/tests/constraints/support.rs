//! Models and walks.

use std::fs;

use serde_json::Value;
use trion_engine::{
    Constraint, ConstraintState, GenerateOptions, Generated, Grammar, Mask, Model, SamplerOptions, Serial, generate,
};
use trion_tests::{copy_golden, root};

/// The model of the repository, of 4096 tokens.
pub(crate) fn tales() -> Model {
    Model::open(root().join("models/tales-14m.safetensors")).unwrap()
}

/// A golden checkpoint with a byte-level tokenizer of 288 tokens, a longer context and `change` to its files' JSON.
pub(crate) fn bytes_model(test: &str, change: impl FnOnce(&mut Value, &mut Value)) -> Model {
    let directory = copy_golden(&format!("constraints-{test}"), "bitnet_offline");
    let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(directory.join(name)).unwrap()).unwrap();
    let (mut config, mut tokenizer) = (read("config.json"), read("tokenizer.json"));
    config["max_position_embeddings"] = 1024.into();
    change(&mut config, &mut tokenizer);
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Model::open(directory).unwrap()
}

/// A golden checkpoint with a tokenizer in the manner of `SentencePiece`, whose tokens are `pieces`.
pub(crate) fn pieces_model(test: &str, pieces: &[&str]) -> Model {
    let directory = copy_golden(&format!("constraints-{test}"), "1bitllm");
    let vocabulary: Value =
        pieces.iter().enumerate().map(|(id, piece)| ((*piece).to_owned(), Value::from(id))).collect();
    let replace =
        |from: &str, to: &str| serde_json::json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": replace(" ", "▁"),
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []},
    });
    fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = fs::read(directory.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = 1024.into();
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    Model::open(directory).unwrap()
}

/// Ways to choose tokens: greedy, several seeds at temperature 1, and truncated.
pub(crate) fn samplers() -> Vec<SamplerOptions> {
    let drawn = (1..6).map(|seed| SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::GREEDY });
    let truncated = SamplerOptions { temperature: 1.0, seed: 9, ..SamplerOptions::GREEDY };
    let truncated = [
        SamplerOptions { top_k: 1, ..truncated },
        SamplerOptions { top_k: 40, top_p: 0.9, min_p: 0.05, repetition_penalty: 1.1, ..truncated },
    ];
    [SamplerOptions::GREEDY].into_iter().chain(drawn).chain(truncated).collect()
}

/// A text after a prompt that asks for nothing.
pub(crate) fn write(model: &Model, constraint: &Constraint, sampler: SamplerOptions, max_tokens: usize) -> Generated {
    let options =
        GenerateOptions { max_tokens, sampler, constraint: Some(constraint.clone()), ..GenerateOptions::default() };
    let mut streamed = String::new();
    let generated = generate(model, "a", &options, &Serial, |piece| {
        streamed.push_str(piece);
        true
    });
    let generated = generated.unwrap();
    assert_eq!(generated.text, streamed);
    generated
}

/// The tokens that may come next; none where the text has ended, or no token fits.
pub(crate) fn allowed(state: &mut ConstraintState) -> Vec<u32> {
    let Mask::Allowed(mask) = state.mask() else { return Vec::new() };
    (0..mask.len() as u32 * 32).filter(|token| mask[*token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

/// The state after the tokens of `text`, one character each.
pub(crate) fn after(model: &Model, grammar: Grammar<'_>, text: &str) -> ConstraintState {
    let mut state = Constraint::new(model, grammar).unwrap().start().unwrap();
    for character in text.chars() {
        state.accept(character_id(model, character)).unwrap();
    }
    state
}

/// The token that is one character.
pub(crate) fn character_id(model: &Model, character: char) -> u32 {
    model.tokenizer().unwrap().token_to_id(&character.to_string()).unwrap()
}

/// xorshift64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        items[(self.0 % items.len() as u64) as usize]
    }
}
