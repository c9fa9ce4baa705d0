//! `cargo xtask bench --peers`: Trion beside llama.cpp, on the same weights, in one run.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::chart::{Bar, Panel, draw};
use crate::embed::{have, output, target};
use crate::python::Packages;
use crate::{Outcome, root, run, run_with};

/// The Python package whose source has llama.cpp's.
const LLAMA: &str = "llama-cpp-python==0.3.36";
/// What writes a GGUF file.
const GGUF: [&str; 4] = ["gguf==0.19.0", "numpy==2.4.*", "pyyaml==6.*", "tqdm==4.*"];
/// Where the results are checked in.
const RESULTS: &str = "benches/results/peers.json";
const TABLE: &str = "docs/performance.md";
const CHART: &str = "docs/peers.svg";
/// Between these lines of [`TABLE`] the table stands.
const MARKS: [&str; 2] = ["<!-- cargo xtask bench --peers -->", "<!-- end -->"];

const ENGINES: [&str; 2] = ["Trion", "llama.cpp"];
const THREADS: [u32; 2] = [1, 2];
const PROMPTS: [u32; 2] = [128, 512];
const DECODED: u32 = 64;
const ROUNDS: usize = 5;
/// What both programs say of a run, by these numbers in the lists of a [`Run`].
const FIELDS: [&str; 3] = ["prompt_tokens_per_second", "decode_tokens_per_second", "peak_resident_bytes"];
const PROMPT_RATE: usize = 0;
const DECODE_RATE: usize = 1;
const PEAK: usize = 2;

/// What is measured, and with what.
struct Bench {
    trion: String,
    llama: String,
    /// The same weights, for each engine.
    models: [String; 2],
}

/// The runs of an engine with so many threads and such a prompt.
struct Run {
    /// Its number in [`ENGINES`].
    engine: usize,
    threads: u32,
    prompt: u32,
    /// For each of [`FIELDS`] a number of every round.
    numbers: [Vec<f64>; FIELDS.len()],
}

/// All of them.
struct Runs(Vec<Run>);

/// Builds, makes the models, checks, measures in turns, and writes results, table and chart.
///
/// # Errors
///
/// A program that is missing or fails; kernels or thread counts that disagree.
pub(crate) fn peers(arguments: &[String]) -> Outcome {
    if !arguments.is_empty() {
        return Err("cargo xtask bench --peers".to_owned());
    }
    let Some(bench) = Bench::prepare()? else { return Ok(()) };
    bench.check()?;
    let runs = bench.measure()?;
    let processor = processor();
    let results = json!({
        "processor": processor,
        "trion": output("git", &["describe", "--always", "--dirty"])?.trim(),
        "llama.cpp": LLAMA,
        "model": "bitnet-b1.58-2B-4T's shape, random weights; Trion: packed as the machine reads fastest, head of six bits; llama.cpp: TQ2_0, Q6_K head",
        "decoded": DECODED,
        "runs": runs.0.iter().map(Run::json).collect::<Vec<_>>(),
    });
    write(&root().join(RESULTS), &format!("{results:#}\n"))?;
    draw(&root().join(CHART), &runs.panels())?;
    let file = root().join(TABLE);
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let table = runs.table(&processor);
    println!("{table}");
    write(&file, &between(&text, &table)?)
}

impl Bench {
    /// Everything that is built or made, once; nothing where a program is missing.
    fn prepare() -> Result<Option<Self>, String> {
        if !have(&["cmake", "c++", "tar", "python3"])? {
            return Ok(None);
        }
        let what = GGUF.map(str::to_owned).to_vec();
        let packages = Packages { directory: "gguf", wanted: what.join("\n"), what, files: &["gguf/__init__.py"] };
        let Some(packages) = packages.install()? else { return Ok(None) };
        let place = target().join("peers");
        fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
        let at = |name: &str| place.join(name).to_string_lossy().into_owned();

        let llama = at("llama");
        build_llama(&place, &llama)?;
        run("cargo", &["build", "--release", "--locked", "--bin", "trion"])?;
        let trion = target().join("release/trion").to_string_lossy().into_owned();
        let (packed, gguf, path) = (at("2b4t.safetensors"), at("2b4t.gguf"), packages.to_string_lossy());
        run_with(&[("PYTHONPATH", &path)], "python3", &["benches/peers/make_gguf.py", &gguf])?;
        run(&trion, &["quantize", &gguf, "--output", &packed, "--embedding", "int6", "--packing", "auto", "--force"])?;
        Ok(Some(Bench { trion, llama, models: [packed, gguf] }))
    }

