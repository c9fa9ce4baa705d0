//! `trion embed`, and the firmware in C that is made of what it writes. `tests/c` compares its models with the ordinary
//! ones.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use trion_tests::firmware::{Compiler, emulate, expected, tools};
use trion_tests::{golden, root, scratch};

const TRION: &str = env!("CARGO_BIN_EXE_trion");

fn embed(model: &Path, directory: &Path, options: &[&str]) -> Output {
    Command::new(TRION).arg("embed").arg(model).arg("-o").arg(directory).args(options).output().unwrap()
}

#[test]
fn a_cortex_m4_writes_the_same_tokens_in_c() {
    let Some(compiler) = tools(&["make", "arm-none-eabi-gcc"]) else { return };
    let build = root().canonicalize().unwrap().join("target/firmware-c");
    // The command may have changed since, of which make knows nothing.
    for old in ["firmware.elf", "story.c", "story.h"] {
        let _ = fs::remove_file(build.join(old));
    }
    let mut make = Command::new("make");
    make.current_dir(root().join("examples/bare-metal-c"));
    make.args([format!("BUILD={}", build.display()), format!("TRION={TRION}"), format!("CARGO={}", env!("CARGO"))]);
    if matches!(compiler, Compiler::Debians { .. }) {
        make.arg("DEBIAN=1");
    }
    let built = make.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = emulate(&build.join("firmware.elf"));
    assert_eq!((&said.tokens[..], said.word("logits")), (&expected().0[..], &*expected().1));
    // What examples/bare-metal-c/README.md promises.
    assert!(said.number("arena") <= said.number("variables"), "{said:?}");
    assert!(said.number("variables") + said.number("stack") <= 256 << 10, "{said:?}");
    assert!(said.number("flash") <= 640 << 10, "{said:?}");
    assert!(said.number("ticks of the longest token") > 1000, "{said:?}");
}

#[test]
fn what_it_writes_says_what_the_model_is() {
    let directory = scratch("embed");
    let output = embed(&golden("bitnet_offline"), &directory.join("made"), &["--name", "tiny_1", "--context", "20"]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(directory.join("made").join(name)).unwrap();
    let (source, header) = (read("tiny_1.c"), read("tiny_1.h"));
    for line in ["#include \"tiny_1.h\"", "    .context = 20,", "    .max_batch = 1,", "    .cache = TRION_CACHE_F16,"]
    {
        assert!(source.lines().any(|l| l == line), "{line}");
    }
    let size = header.lines().find_map(|line| line.strip_prefix("#define TINY_1_SESSION_SIZE ")).unwrap();
    assert!(size.parse::<usize>().unwrap() > 1000);
    assert!(header.contains("extern const trion_bare_model tiny_1_model;"));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(size) && said.contains("tiny_1.c") && said.contains("tiny_1.h"), "{said}");
    // No line is longer than editors like, but for those of tables.
    assert!(source.lines().filter(|line| !line.contains("TRION_BARE_")).all(|line| line.len() <= 120));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let directory = scratch("embed_refused");
    let model = golden("bitnet_offline");
    let refused = |options: &[&str], expected: &str| {
        let output = embed(&model, &directory, options);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && words.contains(expected), "{options:?}: {words}");
    };
    for name in ["", "1a", "a-b", "a b", "\u{e4}", "_a", "../a"] {
        refused(&["--name", name], "is no name in C");
    }
    refused(&["--context", "65"], "option context is 65, expected 1 to 64");
    refused(&["--context", "0"], "option context is 0");
    refused(&["--context", "8", "--max-batch", "9"], "option max_batch is 9, expected 1 to 8");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    fs::write(directory.join("model.h"), "mine").unwrap();
    refused(&[], "exists");
    assert_eq!(fs::read_to_string(directory.join("model.h")).unwrap(), "mine");
    assert!(embed(&model, &directory, &["--force"]).status.success());
    assert!(fs::read_to_string(directory.join("model.h")).unwrap().contains("MODEL_SESSION_SIZE"));
    fs::write(directory.join("file"), "").unwrap();
    let output = embed(&model, &directory.join("file"), &[]);
    assert!(output.status.code() == Some(1), "{output:?}");
}
