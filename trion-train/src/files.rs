//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file under another name, and renames it when all of it has reached the disk: whoever stops in between, by a
/// signal or a full disk, leaves what was there before.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // Whatever was written is of no use; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(&temporary);
        return Err(Error::Io { path: path.to_owned(), source });
    }
    Ok(())
}

/// Writes a value as indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::malformed(path, e.to_string()))?;
    text.push(b'\n');
    write_whole(path, |file| file.write_all(&text))
}

/// Reads a value from JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(path, e.to_string()))
}

/// Makes a directory, and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path))
}
