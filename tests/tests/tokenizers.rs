//! Tokenizers against the vectors that transformers wrote for the shared cases.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trion_engine::text_stream::TextStream;
use trion_engine::tokenizer::{GgufVocabulary, Tokenizer, tokenizer_json_from_gguf};

const BYTE_LEVEL: &str = "a_bitnet_packed_autobitlinear_offline";
const SENTENCE_PIECE: &str = "d_1bitllm_bitnet_fp32_online";

/// The folder of a shared case, if the shared folder is there.
fn case(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: {} is absent", folder.display());
    None
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Checks `tokenizer` against all vectors of a case.
fn check(tokenizer: &Tokenizer, folder: &Path) {
    let vectors = json(&folder.join("tokenizer_vectors.json"));
    let vectors = vectors.as_array().unwrap();
    assert!(vectors.len() >= 20, "{} vectors", vectors.len());
    for vector in vectors {
        let text = vector["text"].as_str().unwrap();
        let with_special = ids(&vector["ids"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), with_special, "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&vector["ids_no_special"]), "{text:?}");
        // The vectors decode the ids without the special tokens around the text; those in the text are in both.
        let inner = ids(&vector["ids_no_special"]);
        assert_eq!(tokenizer.decode(&inner, false).unwrap(), vector["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&with_special, true).unwrap(), vector["decoded_skip_special"], "{text:?}");
        for skip in [false, true] {
            let mut stream = TextStream::new(tokenizer, skip);
            let mut streamed: String = with_special.iter().map(|&id| stream.push(tokenizer, id).to_owned()).collect();
            streamed.push_str(stream.finish());
            assert_eq!(streamed, tokenizer.decode(&with_special, skip).unwrap(), "{text:?}");
        }
        for (id, token) in inner.iter().zip(vector["tokens"].as_array().unwrap()) {
            assert_eq!(tokenizer.id_to_token(*id).as_deref(), token.as_str());
            assert_eq!(tokenizer.token_to_id(token.as_str().unwrap()), Some(*id));
        }
    }
}

#[test]
fn the_files_of_the_cases_give_the_vectors() {
    for name in [
        BYTE_LEVEL,
        "b_bitnet_bf16_autobitlinear_online",
        "c_llama_packed_bitlinear",
        "c2_llama_packed_bitlinear_rmsnorm",
        SENTENCE_PIECE,
    ] {
        let Some(folder) = case(name) else { return };
        let tokenizer = Tokenizer::from_json(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 512);
        assert_eq!(tokenizer.special_ids().len(), 3);
        check(&tokenizer, &folder);
    }
}

/// All tokens by id, and the GGUF type of each: 3 for special ones.
fn tokens_and_types(file: &Value) -> (Vec<&str>, Vec<i32>) {
    let mut by_id: HashMap<u64, (&str, i32)> = HashMap::new();
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        by_id.insert(id.as_u64().unwrap(), (token, if token.starts_with("<0x") { 6 } else { 1 }));
    }
    for token in file["added_tokens"].as_array().unwrap() {
        by_id.insert(token["id"].as_u64().unwrap(), (token["content"].as_str().unwrap(), 3));
    }
    (0..by_id.len() as u64).map(|id| by_id[&id]).unzip()
}

/// The merges of a file as GGUF writes them.
fn merges(file: &Value) -> Vec<String> {
    let pair = |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    file["model"]["merges"].as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn byte_level_metadata_gives_the_vectors() {
    let Some(folder) = case(BYTE_LEVEL) else { return };
    let file = json(&folder.join("tokenizer.json"));
    let (tokens, token_types) = tokens_and_types(&file);
    let merges = merges(&file);
    let vocabulary = GgufVocabulary {
        model: "gpt2",
        pre: Some("llama-bpe"),
        tokens,
        token_types,
        merges: merges.iter().map(String::as_str).collect(),
        bos: Some(509),
        eos: Some(510),
        ..GgufVocabulary::default()
    };
    let written = tokenizer_json_from_gguf(&vocabulary).unwrap();
    check(&Tokenizer::from_json(written.as_bytes()).unwrap(), &folder);
}

#[test]
fn sentence_piece_metadata_gives_the_vectors() {
    let Some(folder) = case(SENTENCE_PIECE) else { return };
    let file = json(&folder.join("tokenizer.json"));
    let (tokens, token_types) = tokens_and_types(&file);
    let merges = merges(&file);
    // A piece that no merge makes has the worst score; SentencePiece does the same with single characters.
    let mut scores = vec![-1e6; tokens.len()];
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    for (rank, merge) in merges.iter().enumerate() {
        scores[ids[merge.replace(' ', "").as_str()]] = -(rank as f32);
    }
    let vocabulary = GgufVocabulary {
        model: "llama",
        tokens,
        scores,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocabulary::default()
    };
    let written = tokenizer_json_from_gguf(&vocabulary).unwrap();
    check(&Tokenizer::from_json(written.as_bytes()).unwrap(), &folder);
}
