//! Logits and greedy tokens against transformers, and packed files against the checkpoints they were made of.

use std::fs;
use std::path::Path;

use trion_engine::{
    FloatFormat, Logits, Model, PackOptions, Sampler, SamplerOptions, Serial, Session, SessionOptions, quantize,
};
use trion_tests::{GOLDEN, Values, copy_golden, golden, oracle, reference, scratch, shared};

/// Largest difference of a logit on prompts that were chosen to have no rounding ties.
const TOLERANCE: f32 = 1e-3;

/// All logits `[tokens, vocab_size]` of a prompt.
fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let options = SessionOptions { max_batch: tokens.len(), logits: Logits::All, ..SessionOptions::new(tokens.len()) };
    let mut session = Session::new(model, options).unwrap();
    session.evaluate(tokens, &Serial).unwrap().to_vec()
}

fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let context = prompt.len() + count;
    let options = SessionOptions { max_batch: 64.min(context), ..SessionOptions::new(context) };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
    session.evaluate(prompt, &Serial).unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < count {
        tokens.push(sampler.sample(session.logits().unwrap(), &[]));
        session.evaluate(&tokens[tokens.len() - 1..], &Serial).unwrap();
    }
    tokens
}

/// Mean and largest difference.
fn differences(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let largest = differences.clone().fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
    (differences.sum::<f32>() / found.len() as f32, largest)
}

/// Demands that a difference comes from quantised values that lie between two integers to within float rounding: with
/// some of these rounded the other way, plain double precision must agree with each side. And the difference may not
/// matter: it is small in the mean, and no clear choice of a token changes.
fn explain(model: &Model, ids: &[u32], found: &[f32], expected: &[f32], mean: f32) {
    let vocab_size = model.config().vocab_size;
    for (who, logits) in [("Trion", found), ("the reference", expected)] {
        let ties = oracle::ties_that_explain(model.core(), ids, logits, TOLERANCE);
        let ties = ties.unwrap_or_else(|left| panic!("no ties explain the logits of {who}: {left} is left"));
        assert!(ties.iter().all(|tie| tie.distance < 1e-4));
        println!("  {who}: {ties:?}");
    }
    assert!(mean < 0.02, "mean difference {mean}");
    for (found, expected) in found.chunks(vocab_size).zip(expected.chunks(vocab_size)) {
        let best = |row: &[f32]| (0..vocab_size).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        let first = best(expected);
        let mut others = expected.to_vec();
        others[first] = f32::MIN;
        let margin = expected[first] - others[best(&others)];
        assert!(margin < 0.4 || best(found) == first, "a margin of {margin} changed");
    }
}

/// Compares a model with the prompts of a reference file; gives the number of prompts.
fn check(name: &str, model: &Model, reference_file: &Path, tolerance: f32) -> usize {
    let reference = reference(reference_file);
    let mut prompts = 0;
    for (key, values) in &reference {
        let Some(suffix) = key.strip_prefix("input_ids") else { continue };
        let Values::I32(ids) = values else { panic!("{key} holds no ids") };
        let Some(Values::F32(expected)) = reference.get(&format!("logits{suffix}")) else {
            panic!("no logits{suffix}")
        };
        let found = logits(model, ids);
        let (mean, largest) = differences(&found, expected);
        let tie = if largest < tolerance {
            ""
        } else {
            explain(model, ids, &found, expected, mean);
            ", by ties in rounding that were found"
        };
        println!("{name}{suffix}: {} tokens, logits differ by mean {mean:.2e}, max {largest:.2e}{tie}", ids.len());
        if let Some(Values::I32(tokens)) = reference.get(&format!("greedy{suffix}")) {
            assert_eq!(greedy(model, ids, tokens.len()), *tokens, "{name}{suffix}");
        }
        prompts += 1;
    }
    assert!(prompts > 0, "{name}: the reference has no prompts");
    prompts
}

/// Packs the checkpoint into a file and demands the same bits from it.
fn check_packed(name: &str, checkpoint: &Path, model: &Model) {
    let file = scratch(&format!("packed-{name}")).join("model.safetensors");
    let bytes = quantize(checkpoint, &file, &PackOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(bytes, file.metadata().unwrap().len());
    let packed = Model::open(&file).unwrap();
    assert_eq!(packed.config(), model.config());
    assert_eq!(packed.core().fingerprint(), model.core().fingerprint());
    let vocab_size = model.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..24).map(|i| (i * 7 + 1) % vocab_size).collect();
    let bits = |model| logits(model, &tokens).iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&packed), bits(model), "{name}");
}

fn check_directory(name: &str, directory: &Path) {
    let model = Model::open(directory).unwrap_or_else(|e| panic!("{name}: {e}"));
    check(name, &model, &directory.join("reference.safetensors"), TOLERANCE);
    check_packed(name, directory, &model);
}

#[test]
fn golden_checkpoints_give_the_logits_of_transformers() {
    for name in GOLDEN.into_iter().filter(|name| *name != "qwen3_groups") {
        check_directory(name, &golden(name));
    }
}

