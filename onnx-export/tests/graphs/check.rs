//! ONNX Runtime beside Trion: right exports pass, broken ones fail where they are broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use trion_engine::Model;
use trion_onnx::check::{CheckOptions, Mode, Report, check, default_prompts};
use trion_onnx::proto::{ModelProto, TensorProto};
use trion_onnx::runtime::Runtime;
use trion_onnx::{DATA_FILE, Error, ExportOptions, GRAPH_FILE, HeadFormat, WeightFormat, export};
use trion_tests::{GOLDEN, golden, onnx_packages, scratch};

use crate::{default_model, models};

/// ONNX Runtime; `None` where it is not installed.
fn runtime() -> Option<Runtime> {
    let library = onnx_packages()?.join("onnxruntime/capi/libonnxruntime.so.1.31.1");
    Some(Runtime::load(Some(&library)).unwrap())
}

fn run(model: &Model, directory: &Path, runtime: &Runtime, prompts: usize, tokens: usize) -> Report {
    let mut all = default_prompts(model, tokens).unwrap();
    assert_eq!(all.len(), 20);
    all.truncate(prompts);
    check(model, directory, runtime, &CheckOptions { prompts: all, tokens, threads: 1 }).unwrap()
}

/// Exports a model with and without a cache, and demands that everything agrees: twenty prompts with 64 tokens behind
/// each, where the model has room for them.
fn passes(name: &str, model: &Model, runtime: &Runtime) {
    let scratch = scratch(&format!("onnx-check-{name}"));
    for cache in [true, false] {
        let directory = scratch.join(format!("{cache}"));
        export(model, &directory, &ExportOptions { cache, ..ExportOptions::default() }).unwrap();
        let tokens = 64.min(model.config().max_position_embeddings / 2);
        let report = run(model, &directory, runtime, 20, tokens);
        println!("{name}, with{} a cache: {report}", if cache { "" } else { "out" });
        assert!(report.passed, "{name}: {:?}", report.failure);
        let modes: Vec<Mode> = report.modes.iter().map(|mode| mode.mode).collect();
        let expected =
            if cache { vec![Mode::Cache, Mode::Whole, Mode::Batch] } else { vec![Mode::Whole, Mode::WholeBatch] };
        assert_eq!(modes, expected);
        for mode in &report.modes {
            assert_eq!((mode.prompts, mode.greedy_tokens), (20, 20 * tokens as u64));
            // Where the engines choose differently at all, it takes a tie.
            assert!(mode.greedy_equal == mode.greedy_tokens || mode.ties > 0, "{name}: {mode:?}");
            assert!(mode.greedy_equal * 100 >= mode.greedy_tokens * 95, "{name}: {mode:?}");
        }
        let ternary = report.layers.iter().any(|layer| layer.accumulators > 0 && layer.activations > 0);
        assert_eq!(ternary, name != "llama_float", "{name}");
    }
}

/// Those of [`models`] that `wanted` picks.
fn pass(wanted: impl Fn(&str) -> bool) {
    let Some(runtime) = runtime() else { return };
    for (name, path) in models().into_iter().filter(|(name, _)| wanted(name)) {
        passes(&name, &Model::open(path).unwrap(), &runtime);
    }
}

#[test]
fn golden_models_agree() {
    pass(|name| GOLDEN.contains(&name));
}

#[test]
fn models_of_transformers_agree() {
    pass(|name| name.starts_with("cases-"));
}

#[test]
fn the_default_model_agrees() {
    pass(|name| name == "default");
}

#[test]
fn the_trained_checkpoint_agrees() {
    pass(|name| name == "models-tales-14m");
}

