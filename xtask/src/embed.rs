//! Chores of the C library: its header, its packages, and the programs that use it.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sanitizers;
use crate::tools::tool;
use crate::{Outcome, root, run, run_with};

/// For which the compiler comes with the runtimes of sanitizers, and the linker with the compiler.
pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Pinned, since the layout of an installation is its doing.
const CARGO_C: &str = "0.10.24+cargo-0.98.0";

/// What the shared library may need, by the beginnings of names: the C library, mathematics, the unwinder, the loader.
const NEEDED: [&str; 4] = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];

/// A build of the library.
pub(crate) struct Build {
    name: &'static str,
    /// Where it is installed, in the target directory.
    directory: &'static str,
    pub(crate) options: &'static [&'static str],
    /// Bytes that the shared library may have.
    limit: u64,
}

pub(crate) const FULL: Build = Build { name: "full", directory: "package", options: &[], limit: 9_000_000 };
pub(crate) const SMALL: Build = Build {
    name: "small",
    directory: "package-small",
    options: &["--no-default-features", "--features", "std"],
    limit: 2_000_000,
};

/// How `tests/c` is built and run: a name, options, and the programs that it takes beside `CMake`.
const VARIANTS: [(&str, &[&str], &[&str]); 7] = [
    ("cmake-shared", &["-DTRION_FIND=cmake", "-DTRION_LINK=shared"], &[]),
    ("cmake-static", &["-DTRION_FIND=cmake", "-DTRION_LINK=static"], &[]),
    ("pkgconfig-shared", &["-DTRION_FIND=pkgconfig", "-DTRION_LINK=shared"], &["pkg-config"]),
    ("pkgconfig-static", &["-DTRION_FIND=pkgconfig", "-DTRION_LINK=static"], &["pkg-config"]),
    ("clang", &["-DTRION_FIND=cmake", "-DTRION_LINK=static", "-DCMAKE_C_COMPILER=clang"], &["clang"]),
    ("sanitizers", &["-DTRION_FIND=cmake", "-DTRION_LINK=static", "-DTRION_SANITIZE=ON"], &[]),
    ("valgrind", &["-DTRION_FIND=cmake", "-DTRION_LINK=shared", "-DTRION_VALGRIND=ON"], &["valgrind"]),
];

pub(crate) fn header() -> Outcome {
    let test = |name, variable| {
        run_with(&[(variable, "1")], "cargo", &["test", "--locked", "--package", "trion-ffi", "--test", name])
    };
    test("header", "UPDATE_HEADER")?;
    test("abi", "UPDATE_ABI")
}

pub(crate) fn package_command(arguments: &[String]) -> Outcome {
    let (mut build, mut prefix) = (&FULL, None);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--small" => build = &SMALL,
            "--prefix" => prefix = Some(arguments.next().ok_or("--prefix needs a directory")?),
            other => return Err(format!("{other}: expected --prefix DIR or --small")),
        }
    }
    match prefix {
        // From where the command was called, since cargo-c is not called there.
        Some(prefix) => package(build, &std::path::absolute(prefix).map_err(|e| format!("{prefix}: {e}"))?),
        None => package_fresh(build).map(drop),
    }
}

/// Both builds, and every program of the repository that uses them.
pub(crate) fn embed() -> Outcome {
    let prefix = package_fresh(&FULL)?;
    package_fresh(&SMALL)?;
    let command = command()?;
    for (variant, ..) in VARIANTS {
        c_tests(variant, &prefix, &command)?;
    }
    // The tests in C++ read the documents with Python.
    for (source, tools) in [("tests/cpp", &["python3"][..]), ("examples/c", &[]), ("examples/cpp", &[])] {
        project(source, "shared", &prefix, &["-DTRION_LINK=shared"], tools)?;
        project(source, "static", &prefix, &["-DTRION_LINK=static"], tools)?;
    }
    project("tests/cpp", "sanitizers", &prefix, &["-DTRION_LINK=static", "-DTRION_SANITIZE=ON"], &["python3"])?;
    if have(&["love", "xvfb-run"])? {
        run("sh", &["examples/game/test.sh", &prefix.to_string_lossy()])?;
    }
    sanitizers::thread()
}

/// Measures units of work with the installed library: `benches/units.c`.
pub(crate) fn units() -> Outcome {
    let prefix = package_fresh(&FULL)?;
    let (include, library) = (prefix.join("include"), prefix.join("lib/libtrion.a"));
    let program = target().join("units").to_string_lossy().into_owned();
    let (include, library) = (include.to_string_lossy(), library.to_string_lossy());
    let flags = ["-std=c99", "-O2", "-I", &include, "benches/units.c", &library, "-lpthread", "-ldl", "-lm"];
    run("cc", &[&flags[..], &["-o", &program]].concat())?;
    run(&program, &["models/tales-14m.safetensors"])
}

