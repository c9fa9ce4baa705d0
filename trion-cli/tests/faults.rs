//! A machine that fails: a disk that is full, memory that is not there, an end in the midst of it. What was there before
//! stays, and what went wrong is said.

#![cfg(target_os = "linux")]

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use trion_engine::{Model, Serial, Session, SessionOptions};
use trion_tests::{root, scratch};

const CHECKPOINT: &str = "tests/golden/bitnet_online";

/// Runs the command under limits of the shell's `ulimit`.
fn limited(limits: &str, arguments: &[&str]) -> Output {
    let script = format!("{limits}; exec \"$@\"");
    let shell = ["-c", &script, "sh", env!("CARGO_BIN_EXE_trion")];
    Command::new("sh").args(shell).args(arguments).current_dir(root()).output().unwrap()
}

/// Names in a directory.
fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_file_that_cannot_be_written_whole_leaves_the_old_one() {
    let directory = scratch("full_disk");
    let file = directory.join("packed.safetensors");
    fs::write(&file, "what was there").unwrap();
    // A limit on the size of files is to a program what a full disk is: a write fails in the midst of it.
    let arguments = ["quantize", CHECKPOINT, "-o", file.to_str().unwrap(), "--force"];
    let output = limited("trap '' XFSZ; ulimit -f 8", &arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with(&format!("error: {}: ", file.display())), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "what was there");
    assert_eq!(names(&directory), ["packed.safetensors"]);
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_file() {
    let directory = scratch("killed");
    let file = directory.join("packed.safetensors");
    let arguments = ["quantize", CHECKPOINT, "-o", file.to_str().unwrap(), "--force"];
    assert!(limited("true", &arguments).status.success());
    let whole = fs::read(&file).unwrap();
    for moment in 0..40 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_trion")).args(arguments).current_dir(root()).spawn().unwrap();
        // Later each time, by what this process does meanwhile: from before the first byte to after the last.
        for _ in 0..moment * 5 {
            names(&directory);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(fs::read(&file).unwrap() == whole, "killed at moment {moment}");
    }
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let arguments = ["bench", "--shape", "2b4t", "--prompt", "4", "--decode", "2", "--repeats", "1", "--threads", "1"];
    let output = limited("ulimit -v 1000000", &arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no memory for ") && error.contains(" bytes: "), "{error}");
}

/// In a process of its own: how the model is opened, and its file.
const VICTIM: &str = "TRION_TEST_VICTIM";

/// The signal of an access to a page that no file has.
const SIGBUS: i32 = 7;

/// What `docs/security.md` says of mapped files: nothing can be done about one that is truncated but to read it instead.
#[test]
fn a_mapped_file_that_is_truncated_ends_the_process_and_one_that_was_read_does_not() {
    if let Ok(victim) = env::var(VICTIM) {
        let (how, file) = victim.split_once(' ').unwrap();
        let read = || Model::from_bytes(&fs::read(file).unwrap());
        let model = if how == "mapped" { Model::open(file) } else { read() }.unwrap();
        let mut session = Session::new(&model, SessionOptions::new(64)).unwrap();
        fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap();
        session.evaluate(&[1, 2, 3], &Serial).unwrap();
        return;
    }
    for (how, signal) in [("mapped", Some(SIGBUS)), ("read", None)] {
        let file = scratch("truncated").join("packed.safetensors");
        fs::copy(root().join("models/micro.safetensors"), &file).unwrap();
        let this = "a_mapped_file_that_is_truncated_ends_the_process_and_one_that_was_read_does_not";
        let mut process = Command::new(env::current_exe().unwrap());
        let output = process.args(["--exact", this]).env(VICTIM, format!("{how} {}", file.display())).output().unwrap();
        assert_eq!((output.status.signal(), output.status.success()), (signal, signal.is_none()), "{how}: {output:?}");
    }
}
