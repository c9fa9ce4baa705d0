//! What a release must keep to: the public interfaces that are recorded, the licences of dependencies, the oldest compiler.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::embed::{have, output, target};
use crate::tools::tool;
use crate::{Outcome, root, run, run_with};

/// The libraries for programs in Rust.
const LIBRARIES: [&str; 3] = ["trion-core", "trion-cuda", "trion-engine"];

/// Pinned, since it reads what one range of compilers writes.
const PUBLIC_API: &str = "0.52.0";

const CARGO_DENY: &str = "0.20.2";

/// Lists the public items of every library with all features, and compares them with `api.txt` beside its sources; or with
/// `--write` writes that file. A broken link in what is said of them is an error.
pub(crate) fn api(arguments: &[String]) -> Outcome {
    let write = match arguments {
        [] => false,
        [only] if only == "--write" => true,
        _ => return Err("cargo xtask api [--write]".to_owned()),
    };
    let program = tool("cargo-public-api", "cargo-public-api", PUBLIC_API)?;
    let packages: Vec<&str> = LIBRARIES.iter().flat_map(|library| ["--package", library]).collect();
    let rustdoc = root().join("xtask/rustdoc.sh");
    let environment = [
        ("RUSTDOC", &*rustdoc.to_string_lossy()),
        ("RUSTDOCFLAGS", "-Dwarnings -Zunstable-options --output-format json"),
    ];
    let doc = ["doc", "--locked", "--no-deps", "--lib", "--all-features"];
    run_with(&environment, "cargo", &[&doc[..], &packages].concat())?;
    let mut changed = Vec::new();
    for library in LIBRARIES {
        let json = target().join("doc").join(format!("{}.json", library.replace('-', "_")));
        // Without what the compiler gives to every type, or derives.
        let which = ["--rustdoc-json", &*json.to_string_lossy(), "-sss", "--color=never"];
        let listing = output(&program.to_string_lossy(), &which)?;
        let record = root().join(library).join("api.txt");
        if write {
            fs::write(&record, &listing).map_err(|e| format!("{}: {e}", record.display()))?;
        } else {
            let recorded = fs::read_to_string(&record).map_err(|e| format!("{}: {e}", record.display()))?;
            changed.extend(differences(&recorded, &listing).map(|line| format!("{library}: {line}")));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    Err(format!("{}\nif this is meant: cargo xtask api --write", changed.join("\n")))
}

/// The lines that one of two listings lacks, which have each line once.
fn differences<'a>(old: &'a str, new: &'a str) -> impl Iterator<Item = String> + 'a {
    let missing = |from: &'a str, of: &'a str, sign: char| {
        of.lines()
            .filter(move |&line| !from.lines().any(|other| other == line))
            .map(move |line| format!("{sign}{line}"))
    };
    missing(new, old, '-').chain(missing(old, new, '+'))
}

/// Licences, sources and versions of all dependencies by `deny.toml`; with `--advisories` also what is known against them,
/// by the database that is fetched then.
pub(crate) fn deny(arguments: &[String]) -> Outcome {
    let advisories: &[&str] = match arguments {
        [] => &[],
        [only] if only == "--advisories" => &["advisories"],
        _ => return Err("cargo xtask deny [--advisories]".to_owned()),
    };
    let program = tool("cargo-deny", "cargo-deny", CARGO_DENY)?;
    let checks = ["--locked", "check", "licenses", "bans", "sources"];
    run(&program.to_string_lossy(), &[&checks, advisories].concat())
}

/// Compiles everything with the oldest compiler that its package states, and runs the core's tests with theirs.
pub(crate) fn oldest() -> Outcome {
    if !have(&["rustup"])? {
        return Ok(());
    }
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps", "--locked"])?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (Some(version), Some(name)) = (package["rust_version"].as_str(), package["name"].as_str()) else {
            return Err(format!("{}: states no rust-version", package["name"]));
        };
        versions.entry(version).or_default().extend(["--package", name]);
    }
    for (version, packages) in versions {
        run("rustup", &["toolchain", "install", version, "--profile", "minimal", "--no-self-update"])?;
        with(version, &[&["check", "--locked", "--all-targets"], &packages[..]].concat())?;
        if packages.contains(&"trion-core") {
            with(version, &["test", "--locked", "--package", "trion-core"])?;
        }
    }
    Ok(())
}

/// Runs cargo of a version.
fn with(version: &str, arguments: &[&str]) -> Outcome {
    let directory = target().join("oldest").join(version);
    let environment = [("CARGO_TARGET_DIR", &*directory.to_string_lossy())];
    run_with(&environment, "rustup", &[&["run", version, "cargo"], arguments].concat())
}
