//! Sessions, samplers and saved states.

use serde_json::Value;
use trion_core::Error;
use trion_engine::{
    CacheType, GenerateOptions, Kernel, Logits, Model, Progress, Sampler, SamplerOptions, Serial, Session,
    SessionOptions, generate,
};
use trion_tests::golden;

use crate::support::{copy, edit_json, error_of, heap_peak, says};

fn model() -> Model {
    Model::open(golden("bitnet_offline")).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions { max_batch: 8, ..SessionOptions::new(16) }
}

#[test]
fn session_options() {
    let model = model();
    let rows: [(SessionOptions, &[&str]); 7] = [
        (SessionOptions { context: 0, ..options() }, &["context is 0", "1 to 64"]),
        (SessionOptions { context: 65, ..options() }, &["context is 65", "1 to 64"]),
        (SessionOptions { context: usize::MAX, ..options() }, &["context is", "1 to 64"]),
        (SessionOptions { max_batch: 0, ..options() }, &["max_batch is 0", "1 to 16"]),
        (SessionOptions { max_batch: 17, ..options() }, &["max_batch is 17", "1 to 16"]),
        (SessionOptions { max_batch: usize::MAX / 2, ..options() }, &["max_batch is", "1 to 16"]),
        (SessionOptions { max_batch: usize::MAX, ..options() }, &["max_batch is", "1 to 16"]),
    ];
    for (options, expected) in rows {
        let what = format!("{options:?}");
        let (error, heap) = heap_peak(|| error_of(&what, Session::new(&model, options)));
        assert!(heap < 1 << 20, "{what}: {heap} bytes");
        says(&what, &error, expected);
        let mut buffer = vec![0; 1 << 20];
        let core = trion_core::Session::new(model.core(), options, Kernel::detect(), &mut buffer);
        says(&what, &error_of(&what, core.map(|_| ())), expected);
    }
}

#[test]
fn pushes_and_rewinds() {
    let model = model();
    let mut session = Session::new(&model, options()).unwrap();
    let what = "a new session";
    says(what, &error_of(what, session.advance(1, &Serial)), &["no tokens", "expected at least one"]);
    says(what, &error_of(what, session.push(&[])), &["no tokens", "expected at least one"]);
    says(what, &error_of(what, session.push(&[1, 288])), &["token 288", "vocabulary of 288"]);
    says(what, &error_of(what, session.push(&[u32::MAX])), &["token 4294967295", "vocabulary of 288"]);
    says(what, &error_of(what, session.push(&[1; 17])), &["17 tokens", "context of 16"]);
    says(what, &error_of(what, session.rewind(1)), &["position 1", "only 0"]);
    assert_eq!(session.tokens(), [0_u32; 0], "what was refused left nothing behind");

    session.evaluate(&[5; 16], &Serial).unwrap();
    let before = session.logits().unwrap().to_vec();
    let what = "a full session";
    says(what, &error_of(what, session.push(&[1])), &["17 tokens", "context of 16"]);
    says(what, &error_of(what, session.rewind(17)), &["position 17", "only 16"]);
    says(what, &error_of(what, session.rewind(usize::MAX)), &["only 16"]);
    assert_eq!(session.logits(), Some(before.as_slice()), "what was refused left nothing behind");
    session.rewind(16).unwrap();
    assert_eq!(session.advance(1, &Serial).unwrap(), Progress::Ready);
    session.rewind(3).unwrap();
    says(what, &error_of(what, session.advance(1, &Serial)), &["no tokens"]);

    let all = SessionOptions { logits: Logits::All, ..options() };
    let mut session = Session::new(&model, all).unwrap();
    says("all logits", &error_of("all logits", session.push(&[1; 9])), &["9 tokens", "max_batch = 8"]);
    session.push(&[1; 5]).unwrap();
    says("all logits", &error_of("all logits", session.push(&[1; 4])), &["9 tokens", "max_batch = 8"]);
}

