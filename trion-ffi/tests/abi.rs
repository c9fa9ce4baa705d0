//! The interface as compiled programs see it, recorded in `trion-ffi/abi.txt`: every declaration of the header, and the sizes and
//! offsets of its structs by the C compiler. A change of what is recorded needs another `TRION_ABI_VERSION`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn crate_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The header without comments and preprocessor lines.
fn bare(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").expect("a comment has an end").1;
    }
    text.push_str(rest);
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// The declarations of a header, each on one line, without the language's brackets.
fn declarations(header: &str) -> Vec<String> {
    let text = bare(header).replace("extern \"C\" {", "").replace("TRION_API", "");
    let mut declarations = Vec::new();
    let (mut depth, mut one) = (0, String::new());
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        // What closes `extern "C"` is no declaration.
        if depth < 0 {
            depth = 0;
            continue;
        }
        one.push(character);
        if character == ';' && depth == 0 {
            declarations.push(one.split_whitespace().collect::<Vec<_>>().join(" "));
            one.clear();
        }
    }
    declarations
}

/// `#define NAME VALUE` lines with a value.
fn constants(header: &str) -> Vec<&str> {
    let defines = header.lines().filter_map(|line| line.strip_prefix("#define TRION_"));
    defines.filter(|define| define.split_once(' ').is_some_and(|(name, _)| !matches!(name, "API" | "H"))).collect()
}

/// The structs with fields, and the names of these.
fn structs(declarations: &[String]) -> Vec<(String, Vec<String>)> {
    let mut structs = Vec::new();
    for declaration in declarations {
        let Some(rest) = declaration.strip_prefix("typedef struct ") else { continue };
        let Some((name, rest)) = rest.split_once(" { ") else { continue };
        let fields = rest.rsplit_once('}').expect("a struct has an end").0;
        // The last word of a field is its name, but for functions, whose types have parameters.
        let fields = fields.split("; ").filter(|field| !field.trim().is_empty()).map(|field| {
            let name = match field.split_once("(*") {
                Some((_, rest)) => rest.split_once(')').expect("a function has parameters").0,
                None => field.rsplit(' ').next().expect("a field has a name"),
            };
            name.trim_start_matches('*').split('[').next().unwrap_or(name).to_owned()
        });
        structs.push((name.to_owned(), fields.collect()));
    }
    structs
}

/// Sizes and offsets, by the C compiler.
fn layouts(structs: &[(String, Vec<String>)]) -> String {
    let mut program = String::from("#include <stdio.h>\n#include \"trion.h\"\nint main(void) {\n");
    for (name, fields) in structs {
        writeln!(program, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for field in fields {
            writeln!(program, "printf(\"{name}.{field} %zu\\n\", offsetof({name}, {field}));").unwrap();
        }
    }
    program.push_str("return 0; }\n");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (directory.join("layouts.c"), directory.join("layouts"));
    fs::write(&source, program).expect("a program in the target directory");
    let include = crate_directory().join("../include");
    let status = Command::new("cc").arg("-std=c99").arg("-I").arg(include).arg(&source).arg("-o").arg(&binary).status();
    assert!(status.expect("a C compiler").success());
    String::from_utf8(Command::new(&binary).output().expect("sizes").stdout).expect("UTF-8")
}

fn record() -> String {
    let header = fs::read_to_string(crate_directory().join("../include/trion.h")).expect("include/trion.h");
    let declarations = declarations(&header);
    let mut record = String::new();
    for constant in constants(&header) {
        writeln!(record, "TRION_{constant}").unwrap();
    }
    for declaration in &declarations {
        writeln!(record, "{declaration}").unwrap();
    }
    record.push_str("\nsizes and offsets where pointers have 64 bits\n");
    record.push_str(&layouts(&structs(&declarations)));
    record
}

/// The line of a record that states the version.
fn version(record: &str) -> &str {
    record.lines().find(|line| line.starts_with("TRION_ABI_VERSION ")).expect("the version")
}

#[cfg(target_pointer_width = "64")]
#[test]
fn the_interface_changes_only_with_its_version() {
    let path = crate_directory().join("abi.txt");
    let made = record();
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("UPDATE_ABI").is_some() && (recorded.is_empty() || version(&recorded) != version(&made)) {
        fs::write(&path, &made).expect("trion-ffi/abi.txt");
        return;
    }
    if recorded != made {
        let of = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        let (old, new) = (of(&recorded), of(&made));
        let differences: Vec<_> = old.symmetric_difference(&new).collect();
        panic!(
            "the interface is not the one in trion-ffi/abi.txt: change TRION_ABI_VERSION in trion-ffi/src/abi.rs (a larger \
             minor if only something was added, else a larger major), then run cargo xtask header\n{differences:#?}"
        );
    }
}

#[test]
fn every_symbol_of_the_header_has_a_declaration_that_is_found() {
    let header = fs::read_to_string(crate_directory().join("../include/trion.h")).expect("include/trion.h");
    let declarations = declarations(&header);
    let functions = declarations.iter().filter(|d| !d.starts_with("typedef")).count();
    assert_eq!(functions, bare(&header).matches("TRION_API\n").count());
    let structs = structs(&declarations);
    assert!(structs.iter().any(|(name, fields)| name == "trion_allocator" && fields.len() == 3), "{structs:?}");
    assert!(structs.iter().any(|(name, fields)| name == "trion_error" && fields == &["status", "message"]));
}
