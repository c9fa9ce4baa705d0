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
/// What both programs say of a run.
const PROMPT_RATE: &str = "prompt_tokens_per_second";
const DECODE_RATE: &str = "decode_tokens_per_second";
const PEAK: &str = "peak_resident_bytes";

/// What is measured, and with what.
struct Bench {
    trion: String,
    llama: String,
    /// The same weights, for each engine.
    models: [String; 2],
}

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
    let results = json!({
        "processor": processor(),
        "trion": output("git", &["describe", "--always", "--dirty"])?.trim(),
        "llama.cpp": LLAMA,
        "model": "bitnet-b1.58-2B-4T's shape, random weights; Trion: 2 bits a trit, int8 head; llama.cpp: TQ2_0, Q6_K head",
        "decoded": DECODED,
        "runs": runs,
    });
    write(&root().join(RESULTS), &format!("{results:#}\n"))?;
    let runs = Runs(&results["runs"]);
    draw(&root().join(CHART), &runs.panels())?;
    let file = root().join(TABLE);
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let table = runs.table(&processor());
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
        if !Path::new(&llama).exists() {
            build_llama(&place, &llama)?;
        }
        run("cargo", &["build", "--release", "--locked", "--bin", "trion"])?;
        let trion = target().join("release/trion").to_string_lossy().into_owned();
        let [packed, gguf] = models(&place);
        if !Path::new(&gguf).exists() {
            let part = at("part.gguf");
            let path = packages.to_string_lossy();
            run_with(&[("PYTHONPATH", &path)], "python3", &["benches/peers/make_gguf.py", &part])?;
            fs::rename(&part, &gguf).map_err(|e| format!("{part}: {e}"))?;
        }
        run(&trion, &["quantize", &gguf, "--output", &packed, "--embedding", "int8", "--force"])?;
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
    fn measure(&self) -> Result<Vec<Value>, String> {
        let mut runs = Vec::new();
        for (threads, prompt, engine) in configurations() {
            let (engine, empty) = (ENGINES[engine], Vec::<f64>::new());
            runs.push(json!({
                "engine": engine, "threads": threads, "prompt": prompt, (PROMPT_RATE): empty, (DECODE_RATE): empty, (PEAK): empty,
            }));
        }
        for round in 1..=ROUNDS {
            for ((threads, prompt, engine), run) in configurations().zip(&mut runs) {
                let said = self.run(engine, threads, prompt)?;
                let name = ENGINES[engine];
                let number = |field: &str| said[field].as_f64().ok_or_else(|| format!("{name}: no {field}: {said}"));
                for field in [PROMPT_RATE, DECODE_RATE, PEAK] {
                    let number = number(field)?;
                    run[field].as_array_mut().ok_or("a list")?.push(number.into());
                }
                let (prefill, decode) = (number(PROMPT_RATE)?, number(DECODE_RATE)?);
                println!("{round}: {name}, {threads} threads, prompt of {prompt}: {prefill:.1}, decode {decode:.2}");
            }
        }
        Ok(runs)
    }

    /// What an engine says of one run.
    fn run(&self, engine: usize, threads: u32, prompt: u32) -> Result<Value, String> {
        let [threads, prompt, decode] = [threads, prompt, DECODED].map(|number| number.to_string());
        let model = &self.models[engine];
        let said = if engine == 0 {
            let sizes = ["--prompt", &prompt, "--decode", &decode, "--threads", &threads];
            let how = ["--cache", "f16", "--repeats", "1", "--json"];
            output(&self.trion, &[&["bench", model], &sizes[..], &how].concat())?
        } else {
            output(&self.llama, &[model, &prompt, &decode, &threads])?
        };
        serde_json::from_str(&said).map_err(|e| format!("{}: {e}: {said}", ENGINES[engine]))
    }
}

/// Threads, prompt and number of the engine of each run of a round.
fn configurations() -> impl Iterator<Item = (u32, u32, usize)> {
    THREADS.into_iter().flat_map(|threads| {
        PROMPTS.into_iter().flat_map(move |prompt| (0..ENGINES.len()).map(move |engine| (threads, prompt, engine)))
    })
}

