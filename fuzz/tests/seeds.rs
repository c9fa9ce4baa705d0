//! Every input that is checked in, through the functions that `libFuzzer` calls; and the seeds that are made by number.

use std::fs;
use std::path::{Path, PathBuf};

use trion_engine::{Serial, Session, SessionOptions};
use trion_fuzz::TARGETS;
use trion_fuzz::small::{Checkpoint, GgufKind, Kind, MODEL, PACKED, TEMPLATE, gguf, tokenizer};

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a directory, in the order of their names; none if it is not there.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry of the directory").path()).collect();
    files.sort();
    files
}

/// A seed that is made: a target, a name, and the bytes.
type Seed = (&'static str, String, Vec<u8>);

fn made() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    let mut add = |target, name: &str, parts: &[&[u8]]| seeds.push((target, name.to_owned(), parts.concat()));
    for (n, kind) in Kind::ALL.iter().enumerate() {
        let (checkpoint, name) = (Checkpoint::new(*kind), format!("{kind:?}").to_lowercase());
        add("safetensors", &name, &[&[n as u8], &checkpoint.tensors]);
        add("config", &name, &[&[n as u8], checkpoint.config.to_string().as_bytes()]);
    }
    for kind in [GgufKind::Floats, GgufKind::I2S, GgufKind::Q2] {
        add("gguf", &format!("{kind:?}").to_lowercase(), &[&gguf(kind)]);
    }
    for n in 0..PACKED.len() {
        add("packed", &format!("small-{n}"), &[&[n as u8]]);
    }
    add("packed", "file", &[&[u8::MAX], &PACKED[1]]);
    add("tokenizer", "json", &[tokenizer().to_string().as_bytes(), b"\0aab a 11{"]);
    add("tokenizer", "gguf", &[&[1], &[7; 200]]);
    add("template", "speakers", &[TEMPLATE.as_bytes(), b"\0You answer.\0Who?\0I do."]);
    let branches =
        b"{% if messages | length > 1 %}{{ strftime_now('%Y') }}{% elif 1 in range(3) %}{{ raise_exception('no') }}\
                     {% endif %}{% set x = namespace(n=1) %}{{ messages.first.content.split(',')[0] | upper }}\0a,b";
    add("template", "branches", &[branches]);
    for (name, kind, grammar) in [
        ("regex", 0, "(ab|a){1,3}[^b]?\\s*"),
        ("lark", 1, "start: item+\nitem: \"a\" | /b{2}/ | %json {\"type\": \"integer\"}\n"),
        (
            "schema",
            2,
            r##"{"type":"object","properties":{"a":{"enum":["ab",1]},"b":{"items":{"$ref":"#"}}},"required":["a"]}"##,
        ),
    ] {
        add("constraint", name, &[&[kind], b"\x06\x03\x05\x04", b"\0", grammar.as_bytes()]);
    }
    let options = SessionOptions { max_batch: 3, ..SessionOptions::new(6) };
    let mut session = Session::new(&MODEL, options).expect("a session");
    add("state", "empty", &[&[4], &session.save().expect("a state")]);
    session.evaluate(&[3, 1, 2], &Serial).expect("logits");
    add("state", "computed", &[&[4], &session.save().expect("a state")]);
    session.push(&[4, 5]).expect("tokens");
    add("state", "pushed", &[&[4], &session.save().expect("a state")]);
    for (target, count) in [("kernels", 8), ("sampler", 8), ("c_abi", 8)] {
        for n in 0..count {
            let mut random = trion_fuzz::small::Random::new(n);
            let bytes: Vec<u8> = (0..400).map(|_| random.bits() as u8).collect();
            add(target, &format!("numbers-{n}"), &[&bytes]);
        }
    }
    seeds
}

/// With `UPDATE_SEEDS` set, writes the seeds anew.
#[test]
fn seeds_are_those_that_are_made() {
    let made = made();
    for (target, name, bytes) in &made {
        let path = package().join("seeds").join(target).join(name);
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory for the seeds");
            fs::write(&path, bytes).expect("a place for the seed");
        }
        let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(found == *bytes, "{} is another: UPDATE_SEEDS=1 cargo test -p trion-fuzz", path.display());
    }
    for (target, _) in TARGETS {
        let found = files(&package().join("seeds").join(target)).len();
        assert_eq!(found, made.iter().filter(|seed| seed.0 == target).count(), "seeds of {target}");
    }
}

#[test]
fn targets_hold_for_every_seed_and_regression() {
    for (target, run) in TARGETS {
        let seeds = files(&package().join("seeds").join(target));
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for path in seeds.into_iter().chain(files(&package().join("regressions").join(target))) {
            println!("{}", path.display());
            run(&fs::read(path).expect("an input"));
        }
    }
}

/// The seeds of models are models: mutations of what is refused at once would find little.
#[test]
fn small_checkpoints_open() {
    for (n, file) in PACKED.iter().enumerate() {
        let model = trion_engine::Model::from_bytes(file).unwrap_or_else(|e| panic!("{n}: {e}"));
        assert_eq!(model.tokenizer().is_ok() && model.has_chat_template(), n == 0);
    }
    for kind in [GgufKind::Floats, GgufKind::I2S, GgufKind::Q2] {
        let model = trion_engine::Model::from_bytes(&gguf(kind)).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        model.tokenizer().unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
    for kind in Kind::ALL {
        let directory = trion_fuzz::directory::Directory::new(&format!("test-{kind:?}"), &Checkpoint::new(kind));
        trion_engine::Model::open(directory.path()).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
}
