//! The tests in C with a library of which every access is watched: compiled for a sanitizer, or under valgrind.

use std::fs;
use std::path::PathBuf;

use crate::embed::{FULL, SMALL, TRIPLE, c_tests, command, have, output, package_fresh, project, remove, target};
use crate::{Outcome, run, run_with};

/// `cargo xtask sanitize [address|thread|valgrind]`: one of them, or all.
pub(crate) fn sanitize(arguments: &[String]) -> Outcome {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            address()?;
            thread()?;
            valgrind()
        }
        ["address"] => address(),
        ["thread"] => thread(),
        ["valgrind"] => valgrind(),
        _ => Err(format!("{}: expected address, thread or valgrind", arguments.join(" "))),
    }
}

/// Every test in C under valgrind, with the library as it is installed.
fn valgrind() -> Outcome {
    c_tests("valgrind", &package_fresh(&FULL)?, &command()?)
}

/// Every test in C, with the library and the test watched by `AddressSanitizer`.
fn address() -> Outcome {
    let installed = package_fresh(&FULL)?;
    let library = build("address", FULL.options)?;
    let prefix = objects("address").join("package");
    remove(&prefix)?;
    run("cp", &["-r", &installed.to_string_lossy(), &prefix.to_string_lossy()])?;
    fs::copy(&library, prefix.join("lib/libtrion.a")).map_err(|e| format!("{}: {e}", library.display()))?;
    let options = ["-DTRION_LINK=static", "-DTRION_SANITIZE=ON", &command()?];
    project("tests/c", "address", &prefix, &options, &[])
}

/// The C test of threads, with the library and the test watched by `ThreadSanitizer`. The standard library is not compiled
/// anew for it, so races in there would not be seen.
pub(crate) fn thread() -> Outcome {
    if !have(&["clang"])? {
        return Ok(());
    }
    let library = build("thread", SMALL.options)?;
    let objects = objects("thread");
    let place = |name: &str| objects.join(name).to_string_lossy().into_owned();
    let sources = ["threads", "support"].map(|name| (format!("tests/c/{name}.c"), place(&format!("{name}.o"))));
    for (source, object) in &sources {
        let flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-DTRION_NO_TEXT", "-g", "-O1", "-fsanitize=thread"];
        run("clang", &[&flags[..], &["-Iinclude", "-c", source, "-o", object]].concat())?;
    }
    // The compiler's own runtime, since clang's may be older than the code that rustc makes.
    let sysroot = output("rustc", &["--print", "sysroot"])?;
    let runtime = format!("{}/lib/rustlib/{TRIPLE}/lib/librustc-stable_rt.tsan.a", sysroot.trim());
    let (program, [(_, threads), (_, support)]) = (place("threads"), &sources);
    let runtime = ["-Wl,--whole-archive", &runtime, "-Wl,--no-whole-archive"];
    let system = ["-no-pie", "-lpthread", "-ldl", "-lm", "-lrt"];
    let objects = ["-o", &program, threads, support, &library.to_string_lossy()];
    run("clang", &[&objects[..], &runtime, &system].concat())?;
    run(&program, &["models/tales-14m.safetensors", "tests/golden"])
}

/// Where what is made for a sanitizer lies.
fn objects(sanitizer: &str) -> PathBuf {
    target().join("sanitizers").join(sanitizer)
}

/// Builds the static library for a sanitizer.
fn build(sanitizer: &str, options: &[&str]) -> Result<PathBuf, String> {
    let objects = objects(sanitizer);
    // The flags are not stable ones.
    let flags = format!("-Zsanitizer={sanitizer} -Cunsafe-allow-abi-mismatch=sanitizer");
    let directory = objects.to_string_lossy();
    let environment = [("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", &*flags), ("CARGO_TARGET_DIR", &*directory)];
    let build = ["build", "--locked", "--package", "trion-ffi", "--target", TRIPLE];
    run_with(&environment, "cargo", &[&build[..], options].concat())?;
    Ok(objects.join(TRIPLE).join("debug/libtrion.a"))
}
