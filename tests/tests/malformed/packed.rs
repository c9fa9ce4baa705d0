//! Trion's own packed files.

use std::fs;

use serde_json::{Value, json};
use trion_engine::{FloatFormat, Model, PackOptions, Packing};
use trion_tests::golden;

use crate::support::{Edit, edit_tensors, error_of, packed, place, refused, rename, says, tensors, write_tensors};

const TRITS: &str = "model.layers.0.mlp.up_proj.trits";
const FIVES: &str = "model.layers.0.mlp.up_proj.fives";
const DOWN_FIVES: &str = "model.layers.0.mlp.down_proj.fives";
const DOWN_TRITS: &str = "model.layers.0.mlp.down_proj.trits";
const SCALE: &str = "model.layers.0.mlp.up_proj.scale";
const NORM: &str = "model.layers.1.input_layernorm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const CODES: &str = "model.embed_tokens.int6";
const ROW_SCALES: &str = "model.embed_tokens.row_scales";
const GROUPS: &str = "model.layers.0.mlp.up_proj.group_scales.128";

const PLAIN: PackOptions = PackOptions { embedding: FloatFormat::Keep, packing: Packing::Twos };
const INT6: PackOptions = PackOptions { embedding: FloatFormat::Int6, packing: Packing::Fives };
const INT8: PackOptions = PackOptions { embedding: FloatFormat::Int8, packing: Packing::Twos };

/// Changes a field of the configuration, which is JSON in a string.
fn config(header: &mut Value, field: &str, value: Value) {
    let text = header["__metadata__"]["config"].as_str().unwrap().to_owned();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[field] = value;
    header["__metadata__"]["config"] = json!(config.to_string());
}

/// Replaces a part of the configuration's text: JSON that `serde_json` itself would not write.
fn config_text(header: &mut Value, from: &str, to: &str) {
    let text = header["__metadata__"]["config"].as_str().unwrap();
    assert!(text.contains(from));
    header["__metadata__"]["config"] = json!(text.replace(from, to));
}

fn remove(header: &mut Value, key: &str) {
    header["__metadata__"].as_object_mut().unwrap().remove(key).unwrap();
}

fn spoil(test: &str, name: &str, options: PackOptions, rows: Vec<(&str, Edit, &[&str])>) {
    for (n, (what, edit, expected)) in rows.into_iter().enumerate() {
        let file = packed(&format!("packed-{test}-{n}"), name, options);
        edit_tensors(&file, edit);
        refused(what, &file, expected);
    }
}

