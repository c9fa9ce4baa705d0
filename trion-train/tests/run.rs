//! Runs of the command, from text to files that the engine reads.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use trion_engine::{Config, Logits, Model, Pool, Session, SessionOptions};
use trion_train::data::Tokens;
use trion_train::export::{Format, export};
use trion_train::model::Forward;
use trion_train::{Arithmetic, Flex, FlexDevice, Int, Tensor, TensorData, Trained};

/// A directory of a test's own, empty.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// A text with an order that can be learned: sums of small numbers in words, in documents of several lines.
fn text() -> String {
    let words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let mut text = String::new();
    for i in 0..3000_usize {
        let (a, b) = (i * 7 % 5, i * i * 3 % 5);
        if i % 20 == 0 {
            text += "<|endoftext|>";
        }
        writeln!(text, "{} and {} are {}.", words[a], words[b], words[a + b]).unwrap();
    }
    text
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trion-train"));
    command.current_dir(directory).args(arguments);
    command
}

fn run(directory: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(directory, arguments).output().unwrap();
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Text, tokenizer and shards.
fn prepare(name: &str) -> PathBuf {
    let directory = directory(name);
    fs::write(directory.join("text.txt"), text()).unwrap();
    run(&directory, &["tokenizer", "text.txt", "--vocab-size", "280"]);
    run(&directory, &["data", "text.txt", "-o", "data", "--shard-tokens", "5000"]);
    directory
}

const TRAIN: [&str; 8] = ["train", "data", "--shape", "micro", "--positions", "32", "--sequences", "4"];
const SHORT: [&str; 5] = ["--steps", "8", "--save-every", "1", "-o"];

/// Trains for eight steps, with a checkpoint after each.
fn short(to: &str) -> Vec<&str> {
    [&TRAIN[..], &SHORT, &[to]].concat()
}

#[test]
fn shards_hold_the_text() {
    let directory = prepare("shards");
    let data = Tokens::open(&directory.join("data")).unwrap();
    let manifest = data.manifest();
    assert!(manifest.shards.len() > 2, "{manifest:?}");
    let ids = data.read(0, manifest.tokens() as usize).unwrap();
    let (tokenizer, end) = trion_train::tokenizer::open(&data.tokenizer_file()).unwrap();
    assert_eq!(ids[0], end);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text());
    assert_eq!(manifest.bytes as usize, text().replace("<|endoftext|>", "").len());
    // Over the border of two shards.
    assert_eq!(data.read(4990, 20).unwrap(), ids[4990..5010]);

    // A document that is encoded in pieces has the tokens that it has as a whole.
    let words = text().replace("<|endoftext|>", "");
    let long: String = (0..400).map(|i| "\n".repeat(i % 3 + 2) + &" ".repeat(i % 2) + &words[..1000]).collect();
    fs::write(directory.join("long.txt"), &long).unwrap();
    run(&directory, &["data", "long.txt", "-o", "long"]);
    let pieces = Tokens::open(&directory.join("long")).unwrap().read(0, usize::MAX).unwrap();
    assert_eq!(pieces[1..], *tokenizer.encode_fast(long.as_str(), false).unwrap().get_ids());
}

