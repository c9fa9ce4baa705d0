//! The command as a person runs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use trion_engine::Kernel;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn scratch(test: &str) -> PathBuf {
    let directory = root().join("target/test-scratch").join(format!("cli-{test}"));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Runs the command with text on standard input.
fn trion_with_input(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trion"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn trion(arguments: &[&str]) -> Output {
    trion_with_input(arguments, "")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The text on standard error of a run that must fail with `code`.
fn failure(arguments: &[&str], code: i32) -> String {
    let output = trion(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_default_model_writes_the_same_text_everywhere() {
    let expected = "The ship had been at sea for nine days when the ship was in sight.";
    let threads = ["1", "2", "5"].map(|n| vec!["generate", "-n", "24", "--threads", n]);
    let kernels = Kernel::available().map(|kernel| vec!["generate", "-n", "24", "--kernel", kernel.isa().name()]);
    let texts: Vec<String> = threads.into_iter().chain(kernels).map(|a| stdout(&trion(&a))).collect();
    for text in &texts {
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(*text, texts[0]);
    }
}

#[test]
fn a_prompt_comes_from_standard_input() {
    let output = trion_with_input(&["generate", "-n", "8", "--json"], "In the middle of the forest");
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["prompt"], "In the middle of the forest");
    assert_eq!(json["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(json["stop"], "max_tokens");
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let run = |seed| stdout(&trion(&["generate", "-n", "20", "--temperature", "1", "--top-p", "0.9", "--seed", seed]));
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn stop_strings_end_the_text() {
    let text = stdout(&trion(&["generate", "-n", "60", "--stop", "sight", "--no-timing"]));
    assert_eq!(text, "The ship had been at sea for nine days when the ship was in \n");
}

#[test]
fn a_packed_file_gives_the_same_logits() {
    let directory = scratch("quantize");
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let checkpoint = "tests/golden/bitnet_offline";
    let packed = path("packed.safetensors");
    let quantize = ["quantize", checkpoint, "-o", &packed];
    stdout(&trion(&quantize));
    assert!(failure(&quantize, 1).contains("--force"));
    for (model, out) in [(checkpoint, path("a")), (&packed, path("b"))] {
        stdout(&trion(&["logits", model, "--ids", "1,2,3,4,5", "-o", &out]));
    }
    let bytes = fs::read(path("a")).unwrap();
    assert_eq!(bytes, fs::read(path("b")).unwrap());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("logits").unwrap().shape(), [5, 288]);
    // Fewer bits for the embedding: another file, near the same logits.
    let small = path("small.safetensors");
    stdout(&trion(&["quantize", checkpoint, "-o", &small, "--embedding", "int8"]));
    assert!(fs::metadata(&small).unwrap().len() < fs::metadata(&packed).unwrap().len());
    stdout(&trion(&["logits", &small, "--ids", "1,2,3,4,5", "-o", &path("c")]));
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let text = "A ship — über alles, 船!";
    let ids = stdout(&trion(&["tokenize", text, "--no-special"]));
    assert_eq!(stdout(&trion(&["tokenize", "--decode", ids.trim()])), format!("{text}\n"));
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&["tokenize", text, "--json"]))).unwrap();
    assert_eq!(json["ids"].as_array().unwrap().len(), json["tokens"].as_array().unwrap().len());
}

#[test]
fn inspect_counts_every_trit() {
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&["inspect", "--json"]))).unwrap();
    let share = |name: &str| json["shares"][name].as_f64().unwrap();
    assert!((share("-1") + share("0") + share("+1") - 1.0).abs() < 1e-9);
    assert!((share("0") - 0.375).abs() < 0.005, "{}", share("0"));
    assert!(stdout(&trion(&["inspect", "--tensors"])).contains("model.layers.7.mlp.down_proj"));
}

#[test]
fn the_default_model_predicts_the_text_it_was_measured_on() {
    let text = root().join("../shared/data/classics_valid.txt");
    if !text.exists() {
        println!("skipped: {} does not exist", text.display());
        return;
    }
    let text = text.to_string_lossy();
    let arguments = ["perplexity", &*text, "--window", "512", "--max-windows", "16", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
    let nats = json["nats_per_token"].as_f64().unwrap();
    println!("{nats} nats/token, the reference has 2.7529");
    assert!((nats - 2.752_915).abs() < 1e-3, "{nats}");
}

#[test]
fn bench_measures_a_small_model() {
    let arguments = ["bench", "--prompt", "32", "--decode", "4", "--repeats", "1", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
    assert!(json["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(json["bytes_per_token"].as_u64().unwrap() > 6_000_000);
}

#[test]
fn errors_say_what_to_do_and_give_a_code() {
    assert!(failure(&["generate", "nowhere"], 1).contains("nowhere"));
    assert!(failure(&["generate", "tests/golden/llama_float", "-p", "x"], 1).contains("tokenizer"));
    assert!(failure(&["generate", "--kernel", "abacus"], 2).contains("abacus"));
    assert!(failure(&["generate", "--top-p", "0"], 1).contains("top_p"));
    assert!(failure(&["generate", "--context", "4"], 1).contains("context"));
    assert!(failure(&["chat", "tests/golden/bitnet_offline"], 1).contains("chat template"));
    assert!(failure(&["logits", "--ids", "1,x", "-o", "target/x"], 1).contains("\"x\""));
    assert!(failure(&["logits", "--ids", "99999", "-o", "target/x"], 1).contains("99999"));
    assert!(failure(&[], 2).contains("Usage"));
}

#[test]
fn shells_get_completions() {
    assert!(stdout(&trion(&["completions", "bash"])).contains("perplexity"));
}

#[test]
fn a_conversation_goes_on() {
    let directory = scratch("chat");
    for file in fs::read_dir(root().join("tests/golden/bitnet_offline")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), directory.join(file.file_name())).unwrap();
    }
    let template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}";
    fs::write(directory.join("chat_template.jinja"), template).unwrap();
    let model = directory.to_string_lossy();
    let talk = |input| stdout(&trion_with_input(&["chat", &model, "-n", "4"], input));
    let once = talk("Hi\n");
    assert!(!once.is_empty());
    // After a reset the same question gets the same answer.
    assert_eq!(talk("Hi\n/reset\nHi\n/exit\nHi\n"), format!("{once}{once}"));
}
