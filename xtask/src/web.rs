//! `cargo xtask web`: the page of `examples/web`, put together and tried.

use std::fs;

use serde_json::Value;

use crate::embed::{have, output, remove, target};
use crate::everywhere::{MODEL, WASM, sources};
use crate::{Outcome, root, run_with};

/// What a page, or a program, takes of the directory.
const FILES: [&str; 4] = ["index.html", "page.js", "trion.js", "package.json"];

/// Builds the module, and tries it in Node and in a headless Chromium. The text must be the command's.
///
/// # Errors
///
/// Programs that fail; another text.
pub(crate) fn web() -> Outcome {
    if !have(&["node", "chromium"])? || !sources()? {
        return Ok(());
    }
    let objects = target().join("web-module");
    let environment = WASM.environment(&objects)?;
    // A library, which is called, and no program, which is run.
    let flags = WASM.flags.replace("crt1-command", "crt1-reactor");
    let variables: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let variables = [&variables[..], &[("RUSTFLAGS", &*flags)]].concat();
    let manifest = root().join("examples/web/Cargo.toml").to_string_lossy().into_owned();
    let build =
        ["build", "--release", "--locked", "--manifest-path", &manifest, "--target", WASM.triple, WASM.standard];
    run_with(&variables, "cargo", &build)?;

    let page = target().join("web");
    remove(&page)?;
    fs::create_dir_all(&page).map_err(|e| format!("{}: {e}", page.display()))?;
    let module = objects.join(WASM.triple).join("release/trion_web.wasm");
    let sources = FILES.map(|name| (root().join("examples/web").join(name), name));
    let others = [(module, "trion.wasm"), (root().join(MODEL), "model.safetensors")];
    for (from, name) in sources.into_iter().chain(others) {
        fs::copy(&from, page.join(name)).map_err(|e| format!("{}: {e}", from.display()))?;
    }

    let (directory, picture) = (page.to_string_lossy().into_owned(), page.join("screenshot.png"));
    let script = root().join("examples/web/test.mjs").to_string_lossy().into_owned();
    let said = output("node", &[&script, &directory, &picture.to_string_lossy()])?;
    println!("{said}");
    let how =
        ["run", "--quiet", "--release", "--locked", "--bin", "trion", "--", "generate", "--cache", "f16", "--json"];
    let options = ["-p", "Once upon a time", "-n", "128", "--temperature", "0.7", "--top-p", "0.95", "--seed", "1"];
    let command: Value = parse(&output("cargo", &[&how[..], &options].concat())?)?;
    for line in said.lines() {
        let place = parse(line)?;
        if place["text"] != command["text"] {
            return Err(format!("wrote {}, expected {}", place["text"], command["text"]));
        }
    }
    Ok(())
}

fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))
}
