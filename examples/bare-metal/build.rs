//! Reads the model at build time: tables and bytes for `src/model.rs`, and the text of each token.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

mod embed;

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    let model = embed::embed(Path::new("../../models/micro.safetensors"));
    let texts = texts(model.tokenizer_json().expect("a tokenizer"), model.config().vocab_size);
    let source = format!("pub static TEXTS: [&[u8]; {}] = {texts:?};\n", texts.len());
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("texts.rs");
    fs::write(out, source.replace("[[", "[&[").replace("], [", "], &[")).expect("a writable OUT_DIR");
}

/// The bytes of each token of a byte-level BPE; special tokens have none.
fn texts(tokenizer: &str, count: usize) -> Vec<Vec<u8>> {
    let json: serde_json::Value = serde_json::from_str(tokenizer).expect("JSON");
    // Bytes that are printable stand for themselves; the others are characters from 256 on, in order.
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    let others = (0..=255_u8).filter(|b| !printable(b)).zip(256_u32..).map(|(b, c)| (c, b));
    let bytes: BTreeMap<u32, u8> = (0..=255).filter(printable).map(|b| (u32::from(b), b)).chain(others).collect();
    let mut texts = vec![Vec::new(); count];
    for (piece, id) in json["model"]["vocab"].as_object().expect("a vocabulary") {
        let text = piece.chars().map(|c| bytes.get(&u32::from(c)).copied()).collect::<Option<Vec<_>>>();
        texts[id.as_u64().expect("an id") as usize] = text.expect("characters that stand for bytes");
    }
    for special in json["added_tokens"].as_array().expect("special tokens") {
        texts[special["id"].as_u64().expect("an id") as usize].clear();
    }
    texts
}