#[test]
fn metadata() {
    const CONFIG: &str = "__metadata__.config";
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("version", |h, _| h["__metadata__"]["version"] = json!("9"), &["__metadata__.version", "9", "expected \"1\""]),
        ("no version", |h, _| remove(h, "version"), &["__metadata__.version", "missing", "expected \"1\""]),
        ("a number", |h, _| h["__metadata__"]["version"] = json!(1), &["header", "expected a string"]),
        ("no format", |h, _| remove(h, "format"), &["none of", "packed by Trion"]),
        ("no config", |h, _| remove(h, "config"), &[CONFIG, "missing, expected JSON"]),
        ("half a config", |h, _| h["__metadata__"]["config"] = json!("{"), &[CONFIG, "EOF"]),
        ("a list", |h, _| h["__metadata__"]["config"] = json!("[[]]"), &[CONFIG, "expected"]),
        ("null", |h, _| config(h, "head_dim", Value::Null), &[CONFIG, "null, expected usize"]),
        ("text", |h, _| config(h, "vocab_size", json!("288")), &[CONFIG, "288", "expected usize"]),
        ("negative", |h, _| config(h, "vocab_size", json!(-1)), &[CONFIG, "-1", "expected usize"]),
        ("a missing field", |h, _| config_text(h, "rope_theta", "rope_beta"), &[CONFIG, "missing field `rope_theta`"]),
        ("NaN", |h, _| config_text(h, "\"rms_norm_eps\":", "\"rms_norm_eps\":NaN,\"x\":"), &[CONFIG, "expected value"]),
        ("1e999", |h, _| config_text(h, "\"rms_norm_eps\":", "\"rms_norm_eps\":1e999,\"x\":"), &[CONFIG, "range"]),
        ("1e39", |h, _| config(h, "rms_norm_eps", json!(1e39)), &[CONFIG, "rms_norm_eps is inf", "0 to 1"]),
        ("an absurd width", |h, _| config(h, "hidden_size", json!(1 << 30)), &[CONFIG, "hidden_size", "1 to 2^24"]),
        (
            "many layers",
            |h, _| config(h, "num_hidden_layers", json!(4096)),
            &["model.layers.2.self_attn.q_proj", "missing"],
        ),
        (
            "another width",
            |h, _| config(h, "hidden_size", json!(96)),
            &["layers.0.self_attn.q_proj.trits", "[2, 4, 128]", "expected U8 [2, 6, 128]"],
        ),
        ("a large vocabulary", |h, _| config(h, "vocab_size", json!(1 << 24)), &[EMBEDDING, "expected [16777216, 64]"]),
        (
            "a group of 7",
            |h, _| config(h, "activation_group", json!(7)),
            &[CONFIG, "activation_group", "multiple of 16"],
        ),
        ("activation", |h, _| config(h, "hidden_act", json!("tanh")), &[CONFIG, "tanh", "relu2"]),
        ("a bad end", |h, _| config(h, "eos_token_id", json!([-1])), &[CONFIG, "-1", "expected u32"]),
        ("a bad beginning", |h, _| config(h, "bos_token_id", json!("a")), &[CONFIG, "expected u32"]),
        ("tokenizer", |h, _| h["__metadata__"]["tokenizer.json"] = json!("[]"), &["tokenizer.json", "expected"]),
        ("template", |h, _| h["__metadata__"]["chat_template"] = json!("{{"), &["chat_template", "syntax error"]),
    ];
    spoil("metadata", "bitnet_offline", PLAIN, rows);
}

#[test]
fn weights() {
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        (
            "code 3",
            |h, d| d[place(h, TRITS)][3] = 0b11 << 4,
            &[TRITS, "row 0, column 11", "code 3, expected 0, 1 or 2"],
        ),
        ("NaN scale", |h, d| d[place(h, SCALE)].fill(0xff), &[TRITS, "scale holds a NaN", "expected finite"]),
        ("long scale", |h, _| long(h, SCALE), &[SCALE, "F16 [2]", "expected F32 [1]"]),
        ("no scale", |h, _| rename(h, SCALE, "spare"), &["mlp.up_proj", "no tensor .scale"]),
        ("zero divisor", |h, d| zero_divisor(h, d), &[TRITS, "zero divisor"]),
        ("group of 7", |h, _| rename(h, SCALE, "model.layers.0.mlp.up_proj.group_scales.7"), &["mlp.up_proj", "SIZE"]),
        ("group of single scales", |h, _| rename(h, SCALE, GROUPS), &[GROUPS, "F32", "expected F16"]),
        ("trits of another type", |h, _| h[TRITS]["dtype"] = json!("I8"), &[TRITS, "I8", "expected U8"]),
        ("no trits", |h, _| rename(h, TRITS, "spare"), &["mlp.up_proj", "missing, expected a tensor"]),
        ("no embedding", |h, _| rename(h, EMBEDDING, "spare"), &["model.embed_tokens", "missing, expected"]),
        ("no norm", |h, _| rename(h, NORM, "spare"), &[NORM, "missing"]),
        ("halved norm", |h, _| halves(h, NORM), &[NORM, "F16 [128]", "expected F32 [64]"]),
        ("NaN norm", |h, d| d[place(h, NORM)].fill(0xff), &["layer 1", "input_layernorm", "NaN", "expected finite"]),
        ("embedding of integers", |h, _| h[EMBEDDING]["dtype"] = json!("U16"), &[EMBEDDING, "U16", "expected F32"]),
        ("offsets", |h, _| h[TRITS]["data_offsets"] = json!([8, 4]), &["header"]),
        ("few bytes", |h, d| d.truncate(place(h, TRITS).start), &["header"]),
    ];
    spoil("weights", "bitnet_offline", PLAIN, rows);
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("no row scales", |h, _| rename(h, ROW_SCALES, "spare"), &[ROW_SCALES, "missing"]),
        ("NaN row scale", |h, d| d[place(h, ROW_SCALES)][..4].fill(0xff), &[EMBEDDING, "row scales", "NaN"]),
        ("short row scales", |h, _| halves(h, ROW_SCALES), &[ROW_SCALES, "F16 [576]", "expected F32 [288]"]),
    ];
    spoil("int8", "bitnet_offline", INT8, rows);
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("no five", |h, d| d[place(h, FIVES)][7] = 0xff, &[FIVES, "row 1, column 3", "no five"]),
        ("fives as twos", |h, _| rename(h, DOWN_FIVES, DOWN_TRITS), &[DOWN_TRITS, "[2, 9, 128]", "U8 [2, 11, 128]"]),
        ("no row scales", |h, _| rename(h, ROW_SCALES, "spare"), &[ROW_SCALES, "missing"]),
        ("NaN row scale", |h, d| d[place(h, ROW_SCALES)][..4].fill(0xff), &[CODES, "row scales", "NaN"]),
        ("codes of another type", |h, _| h[CODES]["dtype"] = json!("I8"), &[CODES, "I8", "expected U8"]),
        ("no codes", |h, _| rename(h, CODES, "spare"), &["model.embed_tokens", "missing, expected"]),
    ];
    spoil("int6", "bitnet_offline", INT6, rows);
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        (
            "infinite group scale",
            |h, d| d[place(h, GROUPS)][..2].copy_from_slice(&[0, 0x7c]),
            &["up_proj.trits", "scale"],
        ),
        (
            "another group size",
            |h, _| rename(h, GROUPS, &GROUPS.replace("128", "64")),
            &["up_proj.trits", "group scales"],
        ),
        (
            "groups finer than activations",
            |h, _| config(h, "activation_group", json!(256)),
            &["activation_group", "256"],
        ),
        ("groups unmentioned", |h, _| config(h, "activation_group", json!(0)), &["activation_group is 0", "16 up to"]),
        ("group scales that are bytes", |h, _| bytes(h, GROUPS), &[GROUPS, "U8", "expected F16"]),
    ];
    spoil("groups", "qwen3_groups", PLAIN, rows);
}