#[test]
fn small_buffers() {
    let model = model();
    let bytes = trion_core::Session::bytes(model.config(), &options());
    for found in [0, 1, 63, bytes / 2, bytes - 1] {
        let mut buffer = vec![0; found];
        let session = trion_core::Session::new(model.core(), options(), Kernel::detect(), &mut buffer);
        let what = format!("{found} bytes");
        says(&what, &error_of(&what, session.map(|_| ())), &["buffer", &what, &format!("at least {bytes}")]);
    }
    let mut session = Session::new(&model, options()).unwrap();
    session.evaluate(&[1], &Serial).unwrap();
    let mut buffer = vec![0; bytes];
    let core = trion_core::Session::new(model.core(), options(), Kernel::detect(), &mut buffer).unwrap();
    let what = "a state without room";
    says(what, &error_of(what, core.save(&mut [0; 7])), &["buffer of 7 bytes", "expected at least 48"]);
}

#[test]
fn sampler_options() {
    let greedy = SamplerOptions::GREEDY;
    let rows: [(SamplerOptions, &[&str]); 13] = [
        (SamplerOptions { temperature: f32::NAN, ..greedy }, &["temperature", "at least 0"]),
        (SamplerOptions { temperature: -1.0, ..greedy }, &["temperature", "at least 0"]),
        (SamplerOptions { temperature: f32::INFINITY, ..greedy }, &["temperature", "finite"]),
        (SamplerOptions { top_k: 257, ..greedy }, &["top_k", "0 to 256"]),
        (SamplerOptions { top_k: usize::MAX, ..greedy }, &["top_k", "0 to 256"]),
        (SamplerOptions { top_p: 0.0, ..greedy }, &["top_p", "above 0, up to 1"]),
        (SamplerOptions { top_p: 1.5, ..greedy }, &["top_p", "above 0, up to 1"]),
        (SamplerOptions { top_p: f32::NAN, ..greedy }, &["top_p", "above 0, up to 1"]),
        (SamplerOptions { min_p: 2.0, ..greedy }, &["min_p", "0 to 1"]),
        (SamplerOptions { min_p: f32::NAN, ..greedy }, &["min_p", "0 to 1"]),
        (SamplerOptions { repetition_penalty: 0.0, ..greedy }, &["repetition_penalty", "above 0"]),
        (SamplerOptions { repetition_penalty: f32::INFINITY, ..greedy }, &["repetition_penalty", "finite"]),
        (SamplerOptions { repetition_penalty: f32::NAN, ..greedy }, &["repetition_penalty", "finite"]),
    ];
    for (options, expected) in rows {
        let what = format!("{options:?}");
        says(&what, &error_of(&what, Sampler::new(options)), expected);
        let options = GenerateOptions { sampler: options, ..GenerateOptions::default() };
        says(&what, &error_of(&what, generate(&model(), "a", &options, &Serial, |_| true)), expected);
    }
}

#[test]
fn prompts() {
    let model = model();
    let text = |what: &str, model: &Model, prompt: &str| {
        error_of(what, generate(model, prompt, &GenerateOptions::default(), &Serial, |_| true))
    };
    says("a long prompt", &text("a long prompt", &model, &"word ".repeat(1000)), &["context", "1 to 64"]);
    let silent = Model::open(golden("llama_float")).unwrap();
    says("no tokenizer", &text("no tokenizer", &silent, "words"), &["tokenizer.json"]);

    let mute = copy("no-first-token", "bitnet_offline");
    edit_json(&mute.join("config.json"), |config| config["bos_token_id"] = Value::Null);
    edit_json(&mute.join("tokenizer.json"), |json| json["post_processor"] = Value::Null);
    let mute = Model::open(&mute).unwrap();
    says("an empty prompt", &text("an empty prompt", &mute, ""), &["no tokens", "expected at least one"]);
    let wrong = copy("wrong-first-token", "bitnet_offline");
    edit_json(&wrong.join("config.json"), |config| config["bos_token_id"] = 288.into());
    let wrong = Model::open(&wrong).unwrap();
    says("a first token", &text("a first token", &wrong, "a"), &["token 288", "vocabulary of 288"]);
}

