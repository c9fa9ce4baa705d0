//! Options that say what a text must follow.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use trion_engine::{Constraint, Grammar, Model};

use crate::common::Failure;

/// What the text must follow; at most one.
#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct ConstraintArguments {
    /// Write JSON that this JSON schema holds for: a file, or the schema itself, which begins with {
    #[arg(long, value_name = "FILE_OR_JSON")]
    json_schema: Option<String>,
    /// Write text that matches this regular expression as a whole
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
    /// Write text by the rule start of the grammar in this file, in the form of Lark
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl ConstraintArguments {
    /// The constraint that was asked for, compiled for `model`.
    pub(crate) fn constraint(&self, model: &Model) -> Result<Option<Constraint>, Failure> {
        let compile = |grammar| Ok(Some(Constraint::new(model, grammar)?));
        if let Some(schema) = &self.json_schema {
            return if schema.trim_start().starts_with('{') {
                compile(Grammar::JsonSchema(schema))
            } else {
                compile(Grammar::JsonSchema(&read("--json-schema", Path::new(schema))?))
            };
        }
        if let Some(pattern) = &self.regex {
            return compile(Grammar::Regex(pattern));
        }
        if let Some(file) = &self.grammar {
            return compile(Grammar::Lark(&read("--grammar", file)?));
        }
        Ok(None)
    }
}

fn read(option: &str, file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|e| Failure::Argument(format!("{option} {}: {e}", file.display())))
}