    /// The fastest kernel on all threads gives the logits of plain Rust on one.
    fn check(&self) -> Outcome {
        let logits = |kernel: &str, threads: &str| -> Result<Vec<u8>, String> {
            let file = target().join(format!("peers/logits-{kernel}.safetensors"));
            let to = file.to_string_lossy();
            let what = ["logits", &self.models[0], "--ids", "1,20000,300,128000,5", "--output", &to];
            run(&self.trion, &[&what[..], &["--kernel", kernel, "--threads", threads]].concat())?;
            fs::read(&file).map_err(|e| format!("{to}: {e}"))
        };
        if logits("scalar", "1")? == logits("auto", "2")? { Ok(()) } else { Err("kernels disagree".to_owned()) }
    }

    /// All runs of all rounds; the engines take turns.
    fn measure(&self) -> Result<Runs, String> {
        let mut runs = Runs::none();
        for round in 1..=ROUNDS {
            for run in &mut runs.0 {
                let (engine, threads, prompt) = (ENGINES[run.engine], run.threads, run.prompt);
                let said = self.run(run.engine, threads, prompt)?;
                println!("{round}: {engine}, {threads} threads, prompt of {prompt}: {said:.1?}");
                run.numbers.iter_mut().zip(said).for_each(|(numbers, number)| numbers.push(number));
            }
        }
        Ok(runs)
    }

    /// What an engine says of one run: [`FIELDS`].
    fn run(&self, engine: usize, threads: u32, prompt: u32) -> Result<[f64; FIELDS.len()], String> {
        let [threads, prompt, decode] = [threads, prompt, DECODED].map(|number| number.to_string());
        let model = &self.models[engine];
        let said = if engine == 0 {
            let sizes = ["--prompt", &prompt, "--decode", &decode, "--threads", &threads];
            let how = ["--cache", "f16", "--repeats", "1", "--json"];
            output(&self.trion, &[&["bench", model], &sizes[..], &how].concat())?
        } else {
            output(&self.llama, &[model, &prompt, &decode, &threads])?
        };
        let wrong = |what: &str| format!("{}: {what}: {said}", ENGINES[engine]);
        let fields: Value = serde_json::from_str(&said).map_err(|e| wrong(&e.to_string()))?;
        let mut numbers = [0.0; FIELDS.len()];
        for (number, field) in numbers.iter_mut().zip(FIELDS) {
            *number = fields[field].as_f64().ok_or_else(|| wrong(field))?;
        }
        Ok(numbers)
    }
}

/// Fetches llama.cpp and builds its library for this machine, once, and the program that times it.
fn build_llama(place: &Path, program: &str) -> Outcome {
    let place = place.join(LLAMA);
    let at = |name: &str| place.join(name).to_string_lossy().into_owned();
    let (source, build) = (at("source"), at("build"));
    if !place.join("build/bin/libllama.so").exists() {
        build_library(&place, &source, &build)?;
    }
    let includes = ["include", "ggml/include"].map(|directory| format!("-I{source}/vendor/llama.cpp/{directory}"));
    let (libraries, path) = (format!("-L{build}/bin"), format!("-Wl,-rpath,{build}/bin"));
    let link = [&libraries, "-lllama", "-lggml", "-lggml-base", &path, "-o", program];
    let compile = ["-std=c++17", "-O2", &includes[0], &includes[1], "benches/peers/llama.cpp"];
    run("c++", &[&compile[..], &link].concat())
}

fn build_library(place: &Path, source: &str, build: &str) -> Outcome {
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"];
    run("python3", &[&pip[..], &[LLAMA, "--dest", &place.to_string_lossy()]].concat())?;
    let archive = place.join(format!("{}.tar.gz", LLAMA.replace('-', "_").replace("==", "-")));
    fs::create_dir_all(source).map_err(|e| format!("{source}: {e}"))?;
    let to = ["--directory", source, "--strip-components", "1"];
    run("tar", &[&["--extract", "--file", &archive.to_string_lossy()], &to[..]].concat())?;
    let parts = ["COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER"].map(|part| format!("-DLLAMA_BUILD_{part}=OFF"));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let how = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=ON"];
    let source = format!("{source}/vendor/llama.cpp");
    run("cmake", &[&["-S", &source, "-B", build], &how[..], &parts].concat())?;
    run("cmake", &["--build", build, "--parallel", "2", "--target", "llama"])
}

/// The processor's name and how many there are, as Linux tells.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names: Vec<&str> =
        info.lines().filter(|line| line.starts_with("model name")).filter_map(|line| line.split(": ").nth(1)).collect();
    format!("{} x {}", names.len(), names.first().unwrap_or(&"unknown processor"))
}

impl Run {
    fn json(&self) -> Value {
        let Run { engine, threads, prompt, numbers } = self;
        let mut json = json!({ "engine": ENGINES[*engine], "threads": threads, "prompt": prompt });
        for (field, numbers) in FIELDS.iter().zip(numbers) {
            json[field] = json!(numbers);
        }
        json
    }
}

