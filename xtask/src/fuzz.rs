//! The fuzz targets of `fuzz/`, built once with `AddressSanitizer` and run two at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::embed::{TRIPLE, have, remove, target};
use crate::tools::tool;
use crate::{Outcome, root, run_with};

/// Pinned, since what it tells the compiler are no stable flags.
const CARGO_FUZZ: &str = "0.13.2";

/// Seconds for a target, if nothing is said.
const SECONDS: &str = "30";

/// Targets that run at a time.
const AT_A_TIME: usize = 2;

/// What a target may take: memory in all and at once, both in MiB; and seconds for one input, by the clock, so that a busy
/// machine needs some more than an input ever takes by itself.
const LIMITS: [&str; 3] = ["-rss_limit_mb=2048", "-malloc_limit_mb=512", "-timeout=120"];

/// How long inputs are: at most some more than the longest seed, and from the start, since most inputs have a structure
/// that short ones lack.
const LENGTHS: [&str; 2] = ["-max_len=40000", "-len_control=0"];

/// Where everything of this chore lies.
fn place(name: &str) -> PathBuf {
    target().join("fuzz").join(name)
}

/// `cargo xtask fuzz [--seconds N] [TARGET...]`
pub(crate) fn fuzz(arguments: &[String]) -> Outcome {
    let (mut seconds, mut targets) = (SECONDS, Vec::new());
    let all = all_targets()?;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let number = arguments.next().filter(|number| number.parse::<u32>().is_ok_and(|seconds| seconds > 0));
            seconds = number.ok_or("--seconds needs a number above 0")?;
        } else if all.contains(argument) {
            targets.push(argument.clone());
        } else {
            return Err(format!("{argument}: expected --seconds N or a target: {}", all.join(", ")));
        }
    }
    if targets.is_empty() {
        targets = all;
    }
    if !have(&["c++"])? {
        return Ok(());
    }
    build()?;
    remove(&place("temporary"))?;

    let (rest, results) = (Mutex::new(targets.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(target) = next(&rest) {
                    let result = run_target(&target, seconds);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((target, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort();
    println!("{:12}  {:>12}", "target", "executions");
    for (target, result) in &results {
        println!("{target:12}  {:>12}", result.as_ref().map_or_else(|_| "finding".to_owned(), u64::to_string));
    }
    let findings: Vec<String> = results.into_iter().filter_map(|(_, result)| result.err()).collect();
    if findings.is_empty() { Ok(()) } else { Err(findings.join("\n")) }
}

/// The next target, held for no longer than that.
fn next(rest: &Mutex<impl Iterator<Item = String>>) -> Option<String> {
    rest.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// The names of the targets, which are those of the programs in `fuzz/fuzz_targets`.
fn all_targets() -> Result<Vec<String>, String> {
    let directory = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let stem = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.filter_map(|entry| stem(entry.ok()?)).collect();
    names.sort();
    Ok(names)
}

/// Where the targets are built: apart, since what is built for stable and what is built with its unstable flags would
/// each be built anew after the other.
fn objects() -> PathBuf {
    place("cargo")
}

/// Builds every target.
fn build() -> Outcome {
    let program = tool("cargo-fuzz", "cargo-fuzz", CARGO_FUZZ)?;
    let objects = objects().to_string_lossy().into_owned();
    // The profile for development checks for overflow. What it compiles well would be minutes of work here, with a counter
    // in each branch of each kernel.
    let environment = [("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", "-Copt-level=1"), ("CARGO_TARGET_DIR", &*objects)];
    let build = ["build", "--dev", "--fuzz-dir", "fuzz", "--features", "libfuzzer", "--target", TRIPLE];
    run_with(&environment, &program.to_string_lossy(), &build)
}

/// Runs a target from its seeds, and gives the inputs that it was run with.
fn run_target(name: &str, seconds: &str) -> Result<u64, String> {
    let corpus = place("corpus").join(name);
    for from in ["seeds", "regressions"] {
        copy(&root().join("fuzz").join(from).join(name), &corpus, from)?;
    }
    let (artifacts, temporary) = (place("artifacts").join(name), place("temporary").join(name));
    for directory in [&artifacts, &temporary, &place("logs")] {
        fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    let log = place("logs").join(format!("{name}.txt"));
    let output = fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let errors = output.try_clone().map_err(|e| format!("{}: {e}", log.display()))?;
    let program = objects().join(TRIPLE).join("debug").join(name);
    println!("$ {} for {seconds} s, written to {}", program.display(), log.display());
    let status = Command::new(&program)
        .arg(&corpus)
        .args(LIMITS)
        .args(LENGTHS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .env("TMPDIR", &temporary)
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    remove(&temporary)?;
    let text = fs::read(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    if !status.success() {
        return Err(finding(name, &program, &text, &log));
    }
    let executed = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    executed
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| format!("{}: says nothing of executed units", log.display()))
}

/// What was found, and how to see it again.
fn finding(name: &str, program: &Path, text: &str, log: &Path) -> String {
    let input = text.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
    let lines = text.lines().filter(|line| line.contains("panicked at") || line.contains("ERROR:"));
    let first: Vec<&str> = lines.take(2).collect();
    let again = match input {
        Some(input) => format!("the input is {input}\nagain: {} {} {input}", program.display(), LIMITS.join(" ")),
        None => "no input was written".to_owned(),
    };
    format!("{name}: {}\n{again}\nall of it: {}", first.join("\n"), log.display())
}

/// Copies the inputs of a directory, if it is there, under names that tell where they come from.
fn copy(from: &Path, to: &Path, prefix: &str) -> Outcome {
    fs::create_dir_all(to).map_err(|e| format!("{}: {e}", to.display()))?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|e| format!("{}: {e}", from.display()))?;
        let name = format!("{prefix}-{}", entry.file_name().to_string_lossy());
        fs::copy(entry.path(), to.join(name)).map_err(|e| format!("{}: {e}", entry.path().display()))?;
    }
    Ok(())
}
