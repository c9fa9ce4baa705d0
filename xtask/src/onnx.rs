//! Chores of the exports to ONNX: ONNX Runtime, and the Python packages that their tests take.

use std::fs;
use std::path::PathBuf;

use crate::embed::{have, output, remove, skip, target};
use crate::{Outcome, run};

/// Everything that is installed, with versions.
const REQUIREMENTS: &str = "onnx-export/tests/python/requirements.txt";

/// ONNX Runtime, in the directory of packages. Rust tests look for it there, and so do exports that are checked.
const LIBRARY: &str = "onnxruntime/capi/libonnxruntime.so.1.31.1";

/// Installs the packages once, and says where the library is.
pub(crate) fn onnxruntime() -> Outcome {
    if let Some(packages) = packages()? {
        println!("{}", packages.join(LIBRARY).display());
    }
    Ok(())
}

/// The directory that `PYTHONPATH` has to name for the tests in Python, or nothing where they are left out.
///
/// Not a virtual environment, since the place of the library in one depends on the version of Python.
pub(crate) fn packages() -> Result<Option<PathBuf>, String> {
    if !have(&["python3"])? {
        return Ok(None);
    }
    let packages = target().join("onnxruntime");
    let requirements = crate::root().join(REQUIREMENTS);
    let requirements = fs::read_to_string(&requirements).map_err(|e| format!("{}: {e}", requirements.display()))?;
    // Packages with machine code are for one version of Python.
    let version = output("python3", &["-c", "import sys; print(sys.implementation.cache_tag)"])?;
    let wanted = format!("{requirements}# {version}");
    if fs::read_to_string(packages.join("installed.txt")).is_ok_and(|installed| installed == wanted) {
        return Ok(Some(packages));
    }
    if output("python3", &["-m", "pip", "--version"]).is_err() {
        skip("python3 has no pip (on Debian: apt-get install python3-pip)")?;
        return Ok(None);
    }
    // Renamed at the end, so that an interrupted installation is never taken for a whole one.
    let fresh = target().join("onnxruntime.part");
    remove(&fresh)?;
    let how = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
    let what = ["--requirement", REQUIREMENTS, "--target", &fresh.to_string_lossy()];
    run("python3", &[&["-m", "pip", "install"], &how[..], &what].concat())?;
    if !fresh.join(LIBRARY).exists() {
        return Err(format!("{} is not there; only Linux's is looked for", fresh.join(LIBRARY).display()));
    }
    let installed = fresh.join("installed.txt");
    fs::write(&installed, wanted).map_err(|e| format!("{}: {e}", installed.display()))?;
    remove(&packages)?;
    fs::rename(&fresh, &packages).map_err(|e| format!("{}: {e}", packages.display()))?;
    Ok(Some(packages))
}
