//! Blocks of memory by the names and manners of mapped ones, for systems that map none.

use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, DerefMut};

/// What a block is made of, so that it begins at a multiple of 64.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// A block that can be written.
pub(crate) struct MmapMut {
    lines: Vec<Line>,
    bytes: usize,
}

impl MmapMut {
    /// A block of zeros.
    pub(crate) fn map_anon(bytes: usize) -> io::Result<Self> {
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        lines.resize(count, Line([0; 64]));
        Ok(MmapMut { lines, bytes })
    }

    /// The block, which stays as it is from now on.
    #[allow(clippy::unnecessary_wraps)] // where memory is mapped, this can fail
    pub(crate) fn make_read_only(self) -> io::Result<Mmap> {
        Ok(Mmap(self))
    }
}

impl Deref for MmapMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.bytes]
    }
}

impl DerefMut for MmapMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.bytes]
    }
}

/// A block that is only read.
pub(crate) struct Mmap(MmapMut);

impl Mmap {
    /// The bytes of a file.
    pub(crate) fn read(mut file: &File, bytes: usize) -> io::Result<Self> {
        let mut block = MmapMut::map_anon(bytes)?;
        file.read_exact(&mut block)?;
        block.make_read_only()
    }
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
