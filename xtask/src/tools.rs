//! Programs of Cargo's that chores take, installed in the target directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::embed::target;
use crate::run_with;

/// The program of this package in this very version: the one that is on the path, or one of our own.
pub(crate) fn tool(package: &str, program: &str, version: &str) -> Result<PathBuf, String> {
    let tools = target().join("tools");
    let own = tools.join("bin").join(format!("{program}{}", env::consts::EXE_SUFFIX));
    let pinned = |program: &Path| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(version))
    };
    let on_path = PathBuf::from(program);
    if pinned(&on_path) {
        return Ok(on_path);
    }
    if !pinned(&own) {
        let version = [package, "--version", version, "--locked"];
        // It is run a few times, so compiling it well would cost more than it saves.
        let how = ["--debug", "--root", &tools.to_string_lossy()];
        run_with(&[("CARGO_PROFILE_DEV_DEBUG", "0")], "cargo", &[&["install"], &version[..], &how[..]].concat())?;
    }
    Ok(own)
}
