//! Chores of this repository: `cargo xtask NAME`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

mod chart;
mod embed;
mod everywhere;
mod fuzz;
mod instructions;
mod kernels;
mod onnx;
mod peers;
mod python;
mod release;
mod sanitizers;
mod tools;
mod web;

const HELP: &str = "cargo xtask NAME

  test    every test, of the workspace, of the README's examples and of the C library
  lint    formatting, clippy, with and without optional features, api and deny
  ci      lint, test, everywhere aarch64 wasm32, web, fuzz
  golden  makes tests/golden anew (needs Python; installs transformers into .venv)
  transformers  compares what PyPI's transformers computes of exported checkpoints with Trion (needs Python; installs
          transformers into .venv; no part of test, since it fetches PyTorch)
  bench   speed at the 2b4t shape: cargo xtask bench [THREADS]; or instructions beside those recorded:
          cargo xtask bench --instructions [--write] (needs valgrind); or beside llama.cpp: cargo xtask bench --peers
          (needs Python, CMake and a C++ compiler); or layer by layer: cargo xtask bench --kernels [THREADS]
  header  makes include/trion.h anew, and the record of its binary interface
  package installs and checks the C library: cargo xtask package [--prefix DIR] [--small]
  embed   packages both builds of the C library, and runs the programs in C, C++ and Lua that use it; then sanitize thread
  everywhere  the core's tests and the default model's logits on other machines: cargo xtask everywhere [MACHINE...]
          (needs Debian's Rust and its sources, cross compilers and emulators)
  web     the page of examples/web, in target/web, tried in Node and in a headless Chromium (needs Debian's Rust and its
          sources, wasi-libc, nodejs and chromium)
  fuzz    the fuzz targets, under AddressSanitizer: cargo xtask fuzz [--seconds N] [TARGET...]
          (needs a C++ compiler)
  sanitize  the tests in C with a library that AddressSanitizer watches, sessions on many threads with one that
          ThreadSanitizer watches, and the tests under valgrind: cargo xtask sanitize [address|thread|valgrind]
  api     compares the public items of the libraries in Rust with those recorded: cargo xtask api [--write]
  deny    licences and sources of dependencies, and what is known against them: cargo xtask deny [--advisories]
  oldest  compiles every package with the oldest Rust that it states (needs rustup)
  onnxruntime  installs ONNX Runtime, and what the tests of exports to ONNX take, in target/onnxruntime (needs Python)
  gpu-test  compares an NVIDIA GPU with the CPU bit by bit, and measures it
  kernels compiles the CUDA kernels, and says what each takes: cargo xtask kernels [--check] (needs Python)
  units   what a unit of work costs, and how fast a call is cancelled
";

/// What a chore gives: nothing, or which command failed.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("test") => test(),
        Some("lint") => lint(),
        Some("ci") => ci(),
        Some("golden") => golden(),
        Some("transformers") => transformers(),
        Some("bench") => match arguments.get(1).map(String::as_str) {
            Some("--instructions") => instructions::instructions(&arguments[2..]),
            Some("--peers") => peers::peers(&arguments[2..]),
            Some("--kernels") => bench_kernels(arguments.get(2).map_or("1", String::as_str)),
            threads => bench(threads.unwrap_or("0")),
        },
        Some("fuzz") => fuzz::fuzz(&arguments[1..]),
        Some("api") => release::api(&arguments[1..]),
        Some("deny") => release::deny(&arguments[1..]),
        Some("oldest") => release::oldest(),
        Some("header") => embed::header(),
        Some("package") => embed::package_command(&arguments[1..]),
        Some("embed") => embed::embed(),
        Some("sanitize") => sanitizers::sanitize(&arguments[1..]),
        Some("web") => web::web(),
        Some("everywhere") => everywhere::everywhere(&arguments[1..]),
        Some("onnxruntime") => onnx::onnxruntime(),
        Some("kernels") => kernels::kernels(&arguments[1..]),
        Some("gpu-test") => kernels::gpu_test(),
        Some("units") => embed::units(),
        _ => Err(HELP.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Outcome {
    // Before the tests that load it.
    let onnxruntime = onnx::packages()?.is_some();
    // What is checked in must be what the kernels compile to.
    kernels::kernels(&["--check".to_owned()])?;
    // What trains is built apart, as the README's commands build it: with the others its packages would have other features,
    // and all of burn would be built twice.
    run("cargo", &["test", "--workspace", "--exclude", "trion-train", "--locked"])?;
    run("cargo", &["test", "-p", "trion-train", "--locked"])?;
    let large =
        ["--test", "large", "--", "--ignored", "--exact", "a_large_model_is_exported_in_little_memory_and_agrees"];
    run("cargo", &[&["test", "--release", "--locked", "-p", "trion-onnx"], &large[..]].concat())?;
    let readme = std::fs::read_to_string(root().join("README.md")).map_err(|e| format!("README.md: {e}"))?;
    // A shell, since the examples are what a person types into one.
    examples(&readme)
        .into_iter()
        .filter(|line| !line.contains("cargo xtask") && (onnxruntime || !line.contains("trion-onnx -- check")))
        .try_for_each(|line| run("sh", &["-c", line]))?;
    embed::embed()
}

/// The lines of the fenced blocks marked `sh`.
fn examples(markdown: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in markdown.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside {
            lines.push(line);
        }
    }
    lines
}

/// What `.ci/run` does.
fn ci() -> Outcome {
    lint()?;
    test()?;
    everywhere::everywhere(&["aarch64", "wasm32"].map(str::to_owned))?;
    web::web()?;
    fuzz::fuzz(&[])
}

fn lint() -> Outcome {
    run("cargo", &["fmt", "--all", "--check"])?;
    let clippy = |what: &[&str]| {
        run("cargo", &[&["clippy", "--all-targets", "--locked"], what, &["--", "-D", "warnings"]].concat())
    };
    // In the parts that test has, with the features that packages have there: what runs while others are compiled is then
    // compiled once.
    clippy(&["--workspace", "--exclude", "trion-train"])?;
    clippy(&["--package", "trion-train", "--features", "cuda"])?;
    // Embedders of small programs leave the text features out.
    let small = ["--package", "trion-ffi", "--no-default-features", "--features"];
    clippy(&[&small[..], &["trion-ffi/std", "--package", "trion-engine"]].concat())?;
    clippy(&[&small[..], &["trion-ffi/cuda,trion-engine/cuda", "--package", "trion-engine"]].concat())?;
    clippy(&[&small[..], &["trion-ffi/std", "--package", "trion-cli"]].concat())?;
    // And without the standard library, whose unwinder is missing then.
    let bare = ["clippy", "--locked", "-p", "trion-ffi", "--no-default-features", "--", "-D", "warnings"];
    run_with(&[("CARGO_PROFILE_DEV_PANIC", "abort")], "cargo", &bare)?;
    release::api(&[])?;
    release::deny(&[])
}

fn golden() -> Outcome {
    run(&python_with_transformers()?, &["tests/golden/make.py"])
}

/// Trains a small model on the repository's documents, exports it for transformers in both ways, and compares logits.
fn transformers() -> Outcome {
    let python = python_with_transformers()?;
    run("cargo", &["build", "--release", "--locked", "--bin", "trion"])?;
    let train = |arguments: &str| {
        let arguments = arguments.split(' ').collect::<Vec<_>>();
        run("cargo", &[&["run", "--locked", "-p", "trion-train", "--"], &arguments[..]].concat())
    };
    let directory = "target/transformers";
    run("rm", &["-rf", directory])?;
    train(&format!("tokenizer README.md docs/training.md docs/numerics.md --vocab-size 512 -o {directory}.json"))?;
    train(&format!(
        "data README.md docs/training.md docs/numerics.md --tokenizer {directory}.json -o {directory}/data"
    ))?;
    train(&format!("train {directory}/data -o {directory}/run --positions 64 --sequences 8 --steps 60"))?;
    let exports = ["masters", "packed"].map(|format| (format, format!("{directory}/{format}")));
    for (format, to) in &exports {
        train(&format!("export {directory}/run --format {format} -o {to}"))?;
    }
    run(&python, &["trion-train/tests/check_transformers.py", &exports[0].1, &exports[1].1])
}

/// Python in .venv, where the transformers of `PyPI` is installed.
fn python_with_transformers() -> Result<String, String> {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        run("python3", &["-m", "venv", ".venv"])?;
        let packages = ["transformers==5.23.*", "torch", "accelerate", "safetensors", "numpy", "gguf==0.19.*"];
        let mut install = vec!["-m", "pip", "install", "--quiet"];
        install.extend(packages);
        run(&python.to_string_lossy(), &install)?;
    }
    Ok(python.to_string_lossy().into_owned())
}

