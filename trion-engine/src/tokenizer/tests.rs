use serde_json::{Value, json};

use super::*;

/// GPT-2's table, from the bytes' side: what a byte-level vocabulary calls each byte.
fn byte_names() -> Vec<String> {
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    (0..=255u32)
        .map(|byte| if printable(byte) { byte } else { others.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect()
}

/// A byte-level tokenizer of 256 bytes, three merges and a special token `<end>` (259).
pub(crate) fn byte_level() -> Tokenizer {
    let names = byte_names();
    let mut tokens: Vec<&str> = names.iter().map(String::as_str).collect();
    tokens.extend(["he", "Ġhe", "ll", "<end>"]);
    let mut token_types = vec![1; 260];
    token_types[259] = 3;
    let vocabulary = GgufVocabulary {
        model: "gpt2",
        pre: Some("llama-bpe"),
        tokens,
        token_types,
        merges: vec!["h e", "Ġ he", "l l"],
        eos: Some(259),
        add_bos: Some(false),
        ..GgufVocabulary::default()
    };
    Tokenizer::from_json(tokenizer_json_from_gguf(&vocabulary).unwrap().as_bytes()).unwrap()
}

/// A `SentencePiece` vocabulary: `<unk>`, `<s>`, `</s>`, 256 bytes (id = byte + 3), then pieces and their scores.
pub(crate) fn sentence_piece_vocabulary(bytes: &[String]) -> GgufVocabulary<'_> {
    let mut tokens = vec!["<unk>", "<s>", "</s>"];
    tokens.extend(bytes.iter().map(String::as_str));
    let mut token_types = vec![2, 3, 3];
    token_types.extend([6; 256]);
    let mut scores = vec![0.0; 259];
    for (piece, score) in
        [("▁", -10.0), ("a", -10.0), ("b", -10.0), ("ab", -1.0), ("▁a", -2.0), ("▁ab", -3.0), ("bb", -0.5)]
    {
        tokens.push(piece);
        token_types.push(1);
        scores.push(score);
    }
    GgufVocabulary { model: "llama", tokens, scores, token_types, ..GgufVocabulary::default() }
}

pub(crate) fn sentence_piece() -> Tokenizer {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let json = tokenizer_json_from_gguf(&sentence_piece_vocabulary(&bytes)).unwrap();
    Tokenizer::from_json(json.as_bytes()).unwrap()
}

#[test]
fn byte_level_round_trip() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("he hell<end>", true).unwrap();
    assert_eq!(ids, [256, 257, 258, 259]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "he hell<end>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "he hell");
    let text = "été 🦀\u{0}\r\n\t 中文";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true).unwrap(), text);
    assert_eq!(tokenizer.vocab_size(), 260);
    assert_eq!(tokenizer.special_ids(), [259]);
    assert_eq!(tokenizer.token_to_id("Ġhe"), Some(257));
    assert_eq!(tokenizer.id_to_token(257).as_deref(), Some("Ġhe"));
    assert_eq!(tokenizer.id_to_token(260), None);
    let error = tokenizer.decode(&[260], false).unwrap_err().to_string();
    assert!(error.contains("260"), "{error}");
}

