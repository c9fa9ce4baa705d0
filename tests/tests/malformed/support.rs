//! Checkpoints to be spoiled, and what every refusal must hold to.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trion_engine::{Model, PackOptions, quantize};
use trion_tests::{copy_golden, golden, scratch};

/// What a malformed file may cost beyond its own size, in bytes.
pub(crate) const ALLOWANCE: usize = 64 << 20;

/// The system's allocator, with a count of what each thread holds.
struct Counting;

thread_local! {
    /// Bytes that this thread allocated, less those that it freed.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that `HELD` has been since it was last set.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may free when its counters are gone.
    let held = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        held.get()
    });
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.unwrap_or(0))));
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most memory that this thread held on the heap while `f` ran, beyond what it held before.
pub(crate) fn heap_peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// The most memory that the process has ever had in use, mapped files and anonymous maps included.
#[cfg(target_os = "linux")]
fn resident_peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

#[cfg(not(target_os = "linux"))]
fn resident_peak() -> usize {
    0
}

/// Bytes of a file, or of all files of a directory.
fn size(path: &Path) -> usize {
    let files = fs::read_dir(path).into_iter().flatten().map(|file| size(&file.unwrap().path())).sum::<usize>();
    files + fs::metadata(path).map_or(0, |metadata| metadata.len() as usize)
}

/// Demands that `path`, or its tokenizer, is refused with an error that has all of `expected` in its text, the file's name among them, and
/// that finding out takes no more memory than the file and [`ALLOWANCE`].
pub(crate) fn refused(what: &str, path: &Path, expected: &[&str]) {
    let limit = size(path) + ALLOWANCE;
    let resident = resident_peak();
    let (error, heap) = heap_peak(|| error_of(what, Model::open(path).and_then(|model| model.tokenizer().map(|_| ()))));
    assert!(heap <= limit, "{what}: {heap} bytes on the heap, expected at most {limit}");
    let grown = resident_peak().saturating_sub(resident);
    assert!(grown <= limit, "{what}: {grown} bytes in use, expected at most {limit}");
    says(what, &error, expected);
    // The directory where a checkpoint's files lie, or the file in it.
    let name = path.file_name().unwrap().to_str().unwrap();
    says(what, &error, &[name]);
}

/// Demands a text with all of `expected` in it.
pub(crate) fn says(what: &str, text: &str, expected: &[&str]) {
    assert!(!expected.is_empty(), "{what}: expects nothing");
    for part in expected {
        assert!(text.contains(part), "{what}: {text:?} does not say {part:?}");
    }
}

/// The text of the error.
pub(crate) fn error_of<T, E: std::error::Error>(what: &str, result: Result<T, E>) -> String {
    match result {
        Ok(_) => panic!("{what}: was accepted"),
        Err(error) => error.to_string(),
    }
}

/// A copy of a golden checkpoint.
pub(crate) fn copy(test: &str, name: &str) -> PathBuf {
    copy_golden(&format!("malformed-{test}"), name)
}

/// A golden checkpoint as a packed file.
pub(crate) fn packed(test: &str, name: &str, options: PackOptions) -> PathBuf {
    let file = scratch(&format!("malformed-{test}")).join("packed.safetensors");
    quantize(&golden(name), &file, &options, &mut |_, _| {}).unwrap();
    file
}

/// Changes a JSON file.
pub(crate) fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// A change to the header and the data of a safetensors file.
pub(crate) type Edit = fn(&mut Value, &mut Vec<u8>);

/// Header and data of a safetensors file.
pub(crate) fn tensors(file: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

/// A safetensors file, its data `beyond` bytes after a multiple of 64.
pub(crate) fn write_tensors(file: &Path, header: &str, data: &[u8], beyond: usize) {
    let mut header = header.to_owned();
    while (header.len() + 8) % 64 != beyond {
        header.push(' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    fs::write(file, [&length[..], header.as_bytes(), data].concat()).unwrap();
}

/// Changes a safetensors file.
pub(crate) fn edit_tensors(file: &Path, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let (mut header, mut data) = tensors(file);
    edit(&mut header, &mut data);
    write_tensors(file, &header.to_string(), &data, 0);
}

/// The bytes of a tensor within the data.
pub(crate) fn place(header: &Value, tensor: &str) -> Range<usize> {
    let offsets = &header[tensor]["data_offsets"];
    offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize
}

/// Gives a tensor another name.
pub(crate) fn rename(header: &mut Value, from: &str, to: &str) {
    let entry = header.as_object_mut().unwrap().remove(from).unwrap();
    header[to] = entry;
}

/// The counters count: without this, the limits of [`refused`] would hold for nothing.
#[test]
fn memory_is_counted() {
    // Less than the allowance: the rows that run meanwhile see it in what the process uses.
    let (block, heap) = heap_peak(|| vec![1_u8; ALLOWANCE / 4]);
    assert!(heap >= block.len());
    if cfg!(target_os = "linux") {
        assert!(resident_peak() >= block.len());
    }
}
