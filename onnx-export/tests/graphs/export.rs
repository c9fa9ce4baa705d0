//! Exported folders: what ONNX's own checker says of them, what they weigh, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use trion_engine::tokenizer::Tokenizer;
use trion_engine::{Model, prompt_tokens};
use trion_onnx::proto::ModelProto;
use trion_onnx::proto::tensor_proto::DataType;
use trion_onnx::{DATA_FILE, ExportOptions, GRAPH_FILE, HeadFormat, WeightFormat, export};
use trion_tests::{GOLDEN, golden, onnx_packages, python, scratch};

use crate::{default_model, models};

fn graph(directory: &Path) -> ModelProto {
    ModelProto::decode(&*fs::read(directory.join(GRAPH_FILE)).unwrap()).unwrap()
}

/// Runs ONNX's checker with strict shape inference on exports, and each in ONNX Runtime.
fn check(directories: &[PathBuf], contrib: bool) {
    let Some(packages) = onnx_packages() else { return };
    let option = contrib.then_some(Path::new("--contrib"));
    let arguments: Vec<&Path> = option.into_iter().chain(directories.iter().map(PathBuf::as_path)).collect();
    let output = python(&packages, "onnx-export/tests/python/check_export.py", &arguments);
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert!(output.status.success(), "{errors}");
    assert_eq!(printed.lines().count(), directories.len(), "{errors}");
}

#[test]
fn every_model_passes_the_checker_of_onnx() {
    let scratch = scratch("onnx-checker");
    let mut directories = Vec::new();
    for (name, path) in models() {
        let model = Model::open(path).unwrap();
        for cache in [true, false] {
            let directory = scratch.join(format!("{name}-{cache}"));
            export(&model, &directory, &ExportOptions { cache, ..ExportOptions::default() }).unwrap();
            directories.push(directory);
        }
    }
    check(&directories, false);
}

#[test]
fn every_form_of_weights_and_head_passes_the_checker_of_onnx() {
    let scratch = scratch("onnx-forms");
    let (mut standard, mut contrib) = (Vec::new(), Vec::new());
    for name in GOLDEN {
        let model = Model::open(golden(name)).unwrap();
        for weights in [WeightFormat::Int8, WeightFormat::Float, WeightFormat::Matmulnbits] {
            let directory = scratch.join(format!("{name}-{weights:?}"));
            let options = ExportOptions { weights, external_over: 0, ..ExportOptions::default() };
            match export(&model, &directory, &options) {
                Ok(_) if weights == WeightFormat::Matmulnbits => contrib.push(directory),
                Ok(_) => standard.push(directory),
                Err(error) => {
                    assert_eq!((name, weights), ("qwen3_groups", WeightFormat::Matmulnbits), "{error}");
                    assert!(error.to_string().starts_with("model.layers.0.self_attn.q_proj: "), "{error}");
                    assert!(!directory.exists());
                }
            }
        }
        for head in [HeadFormat::F32, HeadFormat::F16, HeadFormat::Bf16] {
            let directory = scratch.join(format!("{name}-{head:?}"));
            match export(&model, &directory, &ExportOptions { head, ..ExportOptions::default() }) {
                Ok(_) => standard.push(directory),
                Err(error) => {
                    assert_eq!(name, "qwen3_groups", "{error}");
                    assert!(error.to_string().starts_with("model.embed_tokens: is ternary"), "{error}");
                }
            }
        }
    }
    check(&standard, false);
    check(&contrib, true);
    // Nothing half-done is left beside them.
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), standard.len() + contrib.len());
}

#[test]
fn a_ternary_weight_takes_two_bits() {
    let directory = scratch("onnx-bits").join("export");
    let model = Model::open(default_model()).unwrap();
    let bytes = export(&model, &directory, &ExportOptions { external_over: 0, ..ExportOptions::default() }).unwrap();
    let graph = graph(&directory).graph.unwrap();
    let number = |entry: &str, tensor: &trion_onnx::proto::TensorProto| {
        let entry = tensor.external_data.iter().find(|e| e.key() == entry).unwrap();
        entry.value().parse::<u64>().unwrap()
    };
    // With the gap before the tensor behind it.
    let (mut trits, mut weight_bytes) = (0, 0);
    let external: Vec<_> = graph.initializer.iter().filter(|tensor| !tensor.external_data.is_empty()).collect();
    for pair in external.windows(2) {
        if pair[0].data_type() == i32::from(DataType::Int2) {
            trits += pair[0].dims.iter().product::<i64>() as u64;
            weight_bytes += number("offset", pair[1]) - number("offset", pair[0]);
        }
    }
    let config = model.config();
    let projections = trion_core::Projection::ALL.map(|p| p.shape(config).iter().product::<usize>());
    assert_eq!(trits as usize, config.num_hidden_layers * projections.iter().sum::<usize>());
    let bits = 8.0 * weight_bytes as f64 / trits as f64;
    println!("{trits} ternary weights, {bits:.4} bits each; {bytes} bytes in all");
    assert!(bits <= 2.02, "{bits} bits");
    assert_eq!(directory.join(DATA_FILE).metadata().unwrap().len(), {
        let last = external.last().unwrap();
        number("offset", last) + number("length", last)
    });
}