/// Starts or goes on with a short run, and kills it in the middle of whatever it does after so many steps were recorded.
fn kill_after(directory: &Path, to: &str, steps: usize) {
    let mut child = command(directory, &short(to)).spawn().unwrap();
    let metrics = directory.join(to).join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < steps {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_run_that_fails_ends_with_the_weights_of_one_that_does_not() {
    let directory = prepare("failed");
    run(&directory, &short("whole"));
    let read = |run: &str, file: &str| fs::read(directory.join(run).join(file)).unwrap();
    kill_after(&directory, "failed", 3);

    // A limit on the size of files is to a program what a full disk is: a write fails in the midst of it.
    #[cfg(unix)]
    {
        let (checkpoint, names) = (read("failed", "checkpoint.safetensors"), names(&directory.join("failed")));
        let shell = ["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_trion-train")];
        let mut limited = Command::new("sh");
        let output = limited.current_dir(&directory).args(shell).args(short("failed")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: failed/checkpoint.safetensors: "), "{error}");
        assert!(read("failed", "checkpoint.safetensors") == checkpoint);
        assert_eq!(self::names(&directory.join("failed")), names);
    }

    kill_after(&directory, "failed", 5);
    run(&directory, &short("failed"));
    assert!(read("whole", "checkpoint.safetensors") == read("failed", "checkpoint.safetensors"));
    // The same curve; speeds differ.
    let losses = |run| {
        let text = String::from_utf8(read(run, "metrics.jsonl")).unwrap();
        text.lines().filter(|line| line.contains("\"loss\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(losses("whole").len(), 8);
    assert_eq!(losses("whole"), losses("failed"));
}

/// Names in a directory, in order.
#[cfg(unix)]
fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[cfg(unix)]
#[test]
fn a_run_that_is_asked_to_stop_leaves_a_checkpoint() {
    let directory = prepare("stopped");
    let long = [&TRAIN[..], &["--steps", "100000", "--eval-every", "2", "--save-every", "0", "--sample", "one and"]];
    let long = [&long.concat()[..], &["-o", "run"]].concat();
    let child = command(&directory, &long).stdout(Stdio::piped()).spawn().unwrap();
    let metrics = directory.join("run/metrics.jsonl");
    let written = || fs::read_to_string(&metrics).unwrap_or_default();
    while !written().contains("samples") {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("stopped after step"), "{said}");
    assert!(said.contains("> one and"), "{said}");
    let steps = losses(&directory, "run").len();
    assert!(said.contains(&format!("stopped after step {steps};")), "{said}");
    run(&directory, &["export", "run", "-o", "file"]);
    assert!(directory.join("file").exists());
}

/// Exports a run, and compares what the engine computes with what was trained: the same bits from every format, and logits
/// near the trainer's.
fn compare_with_engine(directory: &Path, formats: &[Format], activation_group: usize) {
    let model = Trained::open(&directory.join("run")).unwrap();
    let options = trion_engine::PackOptions::default();
    let ids = Tokens::open(&directory.join("data")).unwrap().read(0, 32).unwrap();
    let mut found = Vec::new();
    for format in formats {
        let to = directory.join(format!("{format:?}"));
        export(&model, &to, *format, &options).unwrap();
        let engine = Model::open(&to).unwrap();
        assert_eq!(*engine.config(), Config { activation_group, ..model.config });
        let session_options = SessionOptions { logits: Logits::All, max_batch: 32, ..SessionOptions::new(32) };
        let mut session = Session::new(&engine, session_options).unwrap();
        found.push(session.evaluate(&ids, &Pool::new(1).unwrap()).unwrap().to_vec());
    }
    let logits = &found[0];
    assert!(found.iter().all(|other| other == logits), "the same trits give the same bits");

    let arithmetic = Arithmetic { group: activation_group, ..Arithmetic::EXACT };
    let forward = Forward::<Flex>::new(&model.config, 32, arithmetic, &FlexDevice);
    let parameters: Vec<Tensor<Flex, 2>> = model
        .entries()
        .iter()
        .zip(&model.parameters)
        .map(|(entry, values)| Tensor::from_data(TensorData::new(values.clone(), entry.shape), &FlexDevice))
        .collect();
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [1, 32]), &FlexDevice);
    let trained = forward.logits(&parameters, ids).into_data().into_vec::<f32>().unwrap();
    assert_eq!(trained.len(), logits.len());
    let largest = logits.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
    let differences: Vec<f32> = trained.iter().zip(logits).map(|(a, b)| (a - b).abs() / largest).collect();
    // Sums in another order: where an activation is rounded the other way, more than the last bits differ.
    let mean = differences.iter().sum::<f32>() / differences.len() as f32;
    let most = differences.iter().copied().fold(0.0, f32::max);
    println!("differences of {mean} on average and {most} at most");
    assert!(mean < 1e-3 && most < 2e-2, "differences of {mean} on average and {most} at most");
}

#[test]
fn the_engine_computes_what_was_trained() {
    let directory = prepare("engine");
    run(&directory, &short("run"));
    compare_with_engine(&directory, &[Format::Masters, Format::Packed, Format::Trion], 0);
}

#[test]
fn another_shape_with_scales_for_groups_is_trained() {
    let directory = prepare("groups");
    let config = r#"{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_act": "silu", "model_type": "bitnet"}"#;
    fs::write(directory.join("shape.json"), config).unwrap();
    let arguments =
        ["train", "data", "--config", "shape.json", "--weight-group", "64", "--positions", "32", "-o", "run"];
    run(&directory, &[&arguments[..], &["--sequences", "4", "--steps", "40"]].concat());
    compare_with_engine(&directory, &[Format::Masters, Format::Trion], 64);
    let ids = Tokens::open(&directory.join("data")).unwrap().read(0, usize::MAX >> 1).unwrap();
    let losses = losses(&directory, "run");
    assert!(losses[39] < 0.8 * unigram_entropy(&ids), "{losses:?}");
    let output = command(&directory, &["export", "run", "--format", "packed", "-o", "x"]).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("one for each group"));
}

/// The losses of a run.
fn losses(directory: &Path, run: &str) -> Vec<f64> {
    let text = fs::read_to_string(directory.join(run).join("metrics.jsonl")).unwrap();
    let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    values.filter_map(|value| value["loss"].as_f64()).collect()
}

/// What a model that knows only how often each token comes has as its loss, in nats a token.
fn unigram_entropy(ids: &[u32]) -> f64 {
    let mut counts = std::collections::BTreeMap::<u32, f64>::new();
    ids.iter().for_each(|id| *counts.entry(*id).or_default() += 1.0);
    let total = ids.len() as f64;
    counts.values().map(|count| -count / total * (count / total).ln()).sum()
}

#[test]
fn both_kinds_and_both_starts_learn_more_than_how_often_tokens_come() {
    let directory = prepare("learning");
    let ids = Tokens::open(&directory.join("data")).unwrap().read(0, usize::MAX >> 1).unwrap();
    let unigram = unigram_entropy(&ids);
    fs::write(directory.join("few.txt"), &text()[..2000]).unwrap();
    run(&directory, &["data", "few.txt", "-o", "few"]);
    let more = ["--steps", "40", "--eval-every", "40", "--valid", "few"];
    for (name, arguments) in [
        ("muon", &["--optimizer", "muon"][..]),
        ("adamw", &["--optimizer", "adamw"]),
        ("identity", &["--initialization", "identity"]),
        ("float", &["--float"]),
    ] {
        run(&directory, &[&TRAIN[..], &more, arguments, &["-o", name]].concat());
        let losses = losses(&directory, name);
        assert_eq!(losses.len(), 40);
        assert!(losses[39] < 0.8 * unigram, "{name}: {losses:?}, unigrams {unigram}");
        let metrics = fs::read_to_string(directory.join(name).join("metrics.jsonl")).unwrap();
        assert!(metrics.contains("bits_per_byte"), "{metrics}");
    }
    // A float model that becomes ternary step by step goes on where it was.
    let from = ["--from", "float/checkpoint.safetensors", "--lambda-steps", "20", "--steps", "40", "-o", "converted"];
    run(&directory, &[&TRAIN[..], &from].concat());
    let (float, converted) = (losses(&directory, "float"), losses(&directory, "converted"));
    assert!(converted[0] < 1.1 * float[39] && converted[0] < 0.5 * float[0], "{converted:?} after {float:?}");
    assert!(converted[39] < 0.8 * unigram, "{converted:?}, unigrams {unigram}");
    assert!(run(&directory, &["eval", "converted", "few"]).contains("bits_per_byte"));

    run(&directory, &["curves", "muon", "adamw", "identity", "float", "-o", "curves.svg"]);
    let svg = fs::read_to_string(directory.join("curves.svg")).unwrap();
    assert!(svg.matches("<polyline").count() >= 8, "{svg}");
    run(&directory, &["sizes", "muon", "float", "-o", "sizes.svg"]);
    let svg = fs::read_to_string(directory.join("sizes.svg")).unwrap();
    assert!(svg.contains("ternary") && svg.contains("float") && svg.matches("<circle").count() >= 2, "{svg}");
    let output = command(&directory, &["export", "float", "-o", "x"]).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("float twin"));
}

#[test]
fn mistakes_are_told() {
    let directory = prepare("mistakes");
    for (arguments, expected) in [
        (&["tokenizer", "text.txt", "--vocab-size", "100"][..], "expected at least 257"),
        (&["tokenizer", "nothing.txt"], "nothing.txt: No such file"),
        (&["tokenizer", "text.txt", "--vocab-size", "60000"], "take more text or fewer tokens"),
        (&["data", "text.txt", "--tokenizer", "text.txt", "-o", "x"], "text.txt: "),
        (&["train", "text.txt", "-o", "x"], "manifest.json"),
        (&["train", "data", "-o", "x", "--sequences", "0"], "sequences is 0, expected at least 1"),
        (&["train", "data", "-o", "x", "--clip", "0"], "clip is 0, expected a positive number"),
        (&["train", "data", "-o", "x", "--weight-group", "64"], "a divisor of each of [128, 128, 352]"),
        (&["train", "data", "-o", "x", "--config", "text.txt"], "text.txt: "),
        (&["train", "data", "-o", "x", "--positions", "100000"], "expected at least 200001 for a window"),
        (&["train", "data", "-o", "x", "--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (&["eval", "x", "data"], "recipe.json"),
        (&["curves", "data"], "metrics.jsonl"),
    ] {
        let output = command(&directory, arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(expected), "{arguments:?}: {error}");
    }
    // Another recipe in the same directory loses nothing.
    run(&directory, &[&TRAIN[..], &["--steps", "1", "-o", "run"]].concat());
    let before = fs::read(directory.join("run/checkpoint.safetensors")).unwrap();
    let output = command(&directory, &["train", "data", "-o", "run", "--steps", "2"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is of another recipe"));
    assert_eq!(fs::read(directory.join("run/checkpoint.safetensors")).unwrap(), before);
    // Shards that were cut are not read.
    let shard = directory.join("data/00000.bin");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[1..]).unwrap();
    let output = command(&directory, &["eval", "run", "data"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("00000.bin: has"));
}
