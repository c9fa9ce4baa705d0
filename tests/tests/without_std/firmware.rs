//! The firmware of examples/bare-metal in an emulator, against the engine here. That of examples/bare-metal-c is tested with
//! the command that writes its tables, in trion-cli/tests.

use std::process::Command;

use trion_tests::firmware::{Compiler, DEBIANS, TARGET, emulate, expected, tools};
use trion_tests::root;

#[test]
fn a_cortex_m4_writes_the_same_tokens() {
    let Some(compiler) = tools(&[]) else { return };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root().join("examples/bare-metal")).args(["build", "--release", "--locked", "--target-dir"]);
    cargo.arg(root().canonicalize().unwrap().join("target/firmware"));
    if let Compiler::Debians { linker } = compiler {
        cargo.args(["-Zbuild-std=core"]).envs([("RUSTC", DEBIANS), ("RUSTC_BOOTSTRAP", "1")]);
        cargo.env("CARGO_TARGET_THUMBV7EM_NONE_EABIHF_LINKER", linker);
    }
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = emulate(&root().join("target/firmware").join(TARGET).join("release/trion-firmware"));
    assert_eq!((&said.tokens[..], said.word("logits")), (&expected().0[..], &*expected().1));
    // What examples/bare-metal/README.md promises.
    assert!(said.number("arena") <= said.number("variables"), "{said:?}");
    assert!(said.number("variables") + said.number("stack") <= 256 << 10, "{said:?}");
    assert!(said.number("flash") <= 640 << 10, "{said:?}");
    assert!(said.number("ticks of the longest token") > 1000, "{said:?}");
}
