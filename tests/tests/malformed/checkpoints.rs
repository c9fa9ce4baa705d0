//! Safetensors files of Hugging Face checkpoints, single and sharded.

use std::fs;

use serde_json::{Value, json};
use trion_engine::{PackOptions, quantize};
use trion_tests::scratch;

use crate::support::{
    Edit, copy, edit_json, edit_tensors, error_of, place, refused, rename, says, tensors, write_tensors,
};

const FILE: &str = "model.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";
const NORM: &str = "model.layers.1.input_layernorm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn headers() {
    let rows: [(&str, &[u8]); 13] = [
        ("empty", b""),
        ("one byte", b"\x01"),
        ("no header", b"\x02\x00\x00\x00\x00\x00\x00\x00"),
        ("length 0", b"\x00\x00\x00\x00\x00\x00\x00\x00"),
        ("length 0 and data", b"\x00\x00\x00\x00\x00\x00\x00\x00{}"),
        ("length 99 MB", b"\x00\xff\xe5\x05\x00\x00\x00\x00{}"),
        ("length 2^63 - 1", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
        ("length 2^63", b"\x00\x00\x00\x00\x00\x00\x00\x80{}"),
        ("length 2^64 - 8", b"\xf8\xff\xff\xff\xff\xff\xff\xff{}"),
        ("length 2^64 - 1", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"),
        ("not JSON", b"\x02\x00\x00\x00\x00\x00\x00\x00{]"),
        ("not UTF-8", b"\x04\x00\x00\x00\x00\x00\x00\x00{\"\xff\xff"),
        ("a list", b"\x02\x00\x00\x00\x00\x00\x00\x00[]"),
    ];
    for (n, (what, bytes)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("header-{n}"), "bitnet_offline");
        fs::write(directory.join(FILE), bytes).unwrap();
        let expected: &[&str] = if bytes.is_empty() { &[FILE, "is empty"] } else { &[FILE, "header", "safetensors"] };
        refused(what, &directory, expected);
    }
}

#[test]
fn truncations() {
    let directory = copy("truncated", "bitnet_offline");
    let file = directory.join(FILE);
    let whole = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let bytes = (0..32).chain((32..header).step_by(67)).chain((header..whole.len()).step_by(997));
    for length in bytes.chain([header - 1, header, header + 1, whole.len() - 1]) {
        fs::write(&file, &whole[..length]).unwrap();
        refused(&format!("{length} bytes"), &directory, &[FILE]);
    }
    fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
    refused("a byte too many", &directory, &[FILE, "header"]);
}

#[test]
fn lists_of_tensors() {
    let nested = format!("{{\"a\":{}", "[".repeat(100_000));
    // As a length, the sum of all names and shapes would take much more than the file.
    let many = (0..20_000).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,0]}}"));
    let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
    for (n, header) in [nested, many].into_iter().enumerate() {
        let directory = copy(&format!("list-{n}"), "bitnet_offline");
        write_tensors(&directory.join(FILE), &header, &[], 0);
        refused(&format!("header {n}"), &directory, &[FILE, "header"]);
    }
}