#[test]
fn sentence_piece_merges_follow_the_scores() {
    let tokenizer = sentence_piece();
    let id = |token| tokenizer.token_to_id(token).unwrap();
    // bb has the best score, so "abb" is a + bb although ab + b exists.
    assert_eq!(tokenizer.encode("ab abb", true).unwrap(), [1, id("▁ab"), id("▁a"), id("bb")]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [id("▁"), 0xC3 + 3, 0xA9 + 3]);
    for text in ["ab abb", " ab", "é 🦀\n"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
}

#[test]
fn sentence_piece_without_space_prefix() {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let vocabulary = GgufVocabulary {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..sentence_piece_vocabulary(&bytes)
    };
    let json = tokenizer_json_from_gguf(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
    let ids = tokenizer.encode("ab ab", true).unwrap();
    assert_eq!(ids, ["ab", "▁ab", "</s>"].map(|token| tokenizer.token_to_id(token).unwrap()));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab ab");
}

#[test]
fn control_and_byte_tokens_are_never_merged_into() {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut vocabulary = sentence_piece_vocabulary(&bytes);
    for piece in ["<", "s>"] {
        vocabulary.tokens.push(piece);
        vocabulary.token_types.push(1);
        vocabulary.scores.push(-20.0);
    }
    let json: Value = serde_json::from_str(&tokenizer_json_from_gguf(&vocabulary).unwrap()).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap();
    assert!(merges.contains(&json!(["a", "b"])));
    assert!(!merges.contains(&json!(["<", "s>"])));
}

#[test]
fn the_pre_tokenizer_is_chosen_by_name_or_by_size() {
    let digits = |pre: Option<&'static str>, size: usize| {
        let names: Vec<String> =
            byte_names().into_iter().chain((256..size).map(|id| format!("<extra {id}>"))).collect();
        let mut tokens: Vec<&str> = names.iter().map(String::as_str).collect();
        tokens.truncate(size - 3);
        tokens.extend(["12", "123", "1234"]);
        let vocabulary = GgufVocabulary {
            model: "gpt2",
            pre,
            tokens,
            merges: vec!["1 2", "12 3", "123 4"],
            add_bos: Some(false),
            ..GgufVocabulary::default()
        };
        let json = tokenizer_json_from_gguf(&vocabulary)?;
        let ids = Tokenizer::from_json(json.as_bytes())?.encode("1234", true)?;
        Ok::<_, Error>(ids.len())
    };
    assert_eq!(digits(Some("gpt-2"), 300).unwrap(), 1);
    assert_eq!(digits(None, 300).unwrap(), 1);
    assert_eq!(digits(Some("llama-bpe"), 300).unwrap(), 2);
    assert_eq!(digits(None, 128_256).unwrap(), 2);
    assert_eq!(digits(Some("qwen2"), 300).unwrap(), 4);
    let error = digits(Some("martian"), 300).unwrap_err().to_string();
    assert!(error.contains("martian") && error.contains("llama-bpe") && error.contains("qwen2"), "{error}");
}

#[test]
fn gguf_defaults_for_the_beginning_of_a_text() {
    let names = byte_names();
    let with = |model, pre, bos| {
        let vocabulary = GgufVocabulary {
            model,
            pre,
            tokens: names.iter().map(String::as_str).collect(),
            scores: vec![0.0; 256],
            bos,
            ..GgufVocabulary::default()
        };
        let json = tokenizer_json_from_gguf(&vocabulary)?;
        Tokenizer::from_json(json.as_bytes())?.encode("", true)
    };
    assert_eq!(with("gpt2", Some("llama-bpe"), Some(7)).unwrap(), [7]);
    assert_eq!(with("gpt2", Some("gpt-2"), Some(7)).unwrap(), Vec::<u32>::new());
    assert_eq!(with("llama", None, None).unwrap(), [1]);
    let error = with("gpt2", Some("llama-bpe"), None).unwrap_err().to_string();
    assert!(error.contains("bos_token_id"), "{error}");
    let error = with("gpt2", Some("gpt-2"), Some(256)).unwrap_err().to_string();
    assert!(error.contains("256"), "{error}");
}

#[test]
fn broken_gguf_vocabularies_are_refused() {
    let base = GgufVocabulary { model: "gpt2", tokens: vec!["a", "b"], ..GgufVocabulary::default() };
    let cases = [
        ("empty", GgufVocabulary { tokens: vec![], ..base.clone() }),
        ("at 0 and at 1", GgufVocabulary { tokens: vec!["a", "a"], ..base.clone() }),
        ("3 types", GgufVocabulary { token_types: vec![1; 3], ..base.clone() }),
        ("\"ab\"", GgufVocabulary { merges: vec!["ab"], ..base.clone() }),
        ("scores", GgufVocabulary { model: "llama", ..base.clone() }),
        ("bert", GgufVocabulary { model: "bert", ..base.clone() }),
    ];
    for (expected, vocabulary) in cases {
        let error = tokenizer_json_from_gguf(&vocabulary).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Each token is the beginning and the end of all that are longer.
    let long: Vec<String> = ["a", "b"].iter().flat_map(|c| (1..=200).map(|length| c.repeat(length))).collect();
    let tokens: Vec<&str> = long.iter().map(String::as_str).collect();
    let scores = vec![0.0; tokens.len()];
    let repetitive = GgufVocabulary { model: "llama", tokens, scores, ..GgufVocabulary::default() };
    let error = tokenizer_json_from_gguf(&repetitive).unwrap_err().to_string();
    assert!(error.contains("16 ways"), "{error}");
    let json = tokenizer_json_from_gguf(&GgufVocabulary { merges: vec!["a x"], ..base }).unwrap();
    assert!(Tokenizer::from_json(json.as_bytes()).unwrap_err().to_string().contains('x'));
}

/// A small valid file, to be damaged by tests.
fn small_file() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "vocab": {"a": 0, "b": 1, "<s>": 2}, "merges": []},
    })
}

