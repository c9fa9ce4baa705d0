//! Files, states and calls that are wrong: each is refused with an error that names the place, and nothing panics.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use trion_engine::{
    CacheType, GenerateOptions, Logits, Model, PackOptions, Sampler, SamplerOptions, Serial, Session, SessionOptions,
    generate, quantize,
};
use trion_tests::{golden, scratch};

/// No file here is larger than this, so nothing that is allocated for one may be.
const MOST_BYTES: usize = 8 << 20;

/// Remembers the largest block that was ever asked for.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// A copy of a golden checkpoint, to be spoiled.
fn copy(test: &str, name: &str) -> PathBuf {
    let directory = scratch(&format!("malformed-{test}"));
    for file in fs::read_dir(golden(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), directory.join(file.file_name())).unwrap();
    }
    directory
}

/// Demands an error that has all of `expected` in its text.
fn refused(what: &str, path: &Path, expected: &[&str]) {
    match Model::open(path) {
        Ok(_) => panic!("{what}: was accepted"),
        Err(error) => {
            let text = error.to_string();
            for part in expected {
                assert!(text.contains(part), "{what}: {text:?} does not say {part:?}");
            }
            let largest = LARGEST.load(Ordering::Relaxed);
            assert!(largest < MOST_BYTES, "{what}: {largest} bytes were asked for at once");
        }
    }
}

fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// Reads a safetensors file's header, lets `edit` change header and data, and writes it back.
fn edit_tensors(file: &Path, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    edit(&mut header, &mut data);
    let mut header = header.to_string();
    while !(header.len() + 8).is_multiple_of(64) {
        header.push(' ');
    }
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    fs::write(file, out).unwrap();
}

/// The bytes of a tensor within the data.
fn place(header: &Value, tensor: &str) -> std::ops::Range<usize> {
    let offsets = &header[tensor]["data_offsets"];
    offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize
}