/// Ternary weights by groups, whose reference keeps activations float: what int8 activations cost is stated in
/// docs/formats.md, and bounded here.
#[test]
fn golden_group_scales_stay_near_float_activations() {
    let directory = golden("qwen3_groups");
    let model = Model::open(&directory).unwrap();
    assert_eq!(model.config().activation_group, 128);
    check("qwen3_groups", &model, &directory.join("reference.safetensors"), 0.6);
    check_packed("qwen3_groups", &directory, &model);
}

/// What a head of fewer bits costs, beside the same checkpoint with its own.
#[test]
fn fewer_bits_for_the_head_stay_near_its_logits() {
    let checkpoint = golden("bitnet_offline");
    let tokens: Vec<u32> = (0..60).map(|i| (i * 37 + i * i) % 288).collect();
    let with = |embedding| {
        let file = scratch("fewer_bits").join("model.safetensors");
        quantize(&checkpoint, &file, &PackOptions { embedding, ..PackOptions::default() }, &mut |_, _| {}).unwrap();
        logits(&Model::open(&file).unwrap(), &tokens)
    };
    let exact = with(FloatFormat::Keep);
    let spread = (exact.iter().map(|l| l * l).sum::<f32>() / exact.len() as f32).sqrt();
    for (format, most) in [(FloatFormat::F16, 1e-3), (FloatFormat::Int8, 0.06), (FloatFormat::Int6, 0.08)] {
        let found = with(format);
        let squares: f32 = found.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
        let error = (squares / exact.len() as f32).sqrt() / spread;
        println!("{format:?}: logits differ by {error:.5} of their spread (root mean squares)");
        assert!(error <= most, "{format:?}: {error}");
    }
}

fn check_gguf(directory: &Path, names: &[&str]) {
    for name in names {
        let file = directory.join(format!("{name}.gguf"));
        let model = Model::open(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(name, &model, &directory.join("reference.safetensors"), TOLERANCE);
        check_packed(&format!("gguf-{name}"), &file, &model);
    }
}

#[test]
fn golden_gguf_files_give_the_logits_of_transformers() {
    check_gguf(&golden("gguf/small"), &["i2_s", "q2_0"]);
    check_gguf(&golden("gguf/wide"), &["tq1_0", "tq2_0"]);
}

/// Projections that read the same activations may still differ in what is done to them first.
#[test]
fn a_norm_in_one_projection_does_not_leak_into_the_next() {
    for kept in ["q_proj", "k_proj", "v_proj"] {
        let directory = copy_golden(&format!("norm-{kept}"), "llama_rms_norm");
        // With the flag, a norm that is missing is an error.
        let config = fs::read_to_string(directory.join("config.json")).unwrap();
        let open = config.replace("\"use_rms_norm\": true", "\"use_rms_norm\": false");
        assert_ne!(open, config);
        fs::write(directory.join("config.json"), open).unwrap();
        let weights = directory.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        for other in ["q_proj", "k_proj", "v_proj"].into_iter().filter(|other| *other != kept) {
            // Of the same length, so that nothing moves.
            header = header.replace(&format!("{other}.rms_norm.weight"), &format!("{other}.ignored_.weight"));
        }
        assert_eq!(header.len(), length);
        bytes[8..8 + length].copy_from_slice(header.as_bytes());
        fs::write(&weights, bytes).unwrap();
        let model = Model::open(&directory).unwrap();
        let ids = [5, 9, 2, 33, 7, 60];
        let ties = oracle::ties_that_explain(model.core(), &ids, &logits(&model, &ids), TOLERANCE);
        assert!(ties.is_ok(), "{kept}: {ties:?}");
    }
}

#[test]
fn shared_checkpoints_give_the_logits_of_transformers() {
    for name in [
        "a_bitnet_packed_autobitlinear_offline",
        "b_bitnet_bf16_autobitlinear_online",
        "c_llama_packed_bitlinear",
        "c2_llama_packed_bitlinear_rmsnorm",
        "d_1bitllm_bitnet_fp32_online",
        "g_stories260K_llama_fp32",
    ] {
        if let Some(directory) = shared(&format!("cases/{name}")) {
            check_directory(name, &directory);
        }
    }
}

#[test]
fn shared_gguf_files_give_the_logits_of_transformers() {
    if let Some(directory) = shared("cases/f_gguf") {
        check_gguf(&directory, &["i2_s", "tq1_0", "tq2_0", "q2_0_g64"]);
    }
}

#[test]
fn stories_are_told_as_their_author_published() {
    let Some(directory) = shared("cases/g_stories260K_llama_fp32") else { return };
    let model = Model::open(&directory).unwrap();
    let Some(Values::I32(ids)) = reference(&directory.join("reference.safetensors")).remove("input_ids_0") else {
        panic!("no ids")
    };
    // The reference's ids are the first token and 120 greedy ones.
    assert_eq!(greedy(&model, &ids[..1], ids.len() - 1), ids[1..]);
}

#[test]
fn the_trained_model_gives_the_logits_of_transformers() {
    if let Some(directory) = shared("models/classics-14m") {
        check_directory("classics-14m", &directory);
    }
}
