//! `cargo xtask everywhere`: the core's tests, and the default model's logits, on other machines than this one.
//!
//! Programs are built by Debian's compiler, whose sources of the standard library serve for every target, and run in
//! emulators, or in Node for WebAssembly.

use std::path::Path;

use crate::embed::{TRIPLE, have, output, skip, target};
use crate::{Outcome, run, run_with};

/// Where Debian has the sources of its compiler's standard library.
const SOURCES: &str = "/usr/lib/rustlib/src/rust/library/std";

/// A machine, and what its programs take.
pub(crate) struct Machine {
    name: &'static str,
    pub(crate) triple: &'static str,
    /// On Debian: a linker with its C library, and what runs programs.
    packages: &'static str,
    linker: &'static str,
    /// A program, and its arguments before the program that it runs.
    runner: [&'static str; 3],
    /// How cargo is told to build the standard library.
    pub(crate) standard: &'static str,
    pub(crate) flags: &'static str,
    /// Kernels that it must have, from the slowest to the fastest.
    kernels: &'static [&'static str],
}

const UNWINDS: &str = "-Zbuild-std=std,test,panic_unwind";

const AARCH64: Machine = Machine {
    name: "aarch64",
    triple: "aarch64-unknown-linux-gnu",
    packages: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static",
    linker: "aarch64-linux-gnu-gcc",
    runner: ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"],
    standard: UNWINDS,
    flags: "",
    kernels: &["scalar", "neon", "neon-dot"],
};