/// Where the models lie, in the order of [`ENGINES`].
fn models(place: &Path) -> [String; 2] {
    ["2b4t.safetensors", "2b4t.gguf"].map(|name| place.join(name).to_string_lossy().into_owned())
}

/// Fetches llama.cpp, builds its library for this machine, and the program that times it.
fn build_llama(place: &Path, program: &str) -> Outcome {
    let at = |name: &str| place.join(name).to_string_lossy().into_owned();
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"];
    run("python3", &[&pip[..], &[LLAMA, "--dest", &place.to_string_lossy()]].concat())?;
    let archive = at(&format!("{}.tar.gz", LLAMA.replace('-', "_").replace("==", "-")));
    let source = at("source");
    fs::create_dir_all(&source).map_err(|e| format!("{source}: {e}"))?;
    run("tar", &["--extract", "--file", &archive, "--directory", &source, "--strip-components", "1"])?;
    let (source, build) = (format!("{source}/vendor/llama.cpp"), at("build"));
    let parts = ["COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER"].map(|part| format!("-DLLAMA_BUILD_{part}=OFF"));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let how = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=ON"];
    run("cmake", &[&["-S", &source, "-B", &build], &how[..], &parts].concat())?;
    run("cmake", &["--build", &build, "--parallel", "2", "--target", "llama"])?;
    let includes = ["include", "ggml/include"].map(|directory| format!("-I{source}/{directory}"));
    let (libraries, path) = (format!("-L{build}/bin"), format!("-Wl,-rpath,{build}/bin"));
    let link = [&libraries, "-lllama", "-lggml", "-lggml-base", &path, "-o", program];
    let compile = ["-std=c++17", "-O2", &includes[0], &includes[1], "benches/peers/llama.cpp"];
    run("c++", &[&compile[..], &link].concat())
}

/// The processor's name and how many there are, as Linux tells.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names: Vec<&str> =
        info.lines().filter(|line| line.starts_with("model name")).filter_map(|line| line.split(": ").nth(1)).collect();
    format!("{} x {}", names.len(), names.first().unwrap_or(&"unknown processor"))
}

/// The runs of a file of results.
struct Runs<'a>(&'a Value);

impl Runs<'_> {
    /// The median of a number over the rounds.
    fn median(&self, engine: &str, threads: u32, prompt: u32, field: &str) -> f64 {
        let wanted = |run: &&Value| run["engine"] == engine && run["threads"] == threads && run["prompt"] == prompt;
        let run = self.0.as_array().into_iter().flatten().find(wanted);
        let mut numbers: Vec<f64> =
            run.and_then(|run| run[field].as_array()).into_iter().flatten().filter_map(Value::as_f64).collect();
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
                let both = |field: &str| ENGINES.map(|engine| self.median(engine, threads, prompt, field));
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
        let panel = |title: String, field: &str| Panel {
            title,
            bars: THREADS
                .into_iter()
                .flat_map(|threads| ENGINES.map(|engine| (threads, engine)))
                .map(|(threads, engine)| Bar {
                    label: format!("{engine}, {threads} thread{}", if threads == 1 { "" } else { "s" }),
                    value: self.median(engine, threads, prompt, field),
                    is_ours: engine == ENGINES[0],
                })
                .collect(),
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
    use serde_json::json;

    use super::{DECODE_RATE, MARKS, PEAK, PROMPT_RATE, Runs, between};

    #[test]
    fn medians_make_a_table() {
        let run = |engine: &str, rates: [f64; 3]| {
            json!({
                "engine": engine, "threads": 2, "prompt": 512, (PROMPT_RATE): rates, (DECODE_RATE): rates, (PEAK): [2e6],
            })
        };
        let runs = json!([run("Trion", [30.0, 10.0, 20.0]), run("llama.cpp", [4.0, 5.0, 6.0])]);
        let table = Runs(&runs).table("a processor");
        let row = "| 2 | 512 | 20.0 | 5.0 | 4.00 x | 20.00 | 5.00 | 4.00 x | 2 | 2 |";
        assert!(table.lines().any(|line| line == row), "{table}");
        let panels = Runs(&runs).panels();
        assert_eq!(panels.map(|panel| panel.bars[2].value), [20.0, 20.0]);
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