#[test]
fn configurations() {
    /// Which field becomes what, and what the error says.
    type Row = (&'static str, Value, &'static [&'static str]);
    let rows: Vec<Row> = vec![
        ("architectures", json!(["MambaForCausalLM"]), &["MambaForCausalLM", "LlamaForCausalLM"]),
        ("architectures", json!("BitNet"), &["architectures", "expected"]),
        ("architectures", Value::Null, &["architectures", "missing"]),
        ("hidden_size", Value::Null, &["hidden_size", "missing"]),
        ("hidden_size", json!("64"), &["hidden_size", "\"64\"", "whole number"]),
        ("hidden_size", json!(-64), &["hidden_size", "-64"]),
        ("hidden_size", json!(64.5), &["hidden_size", "64.5"]),
        ("hidden_size", json!(0), &["hidden_size", "1 to 2^24"]),
        ("hidden_size", json!(1_u64 << 40), &["hidden_size", "1 to 2^24"]),
        ("hidden_size", json!(128), &["embed_tokens", "[288, 64]", "[288, 128]"]),
        ("vocab_size", json!(0), &["vocab_size"]),
        ("vocab_size", json!(289), &["embed_tokens", "[289, 64]"]),
        ("intermediate_size", json!(u64::MAX), &["intermediate_size"]),
        ("intermediate_size", json!(180), &["gate_proj", "[45, 64]"]),
        ("num_hidden_layers", json!(0), &["num_hidden_layers"]),
        ("num_hidden_layers", json!(1_000_000_000), &["num_hidden_layers", "4096"]),
        ("num_hidden_layers", json!(3), &["model.layers.2", "missing"]),
        ("num_attention_heads", json!(0), &["num_attention_heads"]),
        ("num_attention_heads", json!(5), &["num_key_value_heads", "divisor"]),
        ("num_key_value_heads", json!(0), &["num_key_value_heads"]),
        ("head_dim", json!(7), &["head_dim", "even"]),
        ("head_dim", json!(1 << 24), &["num_attention_heads * head_dim"]),
        ("max_position_embeddings", json!(0), &["max_position_embeddings"]),
        ("rms_norm_eps", json!(-1.0), &["rms_norm_eps"]),
        ("rms_norm_eps", json!("small"), &["rms_norm_eps", "a number"]),
        ("rope_theta", json!(0.0), &["rope_theta"]),
        ("rope_scaling", json!({ "rope_type": "yarn" }), &["rope_scaling", "yarn"]),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu", "relu2"]),
        ("hidden_act", json!(7), &["hidden_act"]),
        ("attention_bias", json!(true), &["attention_bias"]),
        ("attention_bias", json!("no"), &["attention_bias", "true or false"]),
        ("bos_token_id", json!(-1), &["bos_token_id"]),
        ("eos_token_id", json!(["x"]), &["eos_token_id"]),
        ("quantization_config", json!({ "quant_method": "gptq" }), &["quant_method", "gptq"]),
        (
            "quantization_config",
            json!({ "quant_method": "bitnet", "linear_class": "other" }),
            &["linear_class", "other"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "bitnet", "modules_to_not_convert": ["q_proj"] }),
            &["modules_to_not_convert", "q_proj"],
        ),
        (
            "quantization_config",
            json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online" }),
            &["q_proj", "[16, 64]", "[64, 64]"],
        ),
    ];
    for (n, (field, value, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("config-{n}"), "bitnet_offline");
        edit_json(&directory.join("config.json"), |config| config[field] = value.clone());
        refused(&format!("{field} = {value}"), &directory, expected);
    }
}

#[test]
fn files_that_are_not_there_or_not_what_they_say() {
    let write = |n: &str, file: &str, bytes: &[u8]| {
        let directory = copy(&format!("file-{n}"), "bitnet_offline");
        fs::write(directory.join(file), bytes).unwrap();
        directory
    };
    let empty = scratch("malformed-empty");
    refused("an empty directory", &empty, &["config.json"]);
    refused("a path without a file", &empty.join("nothing"), &["nothing"]);
    fs::write(empty.join("text.bin"), "what is this").unwrap();
    refused("another kind of file", &empty.join("text.bin"), &["text.bin"]);
    fs::write(empty.join("empty.bin"), "").unwrap();
    refused("an empty file", &empty.join("empty.bin"), &["empty.bin", "empty"]);
    refused("config.json", &write("a", "config.json", b"{"), &["config.json", "JSON"]);
    refused("config.json", &write("b", "config.json", b"\xff\xfe"), &["config.json", "JSON"]);
    refused("generation_config.json", &write("c", "generation_config.json", b"[,"), &["generation_config.json"]);
    refused("tokenizer.json", &write("d", "tokenizer.json", b"{}"), &["tokenizer.json"]);
    refused("tokenizer.json", &write("e", "tokenizer.json", b"\xff"), &["tokenizer.json", "UTF-8"]);
    refused("chat_template.jinja", &write("f", "chat_template.jinja", b"{% if %}"), &["chat_template"]);
    refused("tokenizer_config.json", &write("g", "tokenizer_config.json", b"nope"), &["tokenizer_config.json"]);
    for (n, bytes) in [
        &b""[..],
        b"\x01",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{]",
        b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff",
    ]
    .into_iter()
    .enumerate()
    {
        let directory = write(&format!("h{n}"), "model.safetensors", bytes);
        refused("model.safetensors", &directory, &["model.safetensors"]);
    }
}

#[test]
fn truncated_files() {
    let directory = copy("truncated", "bitnet_offline");
    let file = directory.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let packed = scratch("malformed-truncated-packed").join("model.safetensors");
    quantize(&golden("bitnet_offline"), &packed, &PackOptions::default(), &mut |_, _| {}).unwrap();
    let whole_packed = fs::read(&packed).unwrap();
    for part in 0..20 {
        fs::write(&file, &whole[..whole.len() * part / 20]).unwrap();
        refused("truncated checkpoint", &directory, &["model.safetensors"]);
        fs::write(&packed, &whole_packed[..whole_packed.len() * part / 20]).unwrap();
        refused("truncated packed file", &packed, &["model.safetensors"]);
    }
}

#[test]
fn tensors_of_checkpoints() {
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    const SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";
    const NORM: &str = "model.layers.1.input_layernorm.weight";
    type Edit = fn(&mut Value, &mut Vec<u8>);
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("no q_proj", |h, _| drop(h.as_object_mut().unwrap().remove(Q)), &["model.safetensors"]),
        ("renamed q_proj", |h, _| rename(h, Q, "spare"), &["q_proj", "missing"]),
        ("renamed scale", |h, _| rename(h, SCALE, "spare"), &[SCALE, "missing"]),
        ("renamed norm", |h, _| rename(h, NORM, "spare"), &[NORM, "missing"]),
        ("renamed embedding", |h, _| rename(h, "model.embed_tokens.weight", "spare"), &["embed_tokens", "missing"]),
        ("a bias", |h, _| rename(h, NORM, "model.layers.0.self_attn.q_proj.bias"), &["q_proj.bias", "bias"]),
        ("another shape", |h, _| h[Q]["shape"] = json!([64, 16]), &[Q, "[64, 16]", "[16, 64]"]),
        ("another dtype", |h, _| h[Q]["dtype"] = json!("I8"), &[Q, "I8", "U8"]),
        ("an unknown dtype", |h, _| h[Q]["dtype"] = json!("TRIT"), &["model.safetensors", "header"]),
        ("NaN scale", |h, d| d[place(h, SCALE)].copy_from_slice(&[0xc0, 0x7f]), &[SCALE, "NaN"]),
        ("infinite scale", |h, d| d[place(h, SCALE)].copy_from_slice(&[0x80, 0x7f]), &[SCALE, "inf"]),
        ("zero scale", |h, d| d[place(h, SCALE)].fill(0), &[SCALE, "0"]),
        ("code 3", |h, d| d[place(h, Q)][5] = 0b11, &[Q, "row 0, column 5", "code 3"]),
        ("NaN norm", |h, d| d[place(h, NORM)].fill(0xff), &[NORM, "NaN"]),
        ("offsets outside", |h, _| h[Q]["data_offsets"] = json!([0, 1_u64 << 60]), &["model.safetensors"]),
        ("reversed offsets", |h, _| h[Q]["data_offsets"] = json!([2048, 1024]), &["model.safetensors"]),
        ("overflowing shape", |h, _| h[Q]["shape"] = json!([1_u64 << 40, 1_u64 << 40]), &["model.safetensors"]),
        ("overlapping tensors", |h, _| h[Q]["data_offsets"] = h[NORM]["data_offsets"].clone(), &["model.safetensors"]),
    ];
    for (n, (what, edit, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("tensor-{n}"), "bitnet_offline");
        edit_tensors(&directory.join("model.safetensors"), edit);
        refused(what, &directory, expected);
    }
}