/// The tests in C in one of [`VARIANTS`], with an installed library and the option that names the command.
pub(crate) fn c_tests(variant: &str, prefix: &Path, command: &str) -> Outcome {
    let found = VARIANTS.iter().find(|(name, ..)| *name == variant);
    let (_, options, tools) = found.ok_or_else(|| format!("{variant}: no variant of the tests in C"))?;
    project("tests/c", variant, prefix, &[options, &[command][..]].concat(), tools)
}

/// Builds the command, which writes the models of the tests for bare metal, and gives the option that names it.
pub(crate) fn command() -> Result<String, String> {
    run("cargo", &["build", "--release", "--locked", "--bin", "trion"])?;
    Ok(format!("-DTRION_COMMAND={}", target().join("release/trion").display()))
}

/// Installs a build into its place in the target directory, without what an earlier one left there.
pub(crate) fn package_fresh(build: &Build) -> Result<PathBuf, String> {
    let prefix = target().join(build.directory);
    remove(&prefix)?;
    package(build, &prefix)?;
    Ok(prefix)
}

fn package(build: &Build, prefix: &Path) -> Outcome {
    let place = prefix.to_string_lossy();
    let mut arguments = vec!["cinstall", "--locked", "--package", "trion-ffi", "--profile", "dist"];
    // Not the directory that Debian would have, so that an installation is laid out alike everywhere.
    arguments.extend(["--prefix", &place, "--libdir", "lib"]);
    // Each build in a directory of its own, since cargo-c links anew what another build has overwritten.
    let objects = target().join("capi").join(build.name);
    let objects = objects.to_string_lossy();
    arguments.extend(["--target-dir", &objects]);
    arguments.extend(build.options);
    run(&tool("cargo-c", "cargo-cinstall", CARGO_C)?.to_string_lossy(), &arguments)?;
    if cfg!(target_os = "linux") {
        seal(&prefix.join("lib"))?;
        check(build, prefix)?;
    }
    Ok(())
}

/// Makes both libraries anew from one object, in which only the functions of trion.h can be seen.
///
/// Functions that other crates have for C would be seen in the shared library too. And every static library that a Rust
/// compiler makes has the standard library in it, so that a program with two of them would not link. What goes besides
/// is copies of the code in forms that only compilers and debuggers read.
fn seal(libraries: &Path) -> Outcome {
    let (archive, object) = (libraries.join("libtrion.a"), libraries.join("trion.o"));
    let (archive, object) = (archive.to_string_lossy(), object.to_string_lossy());
    run("ld", &["--relocatable", "--force-group-allocation", "--whole-archive", &archive, "-o", &object])?;
    let without = ["--strip-debug", "--remove-section=.llvmbc", "--remove-section=.llvmcmd"];
    run("objcopy", &[&without[..], &["--wildcard", "--keep-global-symbol=trion_*", &object]].concat())?;
    fs::remove_file(&*archive).map_err(|e| format!("{archive}: {e}"))?;
    run("ar", &["rcs", &archive, &object])?;

    // The link points to the file with the full version.
    let shared = libraries.join("libtrion.so");
    let shared = fs::canonicalize(&shared).map_err(|e| format!("{}: {e}", shared.display()))?;
    let shared = shared.to_string_lossy();
    let soname = format!("-Wl,-soname,{}", dynamic_entries(&shared, "SONAME")?.join(" "));
    let flags = "-Wl,--gc-sections,--strip-all,--as-needed,-z,defs,-z,relro,-z,now";
    let pc = libraries.join("pkgconfig/trion.pc");
    let pc = fs::read_to_string(&pc).map_err(|e| format!("{}: {e}", pc.display()))?;
    let system = pc.lines().find_map(|line| line.strip_prefix("Libs.private:")).unwrap_or_default();
    let system: Vec<&str> = system.split_whitespace().collect();
    run("cc", &[&["-shared", "-o", &shared, &object, &soname, flags], &system[..]].concat())?;
    fs::remove_file(&*object).map_err(|e| format!("{object}: {e}"))
}