pub(crate) const WASM: Machine = Machine {
    name: "wasm32",
    triple: "wasm32-wasip1",
    packages: "nodejs wasi-libc",
    linker: "rust-lld",
    runner: ["node", "--no-warnings", concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/wasi.mjs")],
    standard: "-Zbuild-std=std,test,panic_abort",
    // Debian's C library lacks the functions for threads that the standard library knows: these are imported.
    flags: "-Ctarget-feature=+simd128 -Clink-self-contained=no -Lnative=/usr/lib/wasm32-wasi \
            -Clink-arg=/usr/lib/wasm32-wasi/crt1-command.o -Clink-arg=--import-undefined",
    kernels: &["scalar", "simd128"],
};

const I686: Machine = Machine {
    name: "i686",
    triple: "i686-unknown-linux-gnu",
    packages: "gcc-i686-linux-gnu libc6-dev-i386-cross qemu-user-static",
    linker: "i686-linux-gnu-gcc",
    runner: ["qemu-i386-static", "-L", "/usr/i686-linux-gnu"],
    standard: UNWINDS,
    flags: "",
    kernels: &["scalar"],
};

/// Big-endian.
const S390X: Machine = Machine {
    name: "s390x",
    triple: "s390x-unknown-linux-gnu",
    packages: "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static",
    linker: "s390x-linux-gnu-gcc",
    runner: ["qemu-s390x-static", "-L", "/usr/s390x-linux-gnu"],
    standard: UNWINDS,
    flags: "",
    kernels: &["scalar"],
};

const MACHINES: [Machine; 4] = [AARCH64, WASM, I686, S390X];

/// `cargo xtask everywhere [MACHINE...]`: those that are named, or all, beside this one.
pub(crate) fn everywhere(names: &[String]) -> Outcome {
    if let Some(unknown) = names.iter().find(|name| MACHINES.iter().all(|machine| machine.name != **name)) {
        let known = MACHINES.map(|machine| machine.name).join(", ");
        return Err(format!("{unknown}: expected {known}"));
    }
    let mut rows: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for machine in MACHINES.iter().filter(|machine| names.is_empty() || names.iter().any(|name| name == machine.name)) {
        if let Some(found) = machine.run()? {
            rows.push((machine.name, found));
        }
    }
    // As the tests build it, which may have been before.
    run("cargo", &["build", "--workspace", "--exclude", "trion-train", "--locked", "--example", "logits"])?;
    let program = target().join("debug/examples/logits").to_string_lossy().into_owned();
    rows.push(("this machine", hashes(&output(&program, &[MODEL])?)?));
    println!("{:14} {:10} hash of the logits", "machine", "kernel");
    for (machine, (kernel, hash)) in rows.iter().flat_map(|(name, found)| found.iter().map(move |f| (name, f))) {
        println!("{machine:14} {kernel:10} {hash}");
    }
    let mut all = rows.iter().flat_map(|(_, found)| found).map(|(_, hash)| hash);
    let first = all.next();
    if all.all(|hash| Some(hash) == first) { Ok(()) } else { Err("not all logits are the same".to_owned()) }
}

pub(crate) const MODEL: &str = "models/tales-14m.safetensors";
/// The program that computes logits with every kernel.
const EXAMPLE: [&str; 6] = ["--locked", "--package", "trion-engine", "--no-default-features", "--example", "logits"];

/// Kernels, and what they came to.
fn hashes(lines: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |line: &str| line.split_once(' ').map(|(kernel, hash)| (kernel.to_owned(), hash.to_owned()));
    lines.lines().map(|line| pair(line).ok_or_else(|| format!("{line}: expected a kernel and a hash"))).collect()
}

/// Whether the standard library can be built.
pub(crate) fn sources() -> Result<bool, String> {
    let found = Path::new(SOURCES).exists();
    if !found {
        skip("no sources of the standard library (on Debian: apt-get install rustc-web rust-web-src)")?;
    }
    Ok(found)
}

impl Machine {
    /// What cargo is told by variables, to build and run programs of this machine in `directory`.
    pub(crate) fn environment(&self, directory: &Path) -> Result<Vec<(String, String)>, String> {
        let upper = self.triple.to_uppercase().replace('-', "_");
        let of_target = |what| format!("CARGO_TARGET_{upper}_{what}");
        let directory = directory.to_string_lossy().into_owned();
        Ok(vec![
            ("RUSTC".to_owned(), "/usr/bin/rustc".to_owned()),
            // Building the standard library is no stable feature.
            ("RUSTC_BOOTSTRAP".to_owned(), "1".to_owned()),
            ("RUSTFLAGS".to_owned(), self.flags.to_owned()),
            ("CARGO_TARGET_DIR".to_owned(), directory),
            (of_target("LINKER"), self.linker()?),
            (of_target("RUNNER"), self.runner.join(" ")),
        ])
    }

    /// The linker; for WebAssembly the one that comes with rustup's toolchain.
    fn linker(&self) -> Result<String, String> {
        if self.linker != "rust-lld" {
            return Ok(self.linker.to_owned());
        }
        let sysroot = output("rustc", &["--print", "sysroot"])?;
        let path = Path::new(sysroot.trim()).join("lib/rustlib").join(TRIPLE).join("bin/rust-lld");
        Ok(path.to_string_lossy().into_owned())
    }

    /// Runs the tests, and gives what each kernel came to; `None` where programs are missing.
    fn run(&self) -> Result<Option<Vec<(String, String)>>, String> {
        let [runner, arguments @ ..] = self.runner;
        if !have(&[&self.linker()?, runner])? {
            println!("on Debian: apt-get install {}", self.packages);
            return Ok(None);
        }
        if !sources()? {
            return Ok(None);
        }
        let directory = target().join("everywhere");
        let environment = self.environment(&directory)?;
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        let how = ["--target", self.triple, self.standard];
        run_with(
            &environment,
            "cargo",
            &[&["test", "--locked", "--package", "trion-core", "--lib"][..], &how].concat(),
        )?;
        run_with(&environment, "cargo", &[&["build"][..], &EXAMPLE, &how].concat())?;
        let ending = if self.triple.starts_with("wasm32") { "logits.wasm" } else { "logits" };
        let program = directory.join(self.triple).join("debug/examples").join(ending);
        let found = hashes(&output(runner, &[&arguments[..], &[&*program.to_string_lossy(), MODEL]].concat())?)?;
        let kernels: Vec<&str> = found.iter().map(|(kernel, _)| &**kernel).collect();
        if kernels != self.kernels {
            return Err(format!("{}: has the kernels {kernels:?}, expected {:?}", self.name, self.kernels));
        }
        Ok(Some(found))
    }
}