#[test]
fn float_masters_and_heads() {
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    let directory = copy("masters", "bitnet_online");
    edit_tensors(&directory.join("model.safetensors"), |h, d| d[place(h, Q)][..2].copy_from_slice(&[0xc0, 0x7f]));
    refused("a NaN among masters", &directory, &[Q, "NaN"]);
    let directory = copy("head", "bitnet_offline");
    edit_json(&directory.join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    refused("a head that is neither there nor tied", &directory, &["lm_head.weight", "tie_word_embeddings"]);
}

fn rename(header: &mut Value, from: &str, to: &str) {
    let entry = header.as_object_mut().unwrap().remove(from).unwrap();
    header[to] = entry;
}

#[test]
fn shards() {
    let index = "model.safetensors.index.json";
    let first = |json: &Value| json["weight_map"].as_object().unwrap().keys().next().unwrap().clone();
    let rows: [(&str, Value, &[&str]); 5] = [
        ("a missing shard", json!("model-00009-of-00009.safetensors"), &["model-00009-of-00009"]),
        ("a path upwards", json!("../model.safetensors"), &[index, "same directory"]),
        ("an absolute path", json!("/etc/model.safetensors"), &[index, "same directory"]),
        ("the index itself", json!(index), &[index, "expected"]),
        ("no name", json!(7), &[index, "expected"]),
    ];
    for (n, (what, value, expected)) in rows.into_iter().enumerate() {
        let directory = copy(&format!("shard-{n}"), "llama_bitlinear");
        edit_json(&directory.join(index), |json| {
            let tensor = first(json);
            json["weight_map"][tensor] = value;
        });
        refused(what, &directory, expected);
    }
    let directory = copy("shard-map", "llama_bitlinear");
    edit_json(&directory.join(index), |json| json["weight_map"] = json!([]));
    refused("no weight_map", &directory, &[index, "weight_map"]);
    edit_json(&directory.join(index), |json| {
        json["weight_map"] = json!({ "ghost": "model-00001-of-00002.safetensors" });
    });
    refused("a tensor that is not there", &directory, &["ghost", "model-00001-of-00002"]);
}

#[test]
fn packed_files() {
    const TRITS: &str = "model.layers.0.mlp.up_proj.trits";
    const SCALE: &str = "model.layers.0.mlp.up_proj.scale";
    fn config(header: &mut Value, field: &str, value: Value) {
        let text = header["__metadata__"]["config"].as_str().unwrap().to_owned();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[field] = value;
        header["__metadata__"]["config"] = json!(config.to_string());
    }
    type Edit = fn(&mut Value, &mut Vec<u8>);
    let rows: Vec<(&str, Edit, &[&str])> = vec![
        ("version", |h, _| h["__metadata__"]["version"] = json!("9"), &["version", "9"]),
        ("no config", |h, _| drop(h["__metadata__"].as_object_mut().unwrap().remove("config")), &["config", "missing"]),
        ("config", |h, _| h["__metadata__"]["config"] = json!("{"), &["config"]),
        ("a field of the config", |h, _| config(h, "head_dim", json!(null)), &["config"]),
        ("an absurd config", |h, _| config(h, "hidden_size", json!(1 << 30)), &["hidden_size"]),
        ("another config", |h, _| config(h, "hidden_size", json!(96)), &["q_proj", "1024", "1536"]),
        ("group", |h, _| config(h, "activation_group", json!(7)), &["activation_group"]),
        ("activation", |h, _| config(h, "hidden_act", json!("tanh")), &["config", "tanh"]),
        ("code 3", |h, d| d[place(h, TRITS)][3] = 0b11 << 4, &[TRITS, "row 0", "code 3"]),
        ("NaN scale", |h, d| d[place(h, SCALE)].fill(0xff), &[TRITS, "scale", "NaN"]),
        ("no scale", |h, _| rename(h, SCALE, "spare"), &["up_proj", ".scale"]),
        ("trits of another type", |h, _| h[TRITS]["dtype"] = json!("I8"), &[TRITS, "I8"]),
        ("no trits", |h, _| rename(h, TRITS, "spare"), &["up_proj", "missing"]),
        ("tokenizer", |h, _| h["__metadata__"]["tokenizer.json"] = json!("[]"), &["tokenizer.json"]),
        ("template", |h, _| h["__metadata__"]["chat_template"] = json!("{{"), &["chat_template"]),
    ];
    for (n, (what, edit, expected)) in rows.into_iter().enumerate() {
        let file = scratch(&format!("malformed-packed-{n}")).join("model.safetensors");
        quantize(&golden("bitnet_offline"), &file, &PackOptions::default(), &mut |_, _| {}).unwrap();
        edit_tensors(&file, edit);
        refused(what, &file, expected);
    }
}

fn error_of<T>(result: trion_engine::Result<T>) -> String {
    match result {
        Ok(_) => panic!("was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn calls() {
    let model = Model::open(golden("bitnet_offline")).unwrap();
    let options = SessionOptions { max_batch: 8, ..SessionOptions::new(16) };
    let with = |change: fn(&mut SessionOptions)| {
        let mut options = options;
        change(&mut options);
        error_of(Session::new(&model, options))
    };
    assert!(with(|o| o.context = 0).contains("context"));
    assert!(with(|o| o.context = usize::MAX).contains("context"));
    assert!(with(|o| o.max_batch = 0).contains("max_batch"));
    assert!(with(|o| o.max_batch = 17).contains("max_batch"));

    let mut session = Session::new(&model, options).unwrap();
    assert!(error_of(session.advance(1, &Serial)).contains("no tokens"));
    assert!(error_of(session.push(&[])).contains("no tokens"));
    assert!(error_of(session.push(&[1, 288])).contains("token 288"));
    assert!(error_of(session.push(&[1; 17])).contains("17 tokens"));
    assert!(error_of(session.rewind(1)).contains("rewind"));
    assert_eq!(session.tokens(), [0_u32; 0], "what was refused left nothing behind");
    let all = SessionOptions { logits: Logits::All, ..options };
    assert!(error_of(Session::new(&model, all).unwrap().push(&[1; 9])).contains("max_batch"));

    let core = trion_core::Session::bytes(model.config(), &options);
    let mut small = vec![0; core - 1];
    let refused = trion_core::Session::new(model.core(), options, trion_engine::Kernel::detect(), &mut small);
    assert!(matches!(refused, Err(trion_core::Error::BufferTooSmall { .. })));

    for change in [
        |o: &mut SamplerOptions| o.temperature = f32::NAN,
        |o: &mut SamplerOptions| o.temperature = -1.0,
        |o: &mut SamplerOptions| o.top_k = 257,
        |o: &mut SamplerOptions| o.top_p = 0.0,
        |o: &mut SamplerOptions| o.min_p = 2.0,
        |o: &mut SamplerOptions| o.repetition_penalty = 0.0,
    ] {
        let mut options = SamplerOptions::GREEDY;
        change(&mut options);
        assert!(matches!(Sampler::new(options), Err(trion_core::Error::Sampler { .. })));
    }
    let long = "word ".repeat(1000);
    let text =
        |model: &Model, prompt: &str| error_of(generate(model, prompt, &GenerateOptions::default(), &Serial, |_| true));
    assert!(text(&model, &long).contains("context"));
    let silent = Model::open(golden("llama_float")).unwrap();
    assert!(text(&silent, "words").contains("tokenizer.json"));
}

#[test]
fn saved_states() {
    let model = Model::open(golden("bitnet_offline")).unwrap();
    let options = SessionOptions { max_batch: 4, ..SessionOptions::new(16) };
    let mut session = Session::new(&model, options).unwrap();
    session.evaluate(&[1, 2, 3], &Serial).unwrap();
    let saved = session.save().unwrap();
    let mut other = Session::new(&model, options).unwrap();
    for length in (0..saved.len()).filter(|n| *n < 80 || n % 97 == 0) {
        assert!(error_of(other.load(&saved[..length])).contains("saved state"), "{length} bytes");
    }
    for at in 0..48 {
        let mut wrong = saved.clone();
        wrong[at] ^= 0x41;
        assert!(other.load(&wrong).is_err(), "byte {at}");
    }
    let mut longer = saved.clone();
    longer.push(0);
    assert!(error_of(other.load(&longer)).contains("length"));
    let mut token = saved.clone();
    token[48..52].fill(0xff);
    assert!(error_of(other.load(&token)).contains("vocabulary"));
    assert_eq!(other.tokens(), [0_u32; 0], "what was refused left nothing behind");

    let half = SessionOptions { cache: CacheType::F16, ..options };
    assert!(error_of(Session::new(&model, half).unwrap().load(&saved)).contains("number format"));
    let short = SessionOptions { max_batch: 2, ..SessionOptions::new(2) };
    assert!(error_of(Session::new(&model, short).unwrap().load(&saved)).contains("positions"));
    let stranger = Model::open(golden("bitnet_online")).unwrap();
    assert!(error_of(Session::new(&stranger, options).unwrap().load(&saved)).contains("another model"));
    other.load(&saved).unwrap();
    assert_eq!(other.logits(), session.logits());
}