/// Size, symbols and dependencies of an installed shared library.
fn check(build: &Build, prefix: &Path) -> Outcome {
    let (shared, archive) = (prefix.join("lib/libtrion.so"), prefix.join("lib/libtrion.a"));
    let size = |path: &Path| fs::metadata(path).map(|it| it.len()).map_err(|e| format!("{}: {e}", path.display()));
    let (shared_size, archive_size) = (size(&shared)?, size(&archive)?);

    let library = shared.to_string_lossy();
    let shared_symbols = symbols(&["--dynamic", &library])?;
    let archive_symbols = symbols(&["--extern-only", &archive.to_string_lossy()])?;
    let soname = dynamic_entries(&library, "SONAME")?;
    let needed = dynamic_entries(&library, "NEEDED")?;

    println!("{:6}  {:11}  {:>10}  {:>10}", "build", "file", "bytes", "at most");
    println!("{:6}  {:11}  {shared_size:>10}  {:>10}", build.name, "libtrion.so", build.limit);
    println!("{:6}  {:11}  {archive_size:>10}", build.name, "libtrion.a");
    println!("{} symbols; soname {}; needs {}", shared_symbols.len(), soname.join(" "), needed.join(" "));

    if shared_size > build.limit {
        return Err(format!("libtrion.so has {shared_size} bytes, expected at most {}", build.limit));
    }
    if let Some(symbol) = shared_symbols.iter().find(|symbol| !symbol.starts_with("trion_")) {
        return Err(format!("libtrion.so defines {symbol}, expected only trion_*"));
    }
    if archive_symbols != shared_symbols {
        return Err("libtrion.a defines other symbols than libtrion.so".to_owned());
    }
    if let Some(name) = needed.iter().find(|name| !NEEDED.iter().any(|known| name.starts_with(known))) {
        return Err(format!("libtrion.so needs {name}, expected only {}", NEEDED.join(", ")));
    }
    let expected = format!("libtrion.so.{}", abi_major(&prefix.join("include/trion.h"))?);
    if soname != [expected.as_str()] {
        return Err(format!("the soname is {}, expected {expected}", soname.join(" ")));
    }
    Ok(())
}

/// What a shared library says of itself under a tag.
fn dynamic_entries(library: &str, tag: &str) -> Result<Vec<String>, String> {
    // The lines have the form `0x1 (NEEDED)  Shared library: [libc.so.6]`.
    let (dynamic, tag) = (output("readelf", &["--dynamic", "--wide", library])?, format!("({tag})"));
    let lines = dynamic.lines().filter(|line| line.contains(&tag));
    Ok(lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect())
}

/// The names that a library defines for others, in order.
fn symbols(which: &[&str]) -> Result<Vec<String>, String> {
    let listing = output("nm", &[&["--defined-only", "--format=posix"], which].concat())?;
    // The lines have the form `trion_version T 1c8a0 2f`; one that names the member of an archive has a single word.
    let mut names: Vec<String> = listing.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// The first number in the header's line `#define TRION_ABI_VERSION (1 << 16)`.
fn abi_major(header: &Path) -> Result<String, String> {
    let text = fs::read_to_string(header).map_err(|e| format!("{}: {e}", header.display()))?;
    let value = text.lines().find_map(|line| line.strip_prefix("#define TRION_ABI_VERSION "));
    let value = value.ok_or_else(|| format!("{}: no TRION_ABI_VERSION", header.display()))?;
    Ok(value.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect())
}

/// Builds a project for `CMake` with an installation of the library, and runs its tests.
pub(crate) fn project(source: &str, variant: &str, prefix: &Path, options: &[&str], tools: &[&str]) -> Outcome {
    println!("{source}, {variant}");
    if !have(&[&["cmake"], tools].concat())? {
        return Ok(());
    }
    let build = target().join("c-tests").join(format!("{}-{variant}", source.replace('/', "-")));
    // CMake remembers what it found, and would not see that the installation is another one.
    remove(&build)?;
    let build = build.to_string_lossy();
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
    run("cmake", &[&["-S", source, "-B", &build, &prefix], options].concat())?;
    run("cmake", &["--build", &build, "--parallel"])?;
    let model = root().join("models/tales-14m.safetensors");
    let model = [("TRION_MODEL", &*model.to_string_lossy())];
    let test = ["--test-dir", &build, "--output-on-failure", "--no-tests=error", "--parallel", "2"];
    run_with(&model, "ctest", &test)
}

/// Whether these programs are on the path. Where one is not, a step is left out, but not where changes are decided on.
pub(crate) fn have(programs: &[&str]) -> Result<bool, String> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = |program: &&&str| {
        let name = format!("{program}{}", env::consts::EXE_SUFFIX);
        env::split_paths(&paths).any(|directory| directory.join(&name).is_file())
    };
    let Some(program) = programs.iter().find(|program| !found(program)) else { return Ok(true) };
    skip(&format!("{program} not found"))?;
    Ok(false)
}

/// Says why a step is left out. Where changes are decided on, none may be.
pub(crate) fn skip(why: &str) -> Outcome {
    let message = format!("skipped: {why}");
    if env::var_os("CI").is_some() {
        return Err(message);
    }
    println!("{message}");
    Ok(())
}

/// What a command writes.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    // Without a language, since it is read by a program.
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program} {}: {}", arguments.join(" "), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes a directory, if it is there.
pub(crate) fn remove(directory: &Path) -> Outcome {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", directory.display())),
        _ => Ok(()),
    }
}

pub(crate) fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