#[test]
fn every_form_of_weights_gives_the_same_integers() {
    let Some(runtime) = runtime() else { return };
    let scratch = scratch("onnx-check-forms");
    for name in GOLDEN {
        let model = Model::open(golden(name)).unwrap();
        for weights in [WeightFormat::Int8, WeightFormat::Float, WeightFormat::Matmulnbits] {
            let directory = scratch.join(format!("{name}-{weights:?}"));
            if export(&model, &directory, &ExportOptions { weights, ..ExportOptions::default() }).is_ok() {
                let report = run(&model, &directory, &runtime, 6, 16);
                assert!(report.passed, "{name} with {weights:?}: {:?}", report.failure);
            }
        }
    }
}

#[test]
fn a_head_of_fewer_bits_is_another_model() {
    let Some(runtime) = runtime() else { return };
    let scratch = scratch("onnx-check-heads");
    // In bfloat16, and in single precision.
    for (name, kept) in [("bitnet_offline", [HeadFormat::F32, HeadFormat::Bf16]), ("1bitllm", [HeadFormat::F32; 2])] {
        let model = Model::open(golden(name)).unwrap();
        for head in [HeadFormat::F32, HeadFormat::F16, HeadFormat::Bf16] {
            let directory = scratch.join(format!("{name}-{head:?}"));
            export(&model, &directory, &ExportOptions { head, ..ExportOptions::default() }).unwrap();
            let report = run(&model, &directory, &runtime, 3, 4);
            if kept.contains(&head) {
                assert!(report.passed, "{name} with {head:?}: {:?}", report.failure);
            } else if let Some(failure) = report.failure {
                assert_eq!(failure.place, "output of model.embed_tokens", "{name} with {head:?}");
            } else {
                // Numbers that happen to be exact in half precision.
                assert_eq!((name, head), ("bitnet_offline", HeadFormat::F16));
            }
        }
    }
}

/// An export of the default model, one tensor of which is changed by `change`; what the check says of it.
fn broken(runtime: &Runtime, name: &str, tensor: &str, change: impl FnOnce(&mut Vec<u8>)) -> Report {
    let directory = scratch(&format!("onnx-broken-{name}")).join("export");
    let model = Model::open(default_model()).unwrap();
    export(&model, &directory, &ExportOptions::default()).unwrap();
    let file = directory.join(GRAPH_FILE);
    let mut proto = ModelProto::decode(&*fs::read(&file).unwrap()).unwrap();
    let initializers = &mut proto.graph.as_mut().unwrap().initializer;
    let found: &mut TensorProto = initializers.iter_mut().find(|it| it.name() == tensor).unwrap();
    change(found.raw_data.as_mut().unwrap());
    fs::write(&file, proto.encode_to_vec()).unwrap();
    run(&model, &directory, runtime, 2, 4)
}

/// Makes the first trit that is -1 a +1.
fn flip(bytes: &mut [u8]) {
    let i = (0..4 * bytes.len()).find(|i| (bytes[i / 4] >> (2 * (i % 4))) & 3 == 3).unwrap();
    bytes[i / 4] ^= 2 << (2 * (i % 4));
}

#[test]
fn a_broken_weight_is_found_where_it_is() {
    let Some(runtime) = runtime() else { return };
    for module in ["model.layers.0.self_attn.k_proj", "model.layers.3.mlp.up_proj", "model.layers.7.mlp.down_proj"] {
        let report = broken(&runtime, &module.replace('.', "-"), &format!("{module}.weight"), |bytes| flip(bytes));
        let failure = report.failure.unwrap_or_else(|| panic!("{module} passes"));
        assert_eq!(failure.place, module);
        assert!(failure.message.starts_with("the sum of row "), "{failure}");
        assert!(!report.passed);
    }
}

