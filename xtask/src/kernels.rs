//! The CUDA kernels: from CUDA C++ to the PTX that is checked in, and what they take of a GTX 1050.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::embed::target;
use crate::python::Packages;
use crate::{Outcome, root, run};

/// The last compiler and the last assembler that know Pascal.
const PACKAGES: [&str; 2] = ["nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia-cuda-nvcc-cu12==12.9.86"];

/// The compiler's library in its package.
const COMPILER: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";

/// The assembler in its.
const ASSEMBLER: &str = "nvidia/cuda_nvcc/bin/ptxas";

/// A set of PTX files: the directory below `trion-cuda/ptx`, the compiler's architecture, the assembler's, and the version
/// that the files state. The compiler states its own, but what it writes uses nothing newer than this one, besides hints; the
/// assembler would complain.
struct Set {
    name: &'static str,
    architecture: &'static str,
    machine: &'static str,
    version: &'static str,
    /// Files that are left out: what the older set has serves as well, or the card has no tensor cores.
    without: &'static [&'static str],
}

/// From the GTX 1050 up, for drivers since CUDA 9; and from compute capability 9.0 up, where a kernel can begin while the one
/// before it ends, for drivers since CUDA 12.
const SETS: [Set; 2] = [
    Set {
        name: "sm_61",
        architecture: "compute_61",
        machine: "sm_61",
        version: ".version 6.0",
        without: &["fives.ptx", "fives_gemm.ptx", "tokens.ptx"],
    },
    Set {
        name: "sm_90",
        architecture: "compute_90",
        machine: "sm_90",
        version: ".version 7.8",
        without: &["attention_prompt.ptx", "gemm.ptx", "rotate.ptx"],
    },
];

/// Begins a hint of a newer version.
const NEWER_HINT: &str = ".pragma \"used_bytes_mask";

/// Compiles `trion-cuda/kernels/*.cu` to `trion-cuda/ptx`, or with `--check` compares; prints what each kernel takes.
pub(crate) fn kernels(arguments: &[String]) -> Outcome {
    let check = match arguments {
        [] => false,
        [only] if only == "--check" => true,
        _ => return Err("cargo xtask kernels [--check]".to_owned()),
    };
    let Some(packages) = packages()? else { return Ok(()) };
    let (compiler, assembler) = (packages.join(COMPILER), packages.join(ASSEMBLER));
    let sources = root().join("trion-cuda/kernels");
    let script = root().join("xtask/src/kernels.py");
    let listing = fs::read_dir(&sources).map_err(|e| format!("{}: {e}", sources.display()))?;
    let mut files: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    let mut stale = Vec::new();
    println!(
        "{:6} {:24}  {:>9}  {:>8}  {:>7}  {:>7}  {:>7}  {:>10}",
        "for", "kernel", "registers", "shared B", "stack B", "spill B", "threads", "blocks fit"
    );
    for set in SETS {
        let ptx = root().join("trion-cuda/ptx").join(set.name);
        let fresh = target().join("kernels").join(set.name);
        for directory in [&ptx, &fresh] {
            fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        }
        for source in &files {
            let name = source.with_extension("ptx");
            let name = Path::new(name.file_name().ok_or("a file without a name")?);
            if set.without.iter().any(|left_out| name == Path::new(left_out)) {
                continue;
            }
            let made = fresh.join(name);
            said(Command::new("python3").args([&script, &compiler, source]).arg(set.architecture).arg(&made))?;
            let text = fs::read_to_string(&made).map_err(|e| format!("{}: {e}", made.display()))?;
            let text = with_version(&text, set.version)?;
            fs::write(&made, &text).map_err(|e| format!("{}: {e}", made.display()))?;
            let checked_in = ptx.join(name);
            if fs::read_to_string(&checked_in).unwrap_or_default() != text {
                stale.push(checked_in.display().to_string());
                if !check {
                    fs::write(&checked_in, &text).map_err(|e| format!("{}: {e}", checked_in.display()))?;
                }
            }
            let machine_code = made.with_extension("cubin");
            let machine = format!("--gpu-name={}", set.machine);
            let assemble = [machine.as_str(), "--verbose", "--output-file"];
            let log = said(Command::new(&assembler).args(assemble).arg(machine_code).arg(&made))?;
            for kernel in resources(&log) {
                let threads = most_threads(&text, &kernel.name);
                let Resources { name, registers, shared, stack, spilled } = kernel;
                let fit =
                    if set.machine == SETS[0].machine { threads.map(|t| fitting(registers, shared, t)) } else { None };
                let fit = fit.map_or(String::new(), |(blocks, part)| format!("{blocks} = {part:.0} %"));
                let threads = threads.map_or(String::new(), |threads| threads.to_string());
                println!(
                    "{:6} {name:24}  {registers:>9}  {shared:>8}  {stack:>7}  {spilled:>7}  {threads:>7}  {fit:>10}",
                    set.name
                );
                // Newer cards have more of everything.
                if spilled > 0 && set.machine == SETS[0].machine {
                    return Err(format!("{name} spills {spilled} bytes of registers on {}", set.name));
                }
            }
        }
    }
    if check && !stale.is_empty() {
        return Err(format!("not what the kernels compile to (cargo xtask kernels): {}", stale.join(", ")));
    }
    Ok(())
}

