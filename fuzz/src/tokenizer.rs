//! Tokenizers: a `tokenizer.json`, a zero, and a text; or, where the first byte is 1, the vocabulary of a GGUF file.

use arbitrary::{Arbitrary, Unstructured};
use trion_engine::text_stream::TextStream;
use trion_engine::tokenizer::{GgufVocabulary, Tokenizer, tokenizer_json_from_gguf};

/// The metadata of a GGUF file.
#[derive(Debug, Arbitrary)]
struct Vocabulary<'a> {
    llama: bool,
    pre: u8,
    tokens: Vec<&'a str>,
    scores: Vec<f32>,
    token_types: Vec<u8>,
    /// Places of tokens, whose texts become a pair.
    merges: Vec<(u8, u8)>,
    ids: [Option<u8>; 3],
    flags: [Option<bool>; 3],
    text: &'a str,
}

/// Encodes a text and decodes it again, in every way.
///
/// # Panics
/// If an id is none of the vocabulary's, or ways that must agree do not.
pub fn check(tokenizer: &Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text, false) else { return };
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
    let around = tokenizer.encode(text, true).expect("what can be encoded can be with special tokens");
    assert!(around.windows(ids.len().max(1)).any(|some| some == ids) || ids.is_empty(), "{ids:?} in {around:?}");
    for skip in [false, true] {
        let decoded = tokenizer.decode(&around, skip).expect("ids of the vocabulary");
        let mut stream = TextStream::new(tokenizer, skip);
        let mut streamed: String = around.iter().map(|id| stream.push(tokenizer, *id).to_owned()).collect();
        streamed.push_str(stream.finish());
        assert_eq!(streamed, decoded, "token by token");
    }
    for id in [0, ids.first().copied().unwrap_or(0), tokenizer.vocab_size() as u32, u32::MAX] {
        assert_eq!(tokenizer.decode(&[id], false).is_ok(), tokenizer.id_to_token(id).is_some(), "id {id}");
    }
}

/// Reads the tokenizer, and uses it if it can be read.
///
/// # Panics
/// If what can be read does not hold to [`check`].
pub fn run(bytes: &[u8]) {
    if let Some((1, rest)) = bytes.split_first() {
        let Ok(input) = Vocabulary::arbitrary_take_rest(Unstructured::new(rest)) else { return };
        return from_gguf(&input);
    }
    let (json, text) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    match Tokenizer::from_json(json) {
        Ok(tokenizer) => check(&tokenizer, &String::from_utf8_lossy(text.get(1..).unwrap_or(&[]))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn from_gguf(input: &Vocabulary<'_>) {
    let names = ["llama-bpe", "qwen2", "gpt-2", "default", "unknown"];
    let token = |at: u8| input.tokens.get(usize::from(at)).copied().unwrap_or("a");
    let merges: Vec<String> =
        input.merges.iter().map(|(left, right)| format!("{} {}", token(*left), token(*right))).collect();
    let [bos, eos, unk] = input.ids.map(|id| id.map(u32::from));
    let [add_bos, add_eos, add_space_prefix] = input.flags;
    let vocabulary = GgufVocabulary {
        model: if input.llama { "llama" } else { "gpt2" },
        pre: names.get(usize::from(input.pre)).copied(),
        tokens: input.tokens.clone(),
        scores: if input.llama { scores(input) } else { input.scores.clone() },
        token_types: input.token_types.iter().map(|kind| i32::from(*kind)).collect(),
        merges: merges.iter().map(String::as_str).collect(),
        bos,
        eos,
        unk,
        add_bos,
        add_eos,
        add_space_prefix,
    };
    match tokenizer_json_from_gguf(&vocabulary).and_then(|json| Tokenizer::from_json(json.as_bytes())) {
        Ok(tokenizer) => check(&tokenizer, input.text),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// As many scores as there are tokens: any other number is refused at once.
fn scores(input: &Vocabulary<'_>) -> Vec<f32> {
    (0..input.tokens.len()).map(|id| input.scores.get(id).copied().unwrap_or(-(id as f32))).collect()
}
