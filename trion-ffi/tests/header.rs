//! `include/trion.h` is the one that the sources make: `cargo xtask header` writes it, and this test compares.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cbindgen::{Builder, Config};

/// Source files in the order of the header, with whether they need the text features.
const SECTIONS: [(&str, bool); 15] = [
    ("abi", false),
    ("status", false),
    ("runtime", false),
    ("model", false),
    ("session", false),
    ("sampler", false),
    ("advance", false),
    ("together", false),
    ("inspect", false),
    ("state", false),
    ("gpu", false),
    ("bare", false),
    ("tokenizer", true),
    ("text", true),
    ("constraint", true),
];

fn crate_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The comment at the head of a source file, without its marks.
fn head(source: &str) -> Vec<&str> {
    source
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect()
}

/// A block comment.
fn comment(lines: &[&str]) -> String {
    let mut text = String::from("/*\n");
    for line in lines {
        text.push_str(format!(" * {line}").trim_end());
        text.push('\n');
    }
    text + " */\n"
}

/// The declarations that one source file makes.
fn fragment(name: &str) -> String {
    let config = Config::from_file(crate_directory().join("cbindgen.toml")).expect("cbindgen.toml");
    let source = crate_directory().join("src").join(format!("{name}.rs"));
    let mut out = Vec::new();
    Builder::new().with_config(config).with_src(source).generate().expect("declarations").write(&mut out);
    tidy(&String::from_utf8(out).expect("UTF-8"))
}

/// Comments of one sentence on one line, the mark of functions on its own, and types by their short names.
fn tidy(fragment: &str) -> String {
    let lines: Vec<&str> = fragment.lines().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < lines.len() {
        let (line, text) = (lines[i], lines.get(i + 1).and_then(|line| line.trim_start().strip_prefix("* ")));
        match (line.trim_start(), text, lines.get(i + 2).map(|line| line.trim_start())) {
            ("/**", Some(text), Some("*/")) if line.len() + text.len() + 4 <= 120 => {
                writeln!(out, "{line} {text} */").expect("a string takes text");
                i += 3;
            }
            _ => {
                let typed = line.starts_with("typedef struct") || line.starts_with("typedef enum");
                let line = if typed { line.to_owned() } else { line.replace("struct ", "").replace("enum ", "") };
                out.push_str(&line.replace("TRION_API ", "TRION_API\n"));
                out.push('\n');
                i += 1;
            }
        }
    }
    out
}

fn header() -> String {
    let template = read(&crate_directory().join("trion.h.in"));
    let mut sections = String::new();
    for (name, text) in SECTIONS {
        let source = read(&crate_directory().join("src").join(format!("{name}.rs")));
        let head = head(&source);
        let (title, rest) = head.split_first().expect("a comment at the head of the file");
        let title = format!("{title} {}", "-".repeat(116 - title.len()));
        let lines = [&[title.as_str()], rest].concat();
        if text {
            sections.push_str("#ifndef TRION_NO_TEXT\n\n");
        }
        sections.push_str(&comment(&lines));
        sections.push('\n');
        sections.push_str(fragment(name).trim());
        sections.push_str("\n\n");
        if text {
            sections.push_str("#endif /* TRION_NO_TEXT */\n\n");
        }
    }
    template.replace("@SECTIONS@", sections.trim_end())
}

#[test]
fn the_header_is_current() {
    let path = crate_directory().join("../include/trion.h");
    let made = header();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).expect("include/trion.h");
    }
    assert!(read(&path) == made, "include/trion.h is out of date: run cargo xtask header");
}

#[test]
fn the_headers_compile_alone_as_c_and_as_cpp() {
    let include = crate_directory().join("../include");
    let c = ["-x", "c", "-std=c99"];
    let cpp = ["-x", "c++", "-std=c++17"];
    for (compiler, header, language) in [
        ("gcc", "trion.h", c),
        ("clang", "trion.h", c),
        ("gcc", "trion.h", cpp),
        ("clang", "trion.h", cpp),
        ("gcc", "trion.hpp", cpp),
        ("clang", "trion.hpp", cpp),
    ] {
        let flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"];
        let command = Command::new(compiler)
            .args(language)
            .args(flags)
            .args(["-include", header, "/dev/null", "-I"])
            .arg(&include)
            .output();
        match command {
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{compiler} {language:?} {header}: {words}");
            }
            // Where changes are decided on, both compilers are there.
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{compiler}: {error}");
                println!("skipped: {compiler} not found");
            }
        }
    }
}
