//! Firmware for a Cortex-M4F in an emulator, and what it must come to.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use trion_engine::{CacheType, Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};

use crate::root;

/// Rust's name for the machine.
pub const TARGET: &str = "thumbv7em-none-eabihf";
/// A compiler whose sources of `core` can be built for any target: Debian's package rust-web-src.
pub const DEBIANS: &str = "/usr/bin/rustc";
const EMULATOR: &str = "qemu-system-arm";

/// What builds for the target here.
pub enum Compiler {
    /// The compiler in use has the target.
    Own,
    /// Debian's compiler, with `core` from its sources; the linker is the one of the compiler in use.
    Debians {
        /// LLVM's linker.
        linker: PathBuf,
    },
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn compiler() -> Option<Compiler> {
    let own = sysroot("rustc")?;
    if own.join("lib/rustlib").join(TARGET).exists() {
        return Some(Compiler::Own);
    }
    sysroot(DEBIANS).filter(|debians| debians.join("lib/rustlib/src/rust/library/core").exists())?;
    Some(Compiler::Debians { linker: own.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld") })
}

/// The compiler, if the emulator and `programs` are here too; else `None`, with a word about it.
///
/// # Panics
/// In CI, which has them all.
pub fn tools(programs: &[&str]) -> Option<Compiler> {
    let runs = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let lacks = [&[EMULATOR], programs].concat().into_iter().find(|program| !runs(program)).map(str::to_owned);
    let compiler = match lacks {
        Some(program) => Err(program),
        None => compiler().ok_or(format!("Rust's target {TARGET}, or Debian's rustc-web and rust-web-src")),
    };
    match compiler {
        Ok(compiler) => Some(compiler),
        Err(lacks) => {
            assert!(std::env::var_os("CI").is_none(), "CI lacks {lacks}");
            println!("skipped: this takes {lacks}");
            None
        }
    }
}

/// What the firmware wrote to the debugger's console.
#[derive(Debug)]
pub struct Said {
    /// Numbers of the tokens that it generated.
    pub tokens: Vec<u32>,
    lines: HashMap<String, String>,
}

impl Said {
    /// What a line ends with that begins with `name`.
    ///
    /// # Panics
    /// If there is none.
    pub fn word(&self, name: &str) -> &str {
        &self.lines[name]
    }

    /// The same as a number.
    ///
    /// # Panics
    /// If there is none.
    pub fn number(&self, name: &str) -> usize {
        self.word(name).parse().expect("a number")
    }
}

/// Runs a program to its end, which must be a success.
///
/// # Panics
/// If it is none, or the firmware named no tokens.
pub fn emulate(program: &Path) -> Said {
    let machine =
        ["-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-icount", "shift=0", "-semihosting", "-kernel"];
    let ran = Command::new(EMULATOR).args(machine).arg(program).output().expect("the emulator");
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ran.status.success(), "{said}");
    println!("{said}");
    let tokens = said.lines().find_map(|line| line.strip_prefix("tokens [")?.strip_suffix(']')).expect("tokens");
    Said {
        tokens: tokens.split(", ").map(|token| token.parse().expect("a token")).collect(),
        lines: said
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, word)| (name.to_owned(), word.to_owned()))
            .collect(),
    }
}

/// The firmware's tokens and the hash of its last logits, by the engine.
///
/// # Panics
/// If the model of the firmware cannot be used.
pub fn expected() -> (Vec<u32>, String) {
    let model = Model::open(root().join("models/micro.safetensors")).expect("the model");
    let prompt = trion_engine::prompt_tokens(&model, "Once upon a time", true).expect("a prompt");
    let options = SessionOptions { cache: CacheType::F16, ..SessionOptions::new(128) };
    let mut session = Session::new(&model, options).expect("a session");
    let sampler = SamplerOptions { temperature: 0.7, top_p: 0.9, seed: 1, ..SamplerOptions::GREEDY };
    let mut sampler = Sampler::new(sampler).expect("a sampler");
    let (mut next, mut tokens, mut logits) = (prompt, Vec::new(), Vec::new());
    for _ in 0..64 {
        logits = session.evaluate(&next, &Serial).expect("logits").to_vec();
        next = vec![sampler.sample(&logits, session.tokens())];
        tokens.push(next[0]);
    }
    let hash = logits.iter().fold(0_u64, |hash, logit| hash.wrapping_mul(31).wrapping_add(u64::from(logit.to_bits())));
    (tokens, format!("{hash:016x}"))
}
