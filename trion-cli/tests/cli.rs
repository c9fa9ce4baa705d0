//! The command as a person runs it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use trion_engine::{Isa, Kernel};
use trion_tests::{copy_golden, root, scratch};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trion"));
    command.args(arguments).current_dir(root());
    command
}

/// Runs the command with text on standard input.
fn trion_with_input(arguments: &[&str], input: &str) -> Output {
    let mut child =
        command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    let expected = "The ship had been at sea for nine days when the wind had been blowing in the south-west";
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
    assert!(json["first_text_seconds"].as_f64().unwrap() > 0.0);
    let dash = trion_with_input(&["generate", "-p", "-", "-n", "8", "--json"], "In the middle of the forest");
    let dash: serde_json::Value = serde_json::from_str(&stdout(&dash)).unwrap();
    assert_eq!(dash["tokens"], json["tokens"]);
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let run = |seed| stdout(&trion(&["generate", "-n", "20", "--temperature", "1", "--top-p", "0.9", "--seed", seed]));
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn stop_strings_end_the_text() {
    let text = stdout(&trion(&["generate", "-n", "60", "--stop", "south", "--no-timing"]));
    assert_eq!(text, "The ship had been at sea for nine days when the wind had been blowing in the \n");
}

#[test]
fn a_packed_file_gives_the_same_logits() {
    let directory = scratch("cli-quantize");
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let checkpoint = "tests/golden/bitnet_offline";
    let packed = path("packed.safetensors");
    let quantize = ["quantize", checkpoint, "-o", &packed];
    let report = stdout(&trion(&quantize));
    let bytes = fs::metadata(&packed).unwrap().len();
    assert!(report.contains(&format!("{bytes} bytes\n")) && report.contains("bits a weight"), "{report}");
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
    assert!((share("0") - 0.4014).abs() < 0.005, "{}", share("0"));
    assert_eq!(json["config"]["num_hidden_layers"], 8);
    let tensors = json["tensors"].as_array().unwrap();
    let sum: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"].as_u64(), Some(sum));
    assert!(stdout(&trion(&["inspect", "--tensors"])).contains("model.layers.7.mlp.down_proj"));
    // Seven matrices in each of eight layers.
    let kinds = stdout(&trion(&["inspect"]));
    let trits = kinds.lines().find(|line| line.trim_start().starts_with("trits ")).unwrap();
    assert!(trits.contains(" 56 with "), "{trits}");
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
    println!("{nats} nats/token, transformers has 2.5533 with the embedding in single precision");
    assert!((nats - 2.553_337).abs() < 1e-3, "{nats}");
}

#[test]
fn bench_measures_a_small_model() {
    let arguments = ["bench", "--prompt", "32", "--decode", "4", "--repeats", "1", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
    assert!(json["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(json["bytes_per_token"].as_u64().unwrap() > 4_700_000);
    assert!(json["together_tokens_per_second"].is_null());
    let arguments = [&arguments[..], &["--sessions", "3"]].concat();
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
    assert!(json["together_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(failure(&["bench", "--sessions", "33"], 2).contains("--sessions"));
    // Without a length, the prompt is as long as the context has room for.
    let arguments = ["bench", "--decode", "500", "--repeats", "1", "--json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
    assert_eq!(json["prompt_tokens"], 12);
    if cfg!(target_os = "linux") {
        assert!(json["peak_resident_bytes"].as_u64() >= json["resident_bytes"].as_u64());
        assert!(json["resident_bytes"].as_u64() > Some(6_000_000));
    }
    assert!(failure(&["bench", "--repeats", "0"], 2).contains("--repeats"));
    assert!(failure(&["bench", "--prompt", "600"], 1).contains("help:"));
}

#[test]
fn bench_tells_layers_apart() {
    let arguments = ["bench", "--prompt", "80", "--decode", "4", "--repeats", "1", "--layers"];
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&trion(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let layers = json["layers"].as_array().unwrap();
    let sum = |field: &str| layers.iter().map(|layer| layer[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(Some(sum("bytes")), json["bytes_per_token"].as_u64());
    // Eight blocks of hidden size 384: query and output, key and value of two heads of 64, gate, up and down of 1024.
    assert_eq!(sum("weights"), 8 * 384 * (2 * 384 + 2 * 128 + 3 * 1024));
    for layer in layers {
        for field in ["seconds_per_decoded_token", "seconds_per_prompt_token"] {
            assert!(layer[field].as_f64().unwrap() > 0.0, "{layer}");
        }
    }
    let text = stdout(&trion(&arguments));
    let head = text.lines().find(|line| line.starts_with("head")).unwrap();
    assert!(head.contains('%'), "{text}");
    // Without the option nothing is told.
    assert!(!stdout(&trion(&arguments[..arguments.len() - 1])).contains("gate, up"));
}

#[test]
fn errors_say_what_to_do_and_give_a_code() {
    assert!(failure(&["generate", "nowhere"], 1).contains("nowhere"));
    assert!(failure(&["generate", "nowhere"], 1).contains("\nhelp: give the path"));
    assert!(failure(&["chat"], 1).contains("\nhelp: continue texts with it by trion generate"));
    assert!(failure(&["generate", "--context", "4"], 1).contains("\nhelp: "));
    if let Some(missing) = Isa::ALL.into_iter().find(|isa| Kernel::new(*isa).is_none()) {
        assert!(failure(&["generate", "--kernel", missing.name()], 1).contains("\nhelp: it has scalar"));
    }
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

/// Every command that writes much, or is piped often.
const WRITERS: [&[&str]; 6] = [
    &["generate", "-n", "4"],
    &["generate", "-n", "4", "--json"],
    &["inspect", "--tensors"],
    &["tokenize", "x"],
    &["perplexity", "LICENSE", "--window", "64"],
    &["completions", "zsh"],
];

#[test]
fn a_reader_that_has_enough_is_no_error() {
    for arguments in WRITERS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
        assert!(!error.contains("error") && !error.contains("panic"), "{arguments:?}: {error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    for arguments in WRITERS {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(arguments).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("error: standard output: "), "{arguments:?}: {error}");
    }
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_text_so_far() {
    let prompt = "The ship";
    // Slow enough that the signal comes long before the last token.
    let arguments = ["generate", "-p", prompt, "-n", "500", "--kernel", "scalar", "--threads", "1", "--no-timing"];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    // One byte more than the prompt: text is being written.
    let mut text = vec![0; prompt.len() + 1];
    out.read_exact(&mut text).unwrap();
    interrupt(&child);
    out.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text.starts_with(prompt.as_bytes()) && text.ends_with(b"\n"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let whole = stdout(&trion(&["generate", "-p", prompt, "-n", "500"]));
    assert!(text.len() < whole.len());
    assert!(whole.as_bytes().starts_with(text.trim_ascii_end()));
}

#[test]
fn standard_input_that_is_not_text_is_named() {
    let mut child =
        command(&["generate"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"\xff\xfe").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: standard input: "));
}

#[test]
fn every_byte_of_a_text_counts_once() {
    let path = scratch("cli-bytes").join("text.txt");
    // Characters of up to four bytes, which short windows cut.
    let text = "<|endoftext|>Ein Schiff fährt über das Meer: 船, ⛵ und 🚢.";
    fs::write(&path, text).unwrap();
    let ids = stdout(&trion(&["tokenize", text, "--no-special"])).split(',').count();
    // No token is left over in a window of its own, where it would predict nothing.
    let window = (2..8).find(|window| ids % window != 1).unwrap();
    for window in [512, window] {
        let arguments = ["perplexity", &*path.to_string_lossy(), "--window", &window.to_string(), "--json"];
        let json: serde_json::Value = serde_json::from_str(&stdout(&trion(&arguments))).unwrap();
        assert_eq!(json["bytes"].as_u64(), Some(text.len() as u64));
        assert_eq!(json["tokens"].as_u64(), Some((ids - ids.div_ceil(window)) as u64));
    }
}

#[test]
fn a_conversation_goes_on() {
    let directory = copy_golden("cli-chat", "bitnet_offline");
    let template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}";
    fs::write(directory.join("chat_template.jinja"), template).unwrap();
    let model = directory.to_string_lossy();
    let talk = |input| stdout(&trion_with_input(&["chat", &model, "-n", "4"], input));
    let once = talk("Hi\n");
    assert!(!once.is_empty());
    // The second question goes on in the same session; a session of its own for the whole conversation says the same.
    let twice = talk("Hi\nAnd you?\n");
    let second = twice.strip_prefix(&once).unwrap();
    let conversation = format!("user: Hi\nassistant: {}\nuser: And you?\n", once.trim());
    let fresh = stdout(&trion(&["generate", &model, "-p", &conversation, "-n", "4"]));
    assert_eq!(fresh, format!("{conversation}{second}"));
    // After a reset the same question gets the same answer.
    assert_eq!(talk("Hi\n/reset\nHi\n/exit\nHi\n"), format!("{once}{once}"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_chat_that_waits_for_a_line() {
    let directory = copy_golden("cli-chat-interrupt", "bitnet_offline");
    fs::write(directory.join("chat_template.jinja"), "{% for m in messages %}{{ m['content'] }}{% endfor %}").unwrap();
    let model = directory.to_string_lossy();
    let mut child = command(&["chat", &model, "-n", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Hi\n").unwrap();
    // The line's end comes when the answer is over.
    let mut answer = Vec::new();
    BufReader::new(child.stdout.take().unwrap()).read_until(b'\n', &mut answer).unwrap();
    assert!(answer.ends_with(b"\n"));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(input);
}

/// An argument of --json-schema.
const SAILOR: &str = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 10},
    "age": {"type": "integer", "minimum": 10, "maximum": 99}}, "required": ["name", "age"], "additionalProperties": false}"#;

#[test]
fn text_follows_a_json_schema() {
    let file = scratch("cli-schema").join("sailor.json");
    fs::write(&file, SAILOR).unwrap();
    let file = file.to_string_lossy();
    for seed in ["1", "2", "3"] {
        let drawn = ["--temperature", "1", "--seed", seed, "-n", "200", "--json"];
        let of_schema = |schema| [&["generate", "-p", "A sailor: ", "--json-schema", schema], &drawn[..]].concat();
        let summary: serde_json::Value = serde_json::from_str(&stdout(&trion(&of_schema(&file)))).unwrap();
        assert_eq!(summary["stop"], "constraint");
        let sailor: serde_json::Value = serde_json::from_str(summary["text"].as_str().unwrap()).unwrap();
        assert!(sailor["name"].as_str().unwrap().chars().count() <= 10);
        assert!((10..=99).contains(&sailor["age"].as_i64().unwrap()));
        let inline: serde_json::Value = serde_json::from_str(&stdout(&trion(&of_schema(SAILOR)))).unwrap();
        assert_eq!(inline["text"], summary["text"]);
    }
}

#[test]
fn text_follows_a_regular_expression_or_a_grammar() {
    let year = stdout(&trion(&["generate", "-p", "In ", "--regex", "1[89][0-9]{2}", "--no-timing"]));
    let digits = year.strip_prefix("In 1").unwrap().trim_end();
    assert!(digits.len() == 3 && digits.starts_with(['8', '9']), "{year}");
    let file = scratch("cli-grammar").join("answer.lark");
    fs::write(&file, "start: \" yes\" | \" no\"\n").unwrap();
    let answer = stdout(&trion(&["generate", "-p", "Is it?", "--grammar", &file.to_string_lossy(), "--no-timing"]));
    assert!(["Is it? yes\n", "Is it? no\n"].contains(&answer.as_str()), "{answer}");
}

#[test]
fn constraints_that_cannot_be_followed() {
    let schema = |text| failure(&["generate", "--json-schema", text], 1);
    assert!(schema("nowhere.json").contains("--json-schema nowhere.json: "));
    assert!(schema("{\"type\": 3}").starts_with("error: constraint: JSON schema: type must be"));
    assert!(failure(&["generate", "--regex", "("], 1).contains("unclosed group"));
    assert!(failure(&["generate", "--grammar", "nowhere.lark"], 1).contains("nowhere.lark"));
    assert!(failure(&["generate", "--grammar", "LICENSE"], 1).starts_with("error: constraint: grammar: "));
    assert!(failure(&["generate", "--regex", "a", "--json-schema", "{}"], 2).contains("cannot be used with"));
    // What is written before a dead end is written.
    let output = trion(&["generate", "-p", "x", "--regex", "ab[^\\s\\S]", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: dead end"));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["stop"], "dead_end");
}

#[test]
fn an_answer_follows_a_constraint() {
    let directory = copy_golden("cli-chat-constraint", "bitnet_offline");
    fs::write(directory.join("chat_template.jinja"), "{% for m in messages %}{{ m['content'] }}{% endfor %}").unwrap();
    let answers = stdout(&trion_with_input(&["chat", &directory.to_string_lossy(), "--regex", "yes|no"], "Hi\nAnd?\n"));
    assert!(answers.lines().count() == 2 && answers.lines().all(|a| ["yes", "no"].contains(&a)), "{answers}");
}

#[test]
fn a_gpu_writes_the_same_text_or_says_why_it_is_not_there() {
    for options in ["", "--temperature 0.8 --top-k 40 --repetition-penalty 1.1 --seed 7", "--temperature 1 --seed 3"] {
        let generate = |device| {
            let arguments = ["generate", "-n", "8", "--device", device];
            trion(&arguments.into_iter().chain(options.split_whitespace()).collect::<Vec<_>>())
        };
        let text = stdout(&generate("cpu"));
        // Whether there is a GPU or not.
        assert_eq!(stdout(&generate("auto")), text);
        let output = generate("cuda");
        if output.status.success() {
            assert_eq!(stdout(&output), text);
        } else {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{errors}");
            let expected = if cfg!(feature = "cuda") { "NVIDIA" } else { "feature `cuda`" };
            assert!(errors.starts_with("error: ") && errors.contains(expected), "{errors}");
            assert!(errors.contains("help: --device cpu computes the same"), "{errors}");
        }
    }
    assert!(failure(&["generate", "--device", "gpu"], 2).contains("expected cpu, cuda, cuda:NUMBER or auto"));
}

#[cfg(feature = "cuda")]
#[test]
fn a_plan_says_whether_a_model_fits_into_a_gpu() {
    let json = stdout(&trion(&["inspect", "--device", "cuda", "--memory", "2GB", "--json"]));
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    let pieces = ["weights", "embedding", "cache", "scratch"].map(|piece| plan[piece].as_u64().unwrap());
    assert_eq!(pieces.iter().sum::<u64>(), plan["total"].as_u64().unwrap());
    assert_eq!((&plan["fits"], &plan["memory"]), (&true.into(), &2_000_000_000_u64.into()));
    // A model of this size takes less than the 11 ms of one a hundred times larger; the words say that nobody measured.
    let prediction = &plan["gtx_1050_prediction"];
    let [ms, rate] = ["ms_per_token", "tokens_per_second"].map(|number| prediction[number].as_f64().unwrap());
    assert!((0.1..5.0).contains(&ms) && (ms * rate - 1e3).abs() < 1e-6, "{prediction}");
    let text = stdout(&trion(&["inspect", "--device", "cuda", "--context", "100"]));
    assert!(text.contains("prediction, not measured: ") && text.contains("on a GTX 1050 at position 99,"), "{text}");
    let json = stdout(&trion(&["inspect", "--device", "cuda", "--context", "100", "--json"]));
    let short: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(short["gtx_1050_prediction"]["ms_per_token"].as_f64().unwrap() < ms);
    // Half the bytes for each key and value.
    let json = stdout(&trion(&["inspect", "--device", "cuda", "--cache", "f16", "--json"]));
    let half: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(2 * half["cache"].as_u64().unwrap(), pieces[2]);
    let errors = failure(&["inspect", "--device", "cuda", "--memory", "1MB"], 1);
    assert!(errors.contains("do not fit into 1000000") && errors.contains("--context"), "{errors}");
}