/// A state of three tokens, and the model that it belongs to.
fn saved_state() -> (Model, Vec<u8>) {
    let model = model();
    let mut session = Session::new(&model, options()).unwrap();
    session.evaluate(&[1, 2, 3], &Serial).unwrap();
    let saved = session.save().unwrap();
    (model, saved)
}

#[test]
fn states_of_the_wrong_length() {
    let (model, saved) = saved_state();
    let mut session = Session::new(&model, options()).unwrap();
    for length in 0..saved.len() {
        let what = format!("{length} bytes");
        says(&what, &error_of(&what, session.load(&saved[..length])), &["saved state", "length"]);
    }
    for more in [1, 4, 1000] {
        let longer = [&saved[..], &vec![0; more]].concat();
        says("longer", &error_of("longer", session.load(&longer)), &["saved state", "length"]);
    }
    assert_eq!(session.tokens(), [0_u32; 0], "what was refused left nothing behind");
    session.load(&saved).unwrap();
    assert_eq!(session.tokens(), [1, 2, 3]);
}

#[test]
fn states_with_a_wrong_header() {
    let (model, saved) = saved_state();
    let mut session = Session::new(&model, options()).unwrap();
    for at in 0..48 {
        for bit in 0..8 {
            let mut wrong = saved.clone();
            wrong[at] ^= 1 << bit;
            let what = format!("bit {bit} of byte {at}");
            let (error, heap) = heap_peak(|| error_of(&what, session.load(&wrong)));
            assert!(heap < 1 << 20, "{what}: {heap} bytes");
            says(&what, &error, &["saved state"]);
        }
    }
    let rows: [(&str, usize, &[u8], &str); 11] = [
        ("another file", 0, b"GGUF", "does not begin as"),
        ("another version", 7, &[2], "another version"),
        ("another model", 8, &[0xff; 8], "another model"),
        ("another cache", 16, &[2], "another number format"),
        ("flags", 20, &[1], "contradict each other"),
        ("too many tokens", 24, &[17], "more tokens than this session"),
        ("endless tokens", 24, &[0xff; 8], "more tokens than this session"),
        ("more computed than pushed", 32, &[4], "contradict each other"),
        ("endless computed", 32, &[0xff; 8], "contradict each other"),
        ("more logits than tokens", 40, &[4], "contradict each other"),
        ("endless logits", 40, &[0xff; 8], "contradict each other"),
    ];
    for (what, at, bytes, expected) in rows {
        let mut wrong = saved.clone();
        wrong[at..at + bytes.len()].copy_from_slice(bytes);
        says(what, &error_of(what, session.load(&wrong)), &["saved state", expected]);
    }
    let mut wrong = saved.clone();
    wrong[48..52].fill(0xff);
    says("a token", &error_of("a token", session.load(&wrong)), &["token 4294967295", "vocabulary of 288"]);
    assert_eq!(session.tokens(), [0_u32; 0], "what was refused left nothing behind");
}

#[test]
fn states_of_others() {
    let (model, saved) = saved_state();
    let half = SessionOptions { cache: CacheType::F16, ..options() };
    let short = SessionOptions { max_batch: 2, ..SessionOptions::new(2) };
    let stranger = Model::open(golden("bitnet_online")).unwrap();
    for (what, model, options, expected) in [
        ("half precision", &model, half, "number format"),
        ("a short context", &model, short, "more tokens than this session"),
        ("another model", &stranger, options(), "another model"),
    ] {
        let mut session = Session::new(model, options).unwrap();
        says(what, &error_of(what, session.load(&saved)), &["saved state", expected]);
    }
    let mut first = vec![0; trion_core::Session::bytes(model.config(), &options())];
    let mut second = vec![0; trion_core::Session::bytes(stranger.config(), &options())];
    let first = trion_core::Session::new(model.core(), options(), Kernel::detect(), &mut first).unwrap();
    let mut second = trion_core::Session::new(stranger.core(), options(), Kernel::detect(), &mut second).unwrap();
    assert!(matches!(second.fork_from(&first), Err(Error::State { .. })));
}