fn long(header: &mut Value, name: &str) {
    header[name]["dtype"] = json!("F16");
    header[name]["shape"] = json!([2]);
}

/// The same bytes as twice as many halves.
fn halves(header: &mut Value, name: &str) {
    let count = header[name]["shape"][0].as_u64().unwrap();
    header[name]["dtype"] = json!("F16");
    header[name]["shape"] = json!([2 * count]);
}

/// The same bytes as bytes.
fn bytes(header: &mut Value, name: &str) {
    header[name]["shape"] = json!([place(header, name).len()]);
    header[name]["dtype"] = json!("U8");
}

fn zero_divisor(header: &mut Value, data: &mut [u8]) {
    data[place(header, SCALE)].fill(0);
    rename(header, SCALE, "model.layers.0.mlp.up_proj.scale_divisor");
}

#[test]
fn misalignment() {
    let file = packed("packed-odd", "bitnet_offline", PLAIN);
    let (header, data) = tensors(&file);
    for beyond in [1, 2, 3] {
        write_tensors(&file, &header.to_string(), &data, beyond);
        refused(&format!("{beyond} beyond"), &file, &["multiple of its element size"]);
    }
}

#[test]
fn truncations() {
    let file = packed("packed-truncated", "bitnet_offline", PLAIN);
    let whole = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let lengths = (0..32).chain((32..header).step_by(67)).chain((header..whole.len()).step_by(997));
    for length in lengths.chain([header - 1, header, header + 1, whole.len() - 1]) {
        fs::write(&file, &whole[..length]).unwrap();
        let expected = if length == 0 { "is empty" } else { "header" };
        refused(&format!("{length} bytes"), &file, &[expected]);
        let result = Model::from_bytes(&whole[..length]);
        says("from memory", &error_of("from memory", result), &["memory", "header"]);
    }
}

#[test]
fn foreign_bytes() {
    let foreign = fs::read(golden("bitnet_offline").join("model.safetensors")).unwrap();
    says("foreign", &error_of("foreign", Model::from_bytes(&foreign)), &["memory", "__metadata__.format", "trion"]);
}
