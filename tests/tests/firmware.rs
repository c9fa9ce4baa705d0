//! The firmware of examples/bare-metal in an emulator, against the engine here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use trion_engine::{Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};
use trion_tests::root;

const TARGET: &str = "thumbv7em-none-eabihf";
const EMULATOR: &str = "qemu-system-arm";
/// A compiler whose sources of `core` can be built for any target: Debian's package rust-web-src.
const DEBIANS: &str = "/usr/bin/rustc";

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Builds the firmware; `None` if no compiler here can.
fn build(firmware: &Path) -> Option<Output> {
    let own = sysroot("rustc")?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(firmware).args(["build", "--release", "--locked", "--target-dir"]);
    cargo.arg(root().canonicalize().ok()?.join("target/firmware"));
    if !own.join("lib/rustlib").join(TARGET).exists() {
        sysroot(DEBIANS).filter(|debians| debians.join("lib/rustlib/src/rust/library/core").exists())?;
        let linker = own.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
        cargo.args(["-Zbuild-std=core"]).envs([("RUSTC", DEBIANS), ("RUSTC_BOOTSTRAP", "1")]);
        cargo.env("CARGO_TARGET_THUMBV7EM_NONE_EABIHF_LINKER", linker);
    }
    cargo.output().ok()
}

#[test]
fn a_cortex_m4_writes_the_same_tokens() {
    let firmware = root().join("examples/bare-metal");
    let built = build(&firmware).filter(|_| Command::new(EMULATOR).arg("--version").output().is_ok());
    let Some(built) = built else {
        assert!(std::env::var_os("CI").is_none(), "CI has neither {EMULATOR} nor a compiler for {TARGET}");
        println!("skipped: this takes {EMULATOR}, and Rust's target {TARGET} or Debian's rustc-web and rust-web-src");
        return;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = root().join("target/firmware").join(TARGET).join("release/trion-firmware");
    let machine =
        ["-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-icount", "shift=0", "-semihosting", "-kernel"];
    let ran = Command::new(EMULATOR).args(machine).arg(&program).output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ran.status.success(), "{said}");
    println!("{said}");
    let lines: HashMap<&str, &str> = said.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let number = |name: &str| lines[name].parse::<usize>().unwrap();
    let tokens = said.lines().find_map(|line| line.strip_prefix("tokens [")?.strip_suffix(']')).unwrap();
    let tokens: Vec<u32> = tokens.split(", ").map(|token| token.parse().unwrap()).collect();

    let model = Model::open(root().join("models/micro.safetensors")).unwrap();
    let prompt = trion_engine::prompt_tokens(&model, "Once upon a time", true).unwrap();
    let options = SessionOptions { cache: trion_engine::CacheType::F16, ..SessionOptions::new(128) };
    let mut session = Session::new(&model, options).unwrap();
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: 0.7, top_p: 0.9, seed: 1, ..SamplerOptions::GREEDY }).unwrap();
    let (mut next, mut expected, mut logits) = (prompt, Vec::new(), Vec::new());
    for _ in 0..64 {
        logits = session.evaluate(&next, &Serial).unwrap().to_vec();
        next = vec![sampler.sample(&logits, session.tokens())];
        expected.push(next[0]);
    }
    let hash = logits.iter().fold(0_u64, |hash, logit| hash.wrapping_mul(31).wrapping_add(u64::from(logit.to_bits())));
    assert_eq!(tokens, expected);
    assert_eq!(lines["logits"], format!("{hash:016x}"));
    // What examples/bare-metal/README.md promises.
    assert!(number("arena") <= number("variables") && number("variables") + number("stack") <= 256 << 10, "{said}");
    assert!(number("flash") <= 640 << 10, "{said}");
    assert!(number("ticks of the longest token") > 1000, "{said}");
}