#[test]
fn edited_tensors() {
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("removed q_proj", |h, _| drop(h.as_object_mut().unwrap().remove(Q)), &[FILE, "header"]),
        ("renamed q_proj", |h, _| rename(h, Q, "spare"), &["layers.0.self_attn.q_proj", "missing, expected"]),
        ("renamed scale", |h, _| rename(h, SCALE, "spare"), &[SCALE, "missing, expected one float"]),
        ("renamed norm", |h, _| rename(h, NORM, "spare"), &[NORM, "missing, expected"]),
        ("renamed last norm", |h, _| rename(h, "model.norm.weight", "spare"), &["model.norm.weight", "missing"]),
        ("renamed embedding", |h, _| rename(h, EMBEDDING, "spare"), &["model.embed_tokens", "missing, expected"]),
        ("a bias", |h, _| rename(h, NORM, "model.layers.0.self_attn.q_proj.bias"), &["q_proj.bias", "not supported"]),
        ("another shape", |h, _| h[Q]["shape"] = json!([64, 16]), &[FILE, Q, "[64, 16]", "expected [16, 64]"]),
        ("a flat shape", |h, _| h[Q]["shape"] = json!([1024]), &[FILE, Q, "[1024]", "expected [16, 64]"]),
        ("a deep shape", |h, _| h[Q]["shape"] = json!([1, 16, 64]), &[FILE, Q, "[1, 16, 64]", "expected [16, 64]"]),
        ("half a scale", |h, _| h[SCALE]["dtype"] = json!("U8"), &[FILE, "header"]),
        ("a norm of bytes", |h, _| byte_norm(h, NORM), &[FILE, NORM, "[128]", "expected [64]"]),
        (
            "a norm of integers",
            |h, _| h[NORM]["dtype"] = json!("I16"),
            &[FILE, NORM, "I16", "expected F32, F16 or BF16"],
        ),
        ("another dtype", |h, _| h[Q]["dtype"] = json!("I8"), &[FILE, Q, "I8", "expected U8"]),
        (
            "an embedding of integers",
            |h, _| h[EMBEDDING]["dtype"] = json!("U16"),
            &[FILE, EMBEDDING, "U16", "expected"],
        ),
        ("an unknown dtype", |h, _| h[Q]["dtype"] = json!("TRIT"), &[FILE, "header", "TRIT"]),
        ("no dtype", |h, _| h[Q]["dtype"] = Value::Null, &[FILE, "header"]),
        ("a shape of text", |h, _| h[Q]["shape"] = json!("16x64"), &[FILE, "header", "16x64"]),
        ("a negative shape", |h, _| h[Q]["shape"] = json!([-16, -64]), &[FILE, "header", "-16"]),
        ("NaN scale", |h, d| d[place(h, SCALE)].copy_from_slice(&[0xc0, 0x7f]), &[FILE, SCALE, "NaN", "finite"]),
        ("infinite scale", |h, d| d[place(h, SCALE)].copy_from_slice(&[0x80, 0x7f]), &[FILE, SCALE, "inf", "finite"]),
        ("zero scale", |h, d| d[place(h, SCALE)].fill(0), &[FILE, SCALE, "is 0", "finite number but zero"]),
        ("code 3", |h, d| d[place(h, Q)][5] = 0b11, &[FILE, Q, "row 0, column 5", "code 3, expected 0, 1 or 2"]),
        ("code 3 at the end", |h, d| d[place(h, Q)][1023] = 0xc0, &[FILE, Q, "row 63, column 63", "code 3"]),
        ("NaN norm", |h, d| d[place(h, NORM)].fill(0xff), &[NORM, "NaN", "expected finite"]),
        ("infinite norm", |h, d| d[place(h, NORM)][..2].copy_from_slice(&[0x80, 0x7f]), &[NORM, "infinity"]),
        ("offsets outside", |h, _| h[Q]["data_offsets"] = json!([0, 1_u64 << 60]), &[FILE, "header"]),
        ("offsets that overflow", |h, _| h[Q]["data_offsets"] = json!([u64::MAX - 8, u64::MAX]), &[FILE, "header"]),
        ("negative offsets", |h, _| h[Q]["data_offsets"] = json!([-1, 5]), &[FILE, "header", "-1"]),
        ("three offsets", |h, _| h[Q]["data_offsets"] = json!([0, 1, 2]), &[FILE, "header"]),
        ("reversed offsets", |h, _| h[Q]["data_offsets"] = json!([2048, 1024]), &[FILE, "header"]),
        ("overflowing shape", |h, _| h[Q]["shape"] = json!([1_u64 << 40, 1_u64 << 40]), &[FILE, "header"]),
        ("an overlap", |h, _| h[Q]["data_offsets"] = h[NORM]["data_offsets"].clone(), &[FILE, "header"]),
        ("a gap", |_, d| d.extend([0; 64]), &[FILE, "header"]),
    ];
    for (n, (what, edit, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("tensor-{n}"), "bitnet_offline");
        edit_tensors(&directory.join(FILE), edit);
        refused(what, &directory, expected);
        // What cannot be opened cannot be packed either, and leaves no file.
        let to = scratch(&format!("malformed-tensor-{n}-packed")).join("packed.safetensors");
        let result = quantize(&directory, &to, &PackOptions::default(), &mut |_, _| {});
        says(what, &error_of(what, result), expected);
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 0, "{what}: left a file");
    }
}

/// The same bytes, read as twice as many numbers.
fn byte_norm(header: &mut Value, name: &str) {
    header[name]["dtype"] = json!("U8");
    header[name]["shape"] = json!([128]);
}