fn bench(threads: &str) -> Outcome {
    let shape = ["run", "--release", "--bin", "trion", "--", "bench", "--shape", "2b4t", "--threads", threads];
    run("cargo", &shape)
}

/// Products by themselves, and those of a token and of 64 tokens within a model, at the beginning of a text, where
/// attention has next to nothing to do.
fn bench_kernels(threads: &str) -> Outcome {
    run("cargo", &["run", "--release", "--bin", "trion", "--", "bench", "--kernels", "--threads", threads])?;
    let shape = ["run", "--release", "--bin", "trion", "--", "bench", "--shape", "2b4t", "--head", "int6"];
    let how =
        ["--prompt", "64", "--cache", "f16", "--repeats", "3", "--packing", "auto", "--layers", "--threads", threads];
    run("cargo", &[&shape[..], &how].concat())
}

/// Runs a command at the root of the repository.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    run_with(&[], program, arguments)
}

/// Runs a command at the root of the repository with these variables in its environment.
fn run_with(environment: &[(&str, &str)], program: &str, arguments: &[&str]) -> Outcome {
    let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
    let words = variables.chain([program.to_owned()]).chain(arguments.iter().map(|&word| word.to_owned()));
    let what = words.collect::<Vec<_>>().join(" ");
    println!("$ {what}");
    let start = Instant::now();
    let status = Command::new(program)
        .stdin(Stdio::null())
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|e| format!("{what}: {e}"))?;
    println!("# {:.1} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{what}: {status}")) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package of the workspace").to_owned()
}