/// Seven steps, each of which makes a text twice as long.
fn doubling() -> Value {
    let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    json!({"type": "Sequence", "normalizers": vec![step; 7]})
}

#[test]
fn broken_files_are_refused() {
    let read = |file: &Value| Tokenizer::from_json(&serde_json::to_vec(file).unwrap());
    assert_eq!(read(&small_file()).unwrap().encode("ab", true).unwrap(), [2, 0, 1]);

    let cases = [
        ("/model/vocab", json!({}), "added token"),
        ("/model/vocab", json!({"a": 0, "b": 0, "<s>": 2}), "another token"),
        ("/model/vocab", json!({"a": -1}), "-1"),
        ("/model/merges", json!([["a", "c"]]), "c"),
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/model/dropout", json!(0.5), "dropout"),
        ("/added_tokens/0/id", json!(7), "7 expected"),
        ("/added_tokens/0/content", json!("<t>"), "expected"),
        ("/post_processor/special_tokens", json!({}), "<s>"),
        ("/post_processor/special_tokens/<s>/ids", json!([77]), "77"),
        ("/post_processor/single/1/Sequence/id", json!("B"), "\"B\""),
        ("/post_processor/single", json!([]), "lacks the text"),
        ("/post_processor/type", json!("BertProcessing"), "BertProcessing"),
        ("/normalizer/type", json!("Precompiled"), "Precompiled"),
        ("/normalizer/pattern/String", json!(""), "empty"),
        ("/normalizer/content", json!("_".repeat(65)), "65 times as long, at most 64"),
        ("/normalizer", doubling(), "128 times as long, at most 64"),
        ("/normalizer", json!({"type": "Prepend", "prepend": "_".repeat(65)}), "Prepend of 65 bytes"),
        ("/post_processor/special_tokens/<s>/ids", json!(vec![2_u32; 257]), "256 tokens around"),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "FixedLength"),
        ("/decoder", Value::Null, "decoder"),
        ("/decoder/type", json!("WordPiece"), "WordPiece"),
        ("/decoder", json!({"type": "Sequence", "decoders": doubling()["normalizers"]}), "128 times as long"),
        ("/version", json!("2.0"), "2.0"),
    ];
    for (place, value, expected) in cases {
        let mut file = small_file();
        *file.pointer_mut(place).unwrap() = value;
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{place}: {error}");
    }

    let mut empty = small_file();
    empty["model"]["vocab"] = json!({});
    empty["added_tokens"] = json!([]);
    empty["post_processor"] = Value::Null;
    assert!(read(&empty).unwrap_err().to_string().contains("empty"));
    for bytes in [&b""[..], b"{", b"[]", b"\xFF\xFE", b"{\"model\":{}}", "[".repeat(100_000).as_bytes()] {
        assert!(Tokenizer::from_json(bytes).is_err());
    }
}

#[test]
fn truncation_and_padding_are_ignored() {
    let mut file = small_file();
    file["truncation"] = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [2, 0, 1]);
}