impl Runs {
    /// Those of a round, in their order, before the first.
    fn none() -> Self {
        let mut runs = Vec::new();
        for threads in THREADS {
            for prompt in PROMPTS {
                for engine in 0..ENGINES.len() {
                    runs.push(Run { engine, threads, prompt, numbers: Default::default() });
                }
            }
        }
        Runs(runs)
    }

    /// The median of a number over the rounds.
    fn median(&self, engine: usize, threads: u32, prompt: u32, field: usize) -> f64 {
        let wanted = |run: &&Run| (run.engine, run.threads, run.prompt) == (engine, threads, prompt);
        let mut numbers = self.0.iter().find(wanted).map_or_else(Vec::new, |run| run.numbers[field].clone());
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn table(&self, processor: &str) -> String {
        let mut table = format!(
            "{processor}; {LLAMA}; medians of {ROUNDS} rounds, tokens a second:\n\n\
             | threads | prompt | Trion | llama.cpp | | decode of {DECODED}: Trion | llama.cpp | | peak, MB: Trion | llama.cpp |\n\
             |---|---|---|---|---|---|---|---|---|---|\n"
        );
        for threads in THREADS {
            for prompt in PROMPTS {
                let both = |field: usize| [0, 1].map(|engine| self.median(engine, threads, prompt, field));
                let [prefill, peer_prefill] = both(PROMPT_RATE);
                let [decode, peer_decode] = both(DECODE_RATE);
                let [peak, peer_peak] = both(PEAK).map(|bytes| bytes / 1e6);
                let _ = writeln!(
                    table,
                    "| {threads} | {prompt} | {prefill:.1} | {peer_prefill:.1} | {:.2} x | {decode:.2} | {peer_decode:.2} \
                     | {:.2} x | {peak:.0} | {peer_peak:.0} |",
                    prefill / peer_prefill,
                    decode / peer_decode,
                );
            }
        }
        table
    }

    /// The longer prompt, and decode after it.
    fn panels(&self) -> [Panel; 2] {
        let prompt = PROMPTS[1];
        let bar = |run: &Run, field: usize| Bar {
            label: format!(
                "{}, {} thread{}",
                ENGINES[run.engine],
                run.threads,
                if run.threads == 1 { "" } else { "s" }
            ),
            value: self.median(run.engine, run.threads, prompt, field),
            is_ours: run.engine == 0,
        };
        let panel = |title: String, field: usize| Panel {
            title,
            bars: self.0.iter().filter(|run| run.prompt == prompt).map(|run| bar(run, field)).collect(),
        };
        [
            panel(format!("Prompt of {prompt}, tokens/s"), PROMPT_RATE),
            panel(format!("Decode of {DECODED} after it, tokens/s"), DECODE_RATE),
        ]
    }
}

/// The text with what stands between [`MARKS`] replaced.
fn between(text: &str, table: &str) -> Result<String, String> {
    let missing = || format!("{TABLE}: {} and then {} are not there", MARKS[0], MARKS[1]);
    let (before, rest) = text.split_once(MARKS[0]).ok_or_else(missing)?;
    let (_, after) = rest.split_once(MARKS[1]).ok_or_else(missing)?;
    Ok(format!("{before}{}\n\n{table}\n{}{after}", MARKS[0], MARKS[1]))
}

fn write(file: &PathBuf, text: &str) -> Outcome {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::{MARKS, Runs, between};

    #[test]
    fn medians_make_a_table() {
        let mut runs = Runs::none();
        for run in runs.0.iter_mut().filter(|run| run.threads == 2 && run.prompt == 512) {
            let rates = if run.engine == 0 { vec![30.0, 10.0, 20.0] } else { vec![4.0, 5.0, 6.0] };
            run.numbers = [rates.clone(), rates, vec![2e6]];
        }
        let table = runs.table("a processor");
        let row = "| 2 | 512 | 20.0 | 5.0 | 4.00 x | 20.00 | 5.00 | 4.00 x | 2 | 2 |";
        assert!(table.lines().any(|line| line == row), "{table}");
        assert_eq!(runs.panels().map(|panel| panel.bars[2].value), [20.0, 20.0]);
        assert_eq!(runs.0[6].json()["decode_tokens_per_second"][1], 10.0);
    }

    #[test]
    fn a_table_replaces_the_one_before() {
        let [begin, end] = MARKS;
        let text = format!("a\n{begin}\nold\n{end}\nb\n");
        let new = between(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{begin}\n\nnew\n\n{end}\nb\n"));
        assert_eq!(between(&new, "new\n").unwrap(), new);
        assert!(between("a\n", "new\n").is_err());
    }
}
