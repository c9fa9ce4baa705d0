//! Chores of the exports to ONNX: ONNX Runtime, and the Python packages that their tests take.

use std::fs;
use std::path::PathBuf;

use crate::Outcome;
use crate::python::Packages;

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
    let requirements = crate::root().join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements).map_err(|e| format!("{}: {e}", requirements.display()))?;
    let what = vec!["--requirement".to_owned(), REQUIREMENTS.to_owned()];
    Packages { directory: "onnxruntime", what, wanted, files: &[LIBRARY] }.install()
}