#[test]
fn the_graph_says_where_it_comes_from() {
    let scratch = scratch("onnx-metadata");
    let model = Model::open(golden("bitnet_offline")).unwrap();
    let of = |model: &Model, name: &str| {
        let options = ExportOptions { license: Some("MIT".to_owned()), ..ExportOptions::default() };
        export(model, &scratch.join(name), &options).unwrap();
        graph(&scratch.join(name))
    };
    let (first, other) = (of(&model, "first"), of(&Model::open(golden("bitnet_online")).unwrap(), "other"));
    let value = |graph: &ModelProto, key: &str| {
        graph.metadata_props.iter().find(|entry| entry.key() == key).unwrap().value().to_owned()
    };
    assert_eq!(first.producer_name(), "trion-onnx");
    assert_eq!(value(&first, "license"), "MIT");
    assert_eq!(value(&first, "source_sha256").len(), 64);
    assert_ne!(value(&first, "source_sha256"), value(&other, "source_sha256"));
    assert_eq!(first.encode_to_vec(), of(&model, "again").encode_to_vec());
}

#[test]
fn what_is_there_is_not_lost() {
    let scratch = scratch("onnx-replace");
    let model = Model::open(golden("bitnet_offline")).unwrap();
    let directory = scratch.join("export");
    let refused = |options: &ExportOptions| export(&model, &directory, options).unwrap_err().to_string();
    let external = ExportOptions { external_over: 0, ..ExportOptions::default() };

    // A folder with something else.
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("config.json"), "mine").unwrap();
    let replacing = ExportOptions { replace: true, ..ExportOptions::default() };
    assert!(refused(&external).ends_with("is not empty, and holds no export"));
    assert!(refused(&replacing).ends_with("is not empty, and holds no export"));
    assert_eq!(fs::read_to_string(directory.join("config.json")).unwrap(), "mine");
    fs::remove_file(directory.join("config.json")).unwrap();

    // An empty one, then one with an export and a file beside it.
    export(&model, &directory, &external).unwrap();
    fs::write(directory.join("notes.txt"), "mine").unwrap();
    assert!(refused(&external).ends_with("holds an export already"));
    assert!(directory.join(DATA_FILE).exists());
    export(&model, &directory, &ExportOptions { cache: false, ..replacing.clone() }).unwrap();
    assert!(!directory.join(DATA_FILE).exists() && !directory.join("genai_config.json").exists());
    assert_eq!(fs::read_to_string(directory.join("notes.txt")).unwrap(), "mine");
    assert_eq!(graph(&directory).graph.unwrap().input.len(), 2);

    // A place that cannot be written, and an absurd size.
    let below_a_file = directory.join("config.json/export");
    assert!(export(&model, &below_a_file, &external).unwrap_err().to_string().contains("config.json"));
    let absurd = ExportOptions { external_over: u64::MAX, ..ExportOptions::default() };
    assert!(export(&model, &scratch.join("absurd"), &absurd).unwrap_err().to_string().contains("2^30"));
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1);
}

/// Programs that go by the files alone begin a text with the tokens that Trion begins it with.
#[test]
fn the_tokenizer_of_an_export_begins_texts_as_trion_does() {
    let scratch = scratch("onnx-tokenizer");
    for (name, path) in models() {
        let model = Model::open(path).unwrap();
        if !model.has_tokenizer() {
            continue;
        }
        let directory = scratch.join(&name);
        export(&model, &directory, &ExportOptions::default()).unwrap();
        let tokenizer = Tokenizer::from_json(&fs::read(directory.join("tokenizer.json")).unwrap()).unwrap();
        for text in ["Once upon a time", "a . b"] {
            let expected = prompt_tokens(&model, text, true).unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{name}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), model.tokenizer().unwrap().encode(text, false).unwrap());
        }
        let settings = fs::read_to_string(directory.join("tokenizer_config.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
        assert_eq!(settings["add_bos_token"], model.bos_token_id().is_some());
        assert_eq!(settings.get("bos_token").is_some(), model.bos_token_id().is_some());
    }
    assert!(scratch.join("default").exists());
}
