//! `cargo xtask bench --instructions`: how many instructions a fixed program takes, beside the counts checked in.
//!
//! Times on a shared machine differ by tens of percent; counts differ by what the code does.

use std::fs;

use serde_json::{Map, Value, json};

use crate::embed::{have, output, target};
use crate::{Outcome, root, run};

/// Where the counts are checked in.
const RECORDED: &str = "benches/results/instructions.json";
/// Kernels that are counted: valgrind knows no AVX-512.
const KERNELS: [&str; 2] = ["scalar", "avx2"];
/// Functions of the example whose inclusive counts are the stages.
const STAGES: [&str; 2] = ["prompt_stage", "decode_stage"];
/// Times as many instructions that a stage may take.
const MOST: f64 = 1.02;
/// Functions with a smaller share of the instructions are left out.
const LEAST_SHARE: f64 = 0.01;

/// Counts, and compares; with `--write`, checks the counts in instead.
///
/// # Errors
///
/// A stage that takes more than 2 % more instructions than recorded with the same compiler; kernels that disagree on
/// the tokens; programs that fail.
pub(crate) fn instructions(arguments: &[String]) -> Outcome {
    let write = match arguments {
        [] => false,
        [only] if only == "--write" => true,
        _ => return Err("cargo xtask bench --instructions [--write]".to_owned()),
    };
    if !have(&["valgrind", "callgrind_annotate"])? {
        return Err("valgrind is missing (on Debian: apt-get install valgrind)".to_owned());
    }
    let example = ["--package", "trion-engine", "--no-default-features", "--example", "fixed_work"];
    run("cargo", &[&["build", "--locked", "--profile", "counted"], &example[..]].concat())?;
    let rustc = output("rustc", &["--version"])?.trim().to_owned();
    let (mut kernels, mut tokens) = (Map::new(), Vec::new());
    for kernel in KERNELS {
        let (counts, said) = count(kernel)?;
        kernels.insert(kernel.to_owned(), counts);
        tokens.push(said);
    }
    if tokens.iter().any(|said| *said != tokens[0]) {
        return Err(format!("kernels disagree on the tokens: {tokens:?}"));
    }
    let counted = json!({ "rustc": rustc, "kernels": kernels });
    let file = root().join(RECORDED);
    if write {
        let text = format!("{counted:#}\n");
        return fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()));
    }
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e} (--write makes it)", file.display()))?;
    let recorded: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let grown = compare(&recorded["kernels"], &counted["kernels"]);
    if recorded["rustc"] != counted["rustc"] {
        println!("recorded with {}, counted with {}: not judged", recorded["rustc"], counted["rustc"]);
        return Ok(());
    }
    if grown.is_empty() { Ok(()) } else { Err(format!("more than 2 % more instructions: {}", grown.join(", "))) }
}

/// The counts of one kernel, and what the program wrote.
fn count(kernel: &str) -> Result<(Value, String), String> {
    let program = target().join("counted/examples/fixed_work").to_string_lossy().into_owned();
    let counts = target().join(format!("callgrind-{kernel}.out")).to_string_lossy().into_owned();
    let model = root().join("models/tales-14m.safetensors").to_string_lossy().into_owned();
    let file = format!("--callgrind-out-file={counts}");
    let how = ["--quiet", "--tool=callgrind", &file, "--toggle-collect=*_stage*"];
    let said = output("valgrind", &[&how[..], &[&program, &model, kernel]].concat())?;
    // All functions: what counts is chosen here, and both lists are in the same form.
    let list = |inclusive| output("callgrind_annotate", &["--auto=no", "--threshold=100", inclusive, &counts]);
    let (with_callees, alone) = (list("--inclusive=yes")?, list("--inclusive=no")?);
    let mut stages = Map::new();
    for stage in STAGES {
        let found = functions(&with_callees).find(|(name, _)| name.ends_with(stage));
        let (_, instructions) = found.ok_or_else(|| format!("{counts}: no count of {stage}"))?;
        stages.insert(stage.to_owned(), instructions.into());
    }
    let total = functions(&alone).map(|(_, instructions)| instructions).sum::<u64>();
    let hot = functions(&alone).filter(|(_, instructions)| *instructions as f64 >= LEAST_SHARE * total as f64);
    let hot: Map<String, Value> = hot.map(|(name, instructions)| (name.to_owned(), instructions.into())).collect();
    Ok((json!({ "stages": stages, "functions": hot }), said))
}

/// The functions in a listing of `callgrind_annotate`, each with its instructions.
fn functions(listing: &str) -> impl Iterator<Item = (&str, u64)> {
    // The lines have the form `134,014,960 (49.90%)  ???:fixed_work::decode_stage [/path/to/program]`.
    listing.lines().filter_map(|line| {
        let (count, rest) = line.trim_start().split_once(" (")?;
        let (_, function) = rest.split_once("%)")?;
        let function = function.rsplit_once(" [").map_or(function, |(function, _)| function);
        let (_, name) = function.split_once(':')?;
        Some((name, count.replace(',', "").parse().ok()?))
    })
}

/// Prints counted beside recorded instructions, and gives the stages that grew too much.
///
/// Functions are printed and not judged: the compiler moves instructions between them whenever it inlines differently.
fn compare(recorded: &Value, counted: &Value) -> Vec<String> {
    let mut grown = Vec::new();
    for kernel in KERNELS {
        for group in ["stages", "functions"] {
            for (name, now) in counted[kernel][group].as_object().into_iter().flatten() {
                let (now, before) = (now.as_f64().unwrap_or(0.0), recorded[kernel][group][name].as_f64());
                let change = before.map_or_else(|| "new".to_owned(), |before| format!("{:.3} x", now / before));
                println!("{kernel:8} {now:14} {change:>8}  {name}");
                if group == "stages" && before.is_none_or(|before| now > MOST * before) {
                    grown.push(format!("{name} of {kernel} ({change})"));
                }
            }
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{compare, functions};

    #[test]
    fn listings_are_read() {
        let listing = "Ir  file:function\n268,579,579 (100.0%)  PROGRAM TOTALS\n\
            134,014,960 (49.90%)  ???:core::run::plain [/a/program]\n \
            15,739 ( 5.86%)  ./a.S:memset [/usr/lib/libc.so.6]\n";
        let found: Vec<_> = functions(listing).collect();
        assert_eq!(found, [("core::run::plain", 134_014_960), ("memset", 15_739)]);
    }

    #[test]
    fn stages_may_grow_by_two_percent() {
        let counts = |scalar: u64, avx2: u64| {
            let kernel =
                |decode: u64| json!({ "stages": { "decode_stage": decode }, "functions": { "f": 7 * decode } });
            json!({ "scalar": kernel(scalar), "avx2": kernel(avx2) })
        };
        assert!(compare(&counts(1000, 500), &counts(1020, 100)).is_empty());
        assert_eq!(compare(&counts(1000, 500), &counts(1000, 511)), ["decode_stage of avx2 (1.022 x)"]);
        assert_eq!(compare(&json!({}), &counts(1, 1)).len(), 2);
    }
}
