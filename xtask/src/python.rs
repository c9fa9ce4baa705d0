//! Packages of Python in directories below `target`, installed once.

use std::fs;
use std::path::PathBuf;

use crate::embed::{have, output, remove, skip, target};
use crate::{Outcome, run};

/// A directory of packages.
pub(crate) struct Packages {
    /// Its name below `target`.
    pub(crate) directory: &'static str,
    /// What pip is told to install, and nothing else: no dependencies, nothing that has to be built.
    pub(crate) what: Vec<String>,
    /// What is installed, in words: another text means that the directory is made anew.
    pub(crate) wanted: String,
    /// Files that have to be there.
    pub(crate) files: &'static [&'static str],
}

impl Packages {
    /// The directory; nothing where Python or pip is missing, and the step is left out.
    pub(crate) fn install(&self) -> Result<Option<PathBuf>, String> {
        if !have(&["python3"])? {
            return Ok(None);
        }
        let packages = target().join(self.directory);
        // Packages with machine code are for one version of Python.
        let version = output("python3", &["-c", "import sys; print(sys.implementation.cache_tag)"])?;
        let wanted = format!("{}# {version}", self.wanted);
        if fs::read_to_string(packages.join("installed.txt")).is_ok_and(|installed| installed == wanted) {
            return Ok(Some(packages));
        }
        if output("python3", &["-m", "pip", "--version"]).is_err() {
            skip("python3 has no pip (on Debian: apt-get install python3-pip)")?;
            return Ok(None);
        }
        self.fetch(&packages, &wanted)?;
        Ok(Some(packages))
    }

    /// Renamed at the end, so that an interrupted installation is never taken for a whole one.
    fn fetch(&self, packages: &PathBuf, wanted: &str) -> Outcome {
        let fresh = packages.with_extension("part");
        remove(&fresh)?;
        let how = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
        let to = ["--target", &fresh.to_string_lossy()];
        let what: Vec<&str> = self.what.iter().map(String::as_str).collect();
        run("python3", &[&["-m", "pip", "install"], &how[..], &to, &what].concat())?;
        if let Some(missing) = self.files.iter().find(|file| !fresh.join(file).exists()) {
            return Err(format!("{} is not there; only Linux's is looked for", fresh.join(missing).display()));
        }
        let installed = fresh.join("installed.txt");
        fs::write(&installed, wanted).map_err(|e| format!("{}: {e}", installed.display()))?;
        remove(packages)?;
        fs::rename(&fresh, packages).map_err(|e| format!("{}: {e}", packages.display()))
    }
}
