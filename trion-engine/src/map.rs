//! Memory for weights and sessions: files mapped for reading, and large anonymous blocks. Where a system maps no memory,
//! as in WebAssembly, files are read and blocks come from the heap.

use std::fs::File;
use std::path::Path;

#[cfg(any(unix, windows))]
pub(crate) use memmap2::{Mmap, MmapMut};

use crate::error::{Error, Result};
#[cfg(not(any(unix, windows)))]
pub(crate) use crate::heap::{Mmap, MmapMut};

/// Blocks from this size on ask for huge pages: a decode step reads every weight once, and with small pages the page
/// tables limit it.
#[cfg(target_os = "linux")]
const HUGE_PAGES_FROM: usize = 4 << 20;

/// Maps a file for reading.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened or mapped, [`Error::Malformed`] if it is empty.
#[allow(unsafe_code)]
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if length == 0 {
        return Err(Error::malformed(path, "file", "is empty"));
    }
    #[cfg(not(any(unix, windows)))]
    let map = Mmap::read(&file, usize::try_from(length).unwrap_or(usize::MAX)).map_err(|e| Error::io(path, e))?;
    #[cfg(any(unix, windows))]
    // SAFETY: the mapping is private and read-only, and everything read from it is plain numbers and text that is
    // checked before use, so other contents than expected are an error and not undefined behaviour. That another
    // process changes or truncates the file meanwhile is ruled out by the contract that docs/security.md states.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    #[cfg(target_os = "linux")]
    if map.len() >= HUGE_PAGES_FROM {
        // Helps where the file system supports it; elsewhere it is refused, and nothing is lost.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// A block of zeros, aligned to a page.
///
/// # Errors
/// [`Error::Memory`] if there is not enough.
pub(crate) fn zeros(bytes: usize) -> Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1)).map_err(|source| Error::Memory { bytes, source })?;
    #[cfg(target_os = "linux")]
    if bytes >= HUGE_PAGES_FROM {
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}