/// Float masters: one NaN or infinity would spoil the scale of a whole matrix.
#[test]
fn masters() {
    for (n, bits) in [[0xc0, 0x7f], [0x80, 0x7f], [0x80, 0xff]].into_iter().enumerate() {
        let directory = copy(&format!("masters-{n}"), "bitnet_online");
        edit_tensors(&directory.join(FILE), |h, d| d[place(h, Q)][..2].copy_from_slice(&bits));
        refused("masters", &directory, &[FILE, Q, "NaN or an infinity", "expected finite"]);
    }
}

#[test]
fn shards() {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00002.safetensors";
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("a missing shard", json!("model-00009-of-00009.safetensors"), &["model-00009-of-00009.safetensors"]),
        ("another shard", json!("model-00002-of-00002.safetensors"), &[INDEX, "lm_head.weight", "00002-of-00002"]),
        ("a path upwards", json!("../model.safetensors"), &[INDEX, "lm_head.weight", "same directory"]),
        ("a path downwards", json!("a/model.safetensors"), &[INDEX, "lm_head.weight", "same directory"]),
        ("a path of Windows", json!("..\\model.safetensors"), &[INDEX, "lm_head.weight", "same directory"]),
        ("an absolute path", json!("/etc/model.safetensors"), &[INDEX, "lm_head.weight", "same directory"]),
        ("a hidden file", json!("..safetensors"), &[INDEX, "lm_head.weight", "same directory"]),
        ("the index itself", json!(INDEX), &[INDEX, "lm_head.weight", "expected the name"]),
        ("a name with a zero", json!("a\0.safetensors"), &["a\0.safetensors"]),
        ("no name", json!(7), &[INDEX, "lm_head.weight", "expected the name"]),
        ("null", Value::Null, &[INDEX, "lm_head.weight", "null", "expected the name"]),
    ];
    for (n, (what, value, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("shard-{n}"), "llama_bitlinear");
        edit_json(&directory.join(INDEX), |json| json["weight_map"]["lm_head.weight"] = value);
        refused(what, &directory, expected);
    }
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("no weight_map", json!({}), &[INDEX, "weight_map", "missing", "an object of file names"]),
        ("a list", json!({ "weight_map": [] }), &[INDEX, "weight_map", "an object of file names"]),
        ("text", json!({ "weight_map": FIRST }), &[INDEX, "weight_map", "an object of file names"]),
        ("no object", json!([]), &[INDEX, "weight_map", "an object of file names"]),
        ("no tensors", json!({ "weight_map": {} }), &["model.embed_tokens", "missing"]),
        ("a ghost", json!({ "weight_map": { "ghost": FIRST } }), &[INDEX, "ghost", FIRST]),
    ];
    for (n, (what, index, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("index-{n}"), "llama_bitlinear");
        fs::write(directory.join(INDEX), index.to_string()).unwrap();
        refused(what, &directory, expected);
    }
    let directory = copy("index-text", "llama_bitlinear");
    fs::write(directory.join(INDEX), "{").unwrap();
    refused("an index that is not JSON", &directory, &[INDEX, "not JSON"]);
    let directory = copy("index-shard", "llama_bitlinear");
    fs::write(directory.join(FIRST), "").unwrap();
    refused("an empty shard", &directory, &[FIRST, "is empty"]);
    let (header, data) = tensors(&trion_tests::golden("llama_bitlinear").join(FIRST));
    write_tensors(&directory.join(FIRST), &header.to_string(), &data[..data.len() - 1], 0);
    refused("a truncated shard", &directory, &[FIRST, "header"]);
}

#[test]
fn norms_that_the_architecture_asks_for() {
    for (n, (name, tensor)) in [
        ("bitnet_offline", "model.layers.1.mlp.ffn_sub_norm.weight"),
        ("bitnet_online", "model.layers.0.self_attn.attn_sub_norm.weight"),
        ("qwen3_online", "model.layers.0.self_attn.q_norm.weight"),
        ("llama_rms_norm", "model.layers.0.self_attn.k_proj.rms_norm.weight"),
    ]
    .into_iter()
    .enumerate()
    {
        let directory = copy(&format!("norm-{n}"), name);
        edit_tensors(&directory.join(FILE), |header, _| rename(header, tensor, "spare"));
        // A projection's norm goes by two names; the error has the one that Trion writes.
        let named = tensor.replace(".rms_norm.", ".norm.");
        refused(tensor, &directory, &[&named, "is missing"]);
    }
}