#[test]
fn a_broken_number_is_found_behind_its_place() {
    let Some(runtime) = runtime() else { return };
    // A bit of the mantissa of the first little-endian single: of a scale one part in 65536, of a norm one in 16, since
    // less often rounds to the same integers, and then nothing is broken.
    for (tensor, place, byte, bit) in [
        ("model.layers.2.self_attn.q_proj.weight_scale", "output of model.layers.2.self_attn.q_proj", 0, 7),
        ("model.layers.4.input_layernorm.weight", "input of model.layers.4.self_attn.q_proj", 2, 3),
        ("model.layers.6.mlp.ffn_sub_norm.weight", "input of model.layers.6.mlp.down_proj", 2, 3),
    ] {
        let nudge = |bytes: &mut Vec<u8>| bytes[byte] ^= 1 << bit;
        let report = broken(&runtime, &tensor.replace('.', "-"), tensor, nudge);
        let failure = report.failure.unwrap_or_else(|| panic!("{tensor} passes"));
        assert_eq!(failure.place, place, "{tensor}: {failure}");
    }
    let report = broken(&runtime, "norm", "model.norm.weight", |bytes| bytes[3] ^= 0x80);
    assert_eq!(report.failure.unwrap().place, "logits");
}

#[test]
fn what_cannot_be_checked_is_an_error() {
    let Some(runtime) = runtime() else { return };
    let scratch = scratch("onnx-check-errors");
    let model = Model::open(golden("bitnet_offline")).unwrap();
    let other = Model::open(golden("qwen3_groups")).unwrap();
    let directory = scratch.join("export");
    export(&model, &directory, &ExportOptions::default()).unwrap();
    let options = |prompts: Vec<Vec<u32>>, tokens| CheckOptions { prompts, tokens, threads: 1 };
    let error = |model: &Model, directory: &Path, options: CheckOptions| {
        check(model, directory, &runtime, &options).unwrap_err().to_string()
    };
    assert!(error(&model, &directory, options(vec![], 4)).contains("no prompts"));
    assert!(error(&model, &directory, options(vec![vec![]], 4)).contains("prompt 0 has 0 tokens"));
    assert!(error(&model, &directory, options(vec![vec![1; 60]], 64)).contains("at most 64 together"));
    assert!(error(&model, &directory, options(vec![vec![70_000]], 4)).contains("70000"));
    assert!(error(&model, &scratch, options(vec![vec![1]], 4)).contains("onnx/model.onnx"));
    let message = error(&other, &directory, options(vec![vec![1]], 4));
    assert!(message.contains("onnx/model.onnx"), "{message}");

    let file = directory.join(GRAPH_FILE);
    fs::write(&file, b"no protobuf at all").unwrap();
    assert!(error(&model, &directory, options(vec![vec![1]], 4)).contains("is no ONNX model"));
    // Another runtime cannot be loaded into the same process, and a missing one says how to get it.
    let message = Runtime::load(Some(&PathBuf::from("nowhere/libonnxruntime.so"))).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("nowhere/libonnxruntime.so") && message.contains("cargo xtask onnxruntime"), "{message}");
}

#[test]
fn a_broken_rotary_table_is_found_behind_it() {
    let Some(runtime) = runtime() else { return };
    // The first cosine that is not 1 is that of position 1 and the highest frequency.
    let report = broken(&runtime, "rotary", "rotary_embedding.cos", |bytes| {
        let at = bytes.chunks(4).position(|cosine| cosine != 1.0_f32.to_le_bytes()).unwrap();
        bytes[4 * at..4 * at + 4].copy_from_slice(&1.0_f32.to_le_bytes());
    });
    let failure = report.failure.unwrap();
    assert_eq!((&*failure.place, failure.position), ("input of model.layers.0.self_attn.o_proj", 1), "{failure}");
}

#[test]
fn tensors_in_a_file_of_their_own_are_found() {
    let Some(runtime) = runtime() else { return };
    let directory = scratch("onnx-check-data").join("export");
    let model = Model::open(golden("bitnet_online")).unwrap();
    export(&model, &directory, &ExportOptions { external_over: 0, ..ExportOptions::default() }).unwrap();
    assert!(directory.join(DATA_FILE).exists());
    let report = run(&model, &directory, &runtime, 3, 4);
    assert!(report.passed, "{:?}", report.failure);
}