/// Compares a GPU with the CPU on every model at hand, also through the C library, and measures it. Both programs can be
/// copied to a machine without Rust.
pub(crate) fn gpu_test() -> Outcome {
    c_library()?;
    run("cargo", &["build", "--release", "--locked", "-p", "trion-cuda", "--example", "trion-gpu-test"])?;
    let mut models = vec![root().join("models/tales-14m.safetensors")];
    for directory in ["tests/golden", "../shared/cases"] {
        let entries = fs::read_dir(root().join(directory)).into_iter().flatten().filter_map(Result::ok);
        models.extend(entries.map(|entry| entry.path()).filter(|path| path.join("config.json").exists()));
    }
    models.sort();
    let program = target().join("release/examples/trion-gpu-test");
    let models: Vec<String> = models.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = ["--speed"].into_iter().chain(models.iter().map(String::as_str)).collect();
    run(&program.to_string_lossy(), &arguments)
}

/// Sessions on a GPU through the C library: `tests/c/devices.c`, with the static library in it.
fn c_library() -> Outcome {
    run("cargo", &["build", "--release", "--locked", "-p", "trion-ffi"])?;
    let [library, program] = ["libtrion.a", "trion-gpu-c-test"]
        .map(|name| target().join("release").join(name).to_string_lossy().into_owned());
    let flags =
        ["-std=c99", "-O2", "-s", "-D_POSIX_C_SOURCE=200809L", "-Iinclude", "tests/c/devices.c", "tests/c/support.c"];
    run("cc", &[&flags[..], &[&library, "-lpthread", "-ldl", "-lm", "-o", &program]].concat())?;
    run(&program, &["models/tales-14m.safetensors", "tests/golden"])
}

