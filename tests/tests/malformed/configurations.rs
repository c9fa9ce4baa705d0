//! `config.json` and the files beside it.

use std::fs;

use serde_json::{Value, json};
use trion_tests::scratch;

use crate::support::{copy, edit_json, refused};

/// Which field becomes what, and what the error says.
type Row = (&'static str, Value, &'static [&'static str]);

#[test]
fn fields() {
    const CONFIG: &str = "config.json";
    const TENSORS: &str = "model.safetensors";
    let bitnet = |field: &str, value: Value| {
        let mut config = json!({ "quant_method": "bitnet", "linear_class": "autobitlinear" });
        config[field] = value;
        config
    };
    let rows: Vec<Row> = vec![
        ("architectures", json!(["MambaForCausalLM"]), &[CONFIG, "MambaForCausalLM", "LlamaForCausalLM"]),
        ("architectures", json!("BitNet"), &[CONFIG, "architectures", "expected"]),
        ("architectures", json!([7]), &[CONFIG, "architectures", "list of names"]),
        ("architectures", Value::Null, &[CONFIG, "architectures", "missing"]),
        ("hidden_size", Value::Null, &[CONFIG, "hidden_size", "missing", "whole number"]),
        ("hidden_size", json!("64"), &[CONFIG, "hidden_size", "\"64\"", "whole number"]),
        ("hidden_size", json!(-64), &[CONFIG, "hidden_size", "-64", "whole number"]),
        ("hidden_size", json!(64.5), &[CONFIG, "hidden_size", "64.5", "whole number"]),
        ("hidden_size", json!(0), &[CONFIG, "hidden_size", "1 to 2^24"]),
        ("hidden_size", json!(1_u64 << 40), &[CONFIG, "hidden_size", "1 to 2^24"]),
        ("hidden_size", json!(128), &[TENSORS, "embed_tokens", "[288, 64]", "[288, 128]"]),
        ("vocab_size", Value::Null, &[CONFIG, "vocab_size", "missing"]),
        ("vocab_size", json!(0), &[CONFIG, "vocab_size", "1 to 2^24"]),
        ("vocab_size", json!(289), &[TENSORS, "embed_tokens", "[288, 64]", "[289, 64]"]),
        ("vocab_size", json!(1 << 24), &[TENSORS, "embed_tokens", "[16777216, 64]"]),
        ("intermediate_size", json!(u64::MAX), &[CONFIG, "intermediate_size", "1 to 2^24"]),
        ("intermediate_size", json!(180), &[TENSORS, "gate_proj", "[44, 64]", "[45, 64]"]),
        ("intermediate_size", json!(178), &[TENSORS, "gate_proj", "178 rows", "multiple of 4"]),
        ("num_hidden_layers", json!([2]), &[CONFIG, "num_hidden_layers", "whole number"]),
        ("num_hidden_layers", json!(0), &[CONFIG, "num_hidden_layers", "1 to 4096"]),
        ("num_hidden_layers", json!(1_000_000_000), &[CONFIG, "num_hidden_layers", "1 to 4096"]),
        ("num_hidden_layers", json!(3), &["model.layers.2.self_attn.q_proj", "missing"]),
        ("num_attention_heads", json!(0), &[CONFIG, "num_attention_heads"]),
        ("num_attention_heads", json!(5), &[CONFIG, "num_key_value_heads", "divisor of num_attention_heads"]),
        ("num_attention_heads", json!(6), &[TENSORS, "q_proj", "[16, 64]", "[15, 64]"]),
        ("num_key_value_heads", json!(0), &[CONFIG, "num_key_value_heads", "1 to 2^24"]),
        ("num_key_value_heads", json!(8), &[CONFIG, "num_key_value_heads", "divisor of num_attention_heads"]),
        ("head_dim", json!(7), &[CONFIG, "head_dim", "even"]),
        ("head_dim", json!(1 << 24), &[CONFIG, "num_attention_heads * head_dim", "2^24"]),
        ("max_position_embeddings", json!(0), &[CONFIG, "max_position_embeddings", "1 to 2^24"]),
        ("rms_norm_eps", json!(-1.0), &[CONFIG, "rms_norm_eps", "-1", "0 to 1"]),
        ("rms_norm_eps", json!(1e39), &[CONFIG, "rms_norm_eps", "inf", "0 to 1"]),
        ("rms_norm_eps", json!("small"), &[CONFIG, "rms_norm_eps", "a number"]),
        ("rope_theta", json!(0.0), &[CONFIG, "rope_theta", "at least 1"]),
        ("rope_theta", json!(1e300), &[CONFIG, "rope_theta", "finite"]),
        ("rope_scaling", json!({ "rope_type": "yarn" }), &[CONFIG, "rope_scaling", "yarn", "default"]),
        ("rope_scaling", json!({ "type": "linear", "factor": 2 }), &[CONFIG, "rope_scaling", "linear", "default"]),
        ("rope_scaling", json!(2.0), &[CONFIG, "rope_scaling", "2.0", "an object"]),
        ("rope_parameters", json!({ "rope_type": 7 }), &[CONFIG, "rope_type", "7", "a string"]),
        ("rope_parameters", json!({ "rope_theta": "10000" }), &[CONFIG, "rope_theta", "a number"]),
        ("hidden_act", json!("gelu"), &[CONFIG, "hidden_act", "gelu", "relu2"]),
        ("hidden_act", json!(7), &[CONFIG, "hidden_act", "7", "a string"]),
        ("attention_bias", json!(true), &[CONFIG, "attention_bias", "only false"]),
        ("attention_bias", json!("no"), &[CONFIG, "attention_bias", "true or false"]),
        ("mlp_bias", json!(true), &[CONFIG, "mlp_bias", "only false"]),
        ("use_sliding_window", json!(true), &[CONFIG, "use_sliding_window", "only false"]),
        ("tie_word_embeddings", json!("yes"), &[CONFIG, "tie_word_embeddings", "true or false"]),
        ("tie_word_embeddings", json!(false), &["lm_head", "missing", "tie_word_embeddings"]),
        ("bos_token_id", json!(-1), &[CONFIG, "bos_token_id", "-1", "token id"]),
        ("bos_token_id", json!(1_u64 << 32), &[CONFIG, "bos_token_id", "4294967296", "token id"]),
        ("eos_token_id", json!(["x"]), &[CONFIG, "eos_token_id", "token id"]),
        ("quantization_config", json!("bitnet"), &[CONFIG, "quantization_config", "an object"]),
        ("quantization_config", json!({ "quant_method": "gptq" }), &[CONFIG, "quant_method", "gptq", "bitnet"]),
        ("quantization_config", bitnet("linear_class", json!("other")), &[CONFIG, "linear_class", "other", "offline"]),
        ("quantization_config", bitnet("linear_class", json!(1)), &[CONFIG, "linear_class", "a string"]),
        ("quantization_config", bitnet("quantization_mode", json!("never")), &[CONFIG, "quantization_mode", "never"]),
        (
            "quantization_config",
            bitnet("modules_to_not_convert", json!(["q_proj"])),
            &[CONFIG, "modules_to_not_convert", "q_proj", "lm_head"],
        ),
        (
            "quantization_config",
            bitnet("modules_to_not_convert", json!("lm_head")),
            &[CONFIG, "modules_to_not_convert", "a list of names"],
        ),
        ("quantization_config", bitnet("rms_norm_eps", json!(2)), &[CONFIG, "projection_norm_eps", "2", "0 to 1"]),
        (
            "quantization_config",
            bitnet("quantization_mode", json!("online")),
            &[TENSORS, "q_proj", "[16, 64]", "[64, 64]"],
        ),
    ];
    for (n, (field, value, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("config-{n}"), "bitnet_offline");
        edit_json(&directory.join(CONFIG), |config| config[field] = value.clone());
        refused(&format!("{field} = {value}"), &directory, expected);
    }
}

/// Changes one place of the golden `tokenizer.json`.
fn tokenizer(pointer: &str, value: Value) -> Vec<u8> {
    let bytes = fs::read(trion_tests::golden("bitnet_offline").join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    json.to_string().into_bytes()
}

#[test]
fn files() {
    const CONFIG: &str = "config.json";
    const GENERATION: &str = "generation_config.json";
    const TOKENIZER: &str = "tokenizer.json";
    const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    let deep = "[".repeat(100_000);
    let replace = json!({ "type": "Replace", "pattern": { "String": "" }, "content": "x" });
    let regex = json!({ "Regex": "(((a{1000}){1000}){1000}){1000}" });
    let rows: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (CONFIG, b"".to_vec(), &[CONFIG, "not JSON"]),
        (CONFIG, b"{".to_vec(), &[CONFIG, "not JSON"]),
        (CONFIG, b"\xff\xfe".to_vec(), &[CONFIG, "not JSON"]),
        (CONFIG, b"[]".to_vec(), &[CONFIG, "architectures", "missing"]),
        (CONFIG, deep.clone().into_bytes(), &[CONFIG, "not JSON", "recursion"]),
        (GENERATION, b"[,".to_vec(), &[GENERATION, "not JSON"]),
        (GENERATION, b"{\"bos_token_id\":\"a\"}".to_vec(), &[GENERATION, "bos_token_id", "\"a\"", "token id"]),
        (GENERATION, b"{\"eos_token_id\":[1,{}]}".to_vec(), &[GENERATION, "eos_token_id", "token ids"]),
        (GENERATION, b"{\"eos_token_id\":1.5}".to_vec(), &[GENERATION, "eos_token_id", "1.5"]),
        (TOKENIZER, b"".to_vec(), &[TOKENIZER, "EOF"]),
        (TOKENIZER, b"nope".to_vec(), &[TOKENIZER, "expected"]),
        (TOKENIZER, b"{}".to_vec(), &[TOKENIZER, "model"]),
        (TOKENIZER, b"{\"model\":\"\xff\"}".to_vec(), &[TOKENIZER, "not UTF-8", "index 10"]),
        (TOKENIZER, deep.into_bytes(), &[TOKENIZER]),
        (TOKENIZER, tokenizer("/model/type", json!("Unigram")), &[TOKENIZER, "Unigram", "BPE"]),
        (TOKENIZER, tokenizer("/model/vocab", json!([1, 2])), &[TOKENIZER, "expected a map"]),
        (TOKENIZER, tokenizer("/model/vocab", json!({ "a": -1 })), &[TOKENIZER, "-1", "u32"]),
        (TOKENIZER, tokenizer("/model/vocab/a", json!(65)), &[TOKENIZER, "id 65", "another token"]),
        (TOKENIZER, tokenizer("/model/dropout", json!(0.5)), &[TOKENIZER, "dropout"]),
        (TOKENIZER, tokenizer("/model/merges", json!(7)), &[TOKENIZER]),
        (TOKENIZER, tokenizer("/model/merges", json!(["one two three"])), &[TOKENIZER]),
        (TOKENIZER, tokenizer("/added_tokens", json!("none")), &[TOKENIZER, "expected a sequence"]),
        (TOKENIZER, tokenizer("/added_tokens/0/id", json!(999)), &[TOKENIZER, "begin_of_text", "999"]),
        (TOKENIZER, tokenizer("/normalizer", replace), &[TOKENIZER, "normalizer", "empty string"]),
        (TOKENIZER, tokenizer("/normalizer", json!({ "type": "Lowercase" })), &[TOKENIZER, "Lowercase", "expected"]),
        (TOKENIZER, tokenizer("/decoder", Value::Null), &[TOKENIZER, "decoder", "missing"]),
        (TOKENIZER, tokenizer("/pre_tokenizer/pretokenizers/0/pattern", regex), &[TOKENIZER]),
        (
            TOKENIZER,
            tokenizer("/post_processor/processors/1/special_tokens", json!({})),
            &[TOKENIZER, "post_processor", "<|begin_of_text|>", "special_tokens"],
        ),
        ("chat_template.jinja", b"{% if %}".to_vec(), &["chat_template", "syntax error"]),
        ("chat_template.jinja", b"\xff".to_vec(), &["chat_template.jinja", "not UTF-8"]),
        (TOKENIZER_CONFIG, b"nope".to_vec(), &[TOKENIZER_CONFIG, "not JSON"]),
        (TOKENIZER_CONFIG, b"{\"chat_template\":\"{{\"}".to_vec(), &["chat_template", "syntax error"]),
        (TOKENIZER_CONFIG, b"{\"chat_template\":7}".to_vec(), &[TOKENIZER_CONFIG, "chat_template", "7", "a template"]),
    ];
    for (n, (file, bytes, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("file-{n}"), "bitnet_offline");
        fs::write(directory.join(file), bytes).unwrap();
        refused(&format!("{n}: {file}"), &directory, expected);
    }
}

#[test]
fn an_empty_vocabulary() {
    let directory = copy("vocabulary", "bitnet_offline");
    edit_json(&directory.join("tokenizer.json"), |json| {
        json["model"]["vocab"] = json!({});
        json["model"]["merges"] = json!([]);
        json["added_tokens"] = json!([]);
        json["post_processor"] = Value::Null;
    });
    refused("an empty vocabulary", &directory, &["tokenizer.json", "vocabulary is empty"]);
}

/// The largest id there is costs no more than a small one.
#[test]
fn a_vocabulary_with_the_largest_id() {
    let directory = copy("largest-id", "bitnet_offline");
    edit_json(&directory.join("tokenizer.json"), |json| json["model"]["vocab"]["a"] = json!(u32::MAX));
    let (model, heap) = crate::support::heap_peak(|| {
        let model = trion_engine::Model::open(&directory).unwrap();
        model.tokenizer().unwrap();
        model
    });
    assert!(heap < crate::support::ALLOWANCE, "{heap} bytes");
    let what = "a token beyond the embedding";
    let error = crate::support::error_of(
        what,
        trion_engine::generate(&model, "a", &trion_engine::GenerateOptions::default(), &trion_engine::Serial, |_| true),
    );
    crate::support::says(what, &error, &["token 4294967295", "vocabulary of 288"]);
}

#[test]
fn what_is_no_model() {
    let empty = scratch("malformed-empty");
    refused("an empty directory", &empty, &["config.json"]);
    refused("a path without a file", &empty.join("nothing"), &["nothing"]);
    let rows: [(&str, &[u8], &[&str]); 6] = [
        ("empty.bin", b"", &["file", "is empty"]),
        ("byte.bin", b"x", &["header", "safetensors"]),
        ("text.txt", b"This is a text, and no model.", &["header", "safetensors"]),
        ("foreign.bin", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", &["none of", "packed by Trion", "GGUF", "config.json"]),
        ("model.gguf", b"GGUF", &["model.gguf"]),
        ("model.onnx", &[0; 4096], &["header", "safetensors"]),
    ];
    for (name, bytes, expected) in rows {
        fs::write(empty.join(name), bytes).unwrap();
        refused(name, &empty.join(name), expected);
    }
    let alone = copy("alone", "bitnet_offline");
    fs::remove_file(alone.join("model.safetensors")).unwrap();
    refused("a directory without tensors", &alone, &["model.safetensors"]);
    fs::create_dir(alone.join("model.safetensors")).unwrap();
    refused("a directory for a file", &alone, &["model.safetensors"]);
    let alone = copy("alone-config", "bitnet_offline");
    fs::remove_file(alone.join("config.json")).unwrap();
    refused("a directory without config.json", &alone, &["config.json"]);
    refused("tensors without config.json", &alone.join("model.safetensors"), &["none of", "config.json"]);
    let alone = copy("alone-tokenizer", "bitnet_offline");
    fs::remove_file(alone.join("tokenizer.json")).unwrap();
    fs::create_dir(alone.join("tokenizer.json")).unwrap();
    refused("a directory for a tokenizer", &alone, &["tokenizer.json"]);
}