#[test]
fn a_graph_without_a_tensor_of_the_model_is_refused_by_its_name() {
    let Some(runtime) = runtime() else { return };
    let directory = scratch("onnx-check-names").join("export");
    let model = Model::open(golden("bitnet_offline")).unwrap();
    export(&model, &directory, &ExportOptions::default()).unwrap();
    let (file, name) = (directory.join(GRAPH_FILE), "model.layers.1.mlp.up_proj/accumulators");
    let mut proto = ModelProto::decode(&*fs::read(&file).unwrap()).unwrap();
    for node in &mut proto.graph.as_mut().unwrap().node {
        for tensor in node.output.iter_mut().chain(&mut node.input).filter(|tensor| *tensor == name) {
            *tensor = "sums".to_owned();
        }
    }
    fs::write(&file, proto.encode_to_vec()).unwrap();
    let options = CheckOptions { prompts: vec![vec![1]], tokens: 4, threads: 1 };
    let error = check(&model, &directory, &runtime, &options).unwrap_err();
    assert!(matches!(error, Error::Graph { .. }) && error.to_string().contains(name), "{error}");
}

/// Runs `trion-onnx check` on `bitnet_offline`: whether it succeeds, its output and its errors.
fn command(arguments: &[&Path]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trion-onnx"));
    let output = command.arg("check").arg(golden("bitnet_offline")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_command_helps_to_a_runtime() {
    let no_library = golden("bitnet_offline").join("config.json");
    for library in [Path::new("nowhere/libonnxruntime.so"), &no_library] {
        let (success, printed, errors) = command(&[Path::new("--runtime"), library]);
        assert!(!success && printed.is_empty() && errors.starts_with("error: "), "{printed}{errors}");
        for part in [&*library.file_name().unwrap().to_string_lossy(), "--runtime", "xtask onnxruntime", "pip install"]
        {
            assert!(errors.contains(part), "{part} in {errors}");
        }
    }
}

#[test]
fn the_command_fails_where_the_check_does() {
    let Some(packages) = onnx_packages() else { return };
    let library = packages.join("onnxruntime/capi/libonnxruntime.so.1.31.1");
    let [tokens, eight, runtime, onnx, json] = ["--tokens", "8", "--runtime", "--onnx", "--json"].map(Path::new);
    // Without a folder, the model is exported for the check.
    let (success, printed, errors) = command(&[tokens, eight, runtime, &library]);
    assert!(success && errors.is_empty() && printed.ends_with("passed\n"), "{printed}{errors}");

    let directory = scratch("onnx-check-command").join("export");
    export(&Model::open(golden("bitnet_online")).unwrap(), &directory, &ExportOptions::default()).unwrap();
    let (success, printed, errors) = command(&[onnx, &directory, runtime, &library]);
    assert!(!success && printed.is_empty() && errors.starts_with("error: "), "{printed}{errors}");

    let directory = scratch("onnx-check-command").join("export");
    export(&Model::open(golden("bitnet_offline")).unwrap(), &directory, &ExportOptions::default()).unwrap();
    let file = directory.join(GRAPH_FILE);
    let mut proto = ModelProto::decode(&*fs::read(&file).unwrap()).unwrap();
    let initializers = &mut proto.graph.as_mut().unwrap().initializer;
    let weight = initializers.iter_mut().find(|it| it.name() == "model.layers.1.mlp.up_proj.weight").unwrap();
    flip(weight.raw_data.as_mut().unwrap());
    fs::write(&file, proto.encode_to_vec()).unwrap();
    let (success, printed, errors) = command(&[onnx, &directory, runtime, &library, json]);
    assert!(
        !success && errors.starts_with("error: the check fails: model.layers.1.mlp.up_proj: the sum of"),
        "{errors}"
    );
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&report["passed"], &report["failure"]["place"]), (&false.into(), &"model.layers.1.mlp.up_proj".into()));
}