/// What a command says on both streams.
fn said(command: &mut Command) -> Result<String, String> {
    let what = format!("{command:?}");
    let outcome = command.output().map_err(|e| format!("{what}: {e}"))?;
    let [out, errors] = [outcome.stdout, outcome.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if outcome.status.success() { Ok(out + &errors) } else { Err(format!("{what}: {}\n{out}{errors}", outcome.status)) }
}

/// The directory of the compiler and the assembler; nothing where Python is missing.
fn packages() -> Result<Option<PathBuf>, String> {
    let what = PACKAGES.map(str::to_owned).to_vec();
    let wanted = PACKAGES.join("\n") + "\n";
    Packages { directory: "nvrtc", what, wanted, files: &[COMPILER, ASSEMBLER] }.install()
}

/// PTX that states a version, without hints that came later.
fn with_version(ptx: &str, stated: &str) -> Result<String, String> {
    let version = ptx.lines().find(|line| line.starts_with(".version ")).ok_or("PTX without a version")?;
    let lines = ptx.lines().filter(|line| !line.trim_start().starts_with(NEWER_HINT));
    let lines = lines.map(|line| if line == version { stated } else { line });
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// Threads of a block at most, where a kernel says so: `.maxntid` behind its `.entry`.
fn most_threads(ptx: &str, kernel: &str) -> Option<u32> {
    let (_, entry) = ptx.split_once(&format!(".entry {kernel}("))?;
    let (head, _) = entry.split_once('{')?;
    head.split_once(".maxntid ")?.1.split(',').next()?.trim().parse().ok()
}

/// How many blocks of threads of a kernel a multiprocessor of compute capability 6.1 runs at once, and what part of its
/// 64 warps that is, in per cent. Dynamic shared memory is not counted.
///
/// The rules are those of NVIDIA's `cuda_occupancy.h`: 32 blocks and 96 KiB of shared memory in pieces of 256 bytes;
/// four quarters with 16,384 registers each, which a warp takes in pieces of 256.
fn fitting(registers: u32, shared: u32, threads: u32) -> (u32, f64) {
    let warps = threads.div_ceil(32);
    let by_registers = 16_384 / (registers * 32).next_multiple_of(256).max(256) * 4 / warps;
    let by_shared = (96 << 10) / shared.next_multiple_of(256).max(256);
    let blocks = (64 / warps).min(32).min(by_registers).min(by_shared);
    (blocks, f64::from(blocks * warps) / 0.64)
}

/// What a kernel takes.
struct Resources {
    name: String,
    registers: u32,
    shared: u32,
    stack: u32,
    spilled: u32,
}

/// Reads what the assembler says of each kernel.
fn resources(log: &str) -> Vec<Resources> {
    // Lines: `Compiling entry function 'NAME' for ...`, then `0 bytes stack frame, 0 bytes spill stores, ...`, then
    // `Used 40 registers, used 1 barriers, 512 bytes smem, ...`; behind them the first kind again for each function it calls.
    let before = |line: &str, what: &str| {
        let word = line.split(what).next().filter(|front| front.len() < line.len());
        word.and_then(|front| front.split_whitespace().last()?.parse().ok()).unwrap_or(0)
    };
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            let name = line.split('\'').nth(1).unwrap_or_default().to_owned();
            kernels.push(Resources { name, registers: 0, shared: 0, stack: 0, spilled: 0 });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            kernel.stack += before(line, " bytes stack frame");
            kernel.spilled += before(line, " bytes spill stores") + before(line, " bytes spill loads");
        } else if line.contains("Used ") {
            (kernel.registers, kernel.shared) = (before(line, " registers"), before(line, " bytes smem"));
        }
    }
    kernels
}

#[cfg(test)]
mod tests {
    use super::{fitting, most_threads};

    #[test]
    fn blocks_fit_as_nvidia_says() {
        // What `cudaOccMaxActiveBlocksPerMultiprocessor` of cuda_occupancy.h gives for 6.1.
        let cases = [(17, 0, 160, 12), (48, 2000, 96, 13), (35, 18_000, 128, 5), (35, 0, 1024, 1), (48, 0, 512, 2)];
        for (registers, shared, threads, blocks) in cases {
            assert_eq!(fitting(registers, shared, threads).0, blocks, "{registers} {shared} {threads}");
        }
        assert_eq!(fitting(32, 0, 256), (8, 100.0));
    }

    #[test]
    fn threads_are_those_of_the_kernel() {
        let ptx = ".entry a(\n)\n{\n}\n.entry b(\n)\n.maxntid 640, 1, 1\n{\n}";
        assert_eq!([most_threads(ptx, "a"), most_threads(ptx, "b"), most_threads(ptx, "c")], [None, Some(640), None]);
    }
}
