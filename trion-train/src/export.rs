//! A trained model for others: a directory of Hugging Face, with float masters or packed trits, or Trion's packed file.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use serde_json::json;
use trion_core::quant::{absmean_scale, absmean_trit};
use trion_engine::{PackOptions, quantize};

use crate::error::{Error, Result};
use crate::files::{make_directory, write_json, write_whole};
use crate::layout::{Entry, Kind};
use crate::parameters::{Stored, save};
use crate::shape::config_json;
use crate::trained::Trained;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A directory with the float weights that were trained; they are made ternary when the model is loaded
    /// (`autobitlinear`, online). With scales for groups, weights are what they are rounded to.
    Masters,
    /// A directory with trits and their scales (`autobitlinear`, offline).
    Packed,
    /// Trion's file.
    Trion,
}

/// Writes a model to `to`: a directory, or a file for [`Format::Trion`]. What was there before is replaced file by file, each
/// whole or not at all.
///
/// # Errors
/// [`Error::Argument`] for trits of a model that is not ternary, or that cannot be packed by four rows; [`Error::Io`].
pub fn export(model: &Trained, to: &Path, format: Format, options: &PackOptions) -> Result<()> {
    if !model.recipe.ternary {
        return Err(Error::Argument("a float twin is for comparison, and has no trits to export".to_owned()));
    }
    match format {
        Format::Masters | Format::Packed => directory(model, to, format == Format::Packed),
        Format::Trion => {
            // The engine packs what it reads, so that both have the same bits, and a model has the name of its directory.
            let mut temporary = to.file_name().unwrap_or_default().to_owned();
            temporary.push(".masters");
            let temporary = to.with_file_name(temporary);
            let masters = temporary.join(to.file_stem().unwrap_or_default());
            let written =
                directory(model, &masters, false).and_then(|()| Ok(quantize(&masters, to, options, &mut |_, _| {})?));
            // A directory of our own; if it cannot be removed, the file is there all the same.
            let _ = std::fs::remove_dir_all(&temporary);
            written.map(|_| ())
        }
    }
}

fn directory(model: &Trained, to: &Path, packed: bool) -> Result<()> {
    let group = model.recipe.weight_group;
    if packed && group > 0 {
        let message = "packed trits have one scale for each matrix, and this model has one for each group; \
                       expected the format masters or trion";
        return Err(Error::Argument(message.to_owned()));
    }
    make_directory(to)?;
    let mut tensors = Vec::new();
    for (entry, values) in model.entries().iter().zip(&model.parameters) {
        match entry.kind {
            Kind::Matrix(_) if packed => tensors.extend(packed_trits(entry, values)?),
            Kind::Matrix(_) if group > 0 => {
                let rounded = values.chunks_exact(group).flat_map(rounded_group).collect::<Vec<_>>();
                tensors.push(Stored::floats(entry.name.clone(), entry.stored_shape(), &rounded));
            }
            _ => tensors.push(Stored::floats(entry.name.clone(), entry.stored_shape(), values)),
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save(&to.join("model.safetensors"), &tensors, metadata)?;
    let json = model.tokenizer.to_string(true).map_err(|e| Error::malformed(to, e.to_string()))?;
    write_whole(&to.join("tokenizer.json"), |file| std::io::Write::write_all(file, json.as_bytes()))?;
    let end = crate::tokenizer::END;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
        "model_max_length": model.config.max_position_embeddings,
    });
    write_json(&to.join("tokenizer_config.json"), &tokenizer_config)?;
    let generation = json!({ "bos_token_id": model.end, "eos_token_id": model.end });
    write_json(&to.join("generation_config.json"), &generation)?;
    let mode = if group > 0 { None } else { Some(if packed { "offline" } else { "online" }) };
    write_json(&to.join("config.json"), &config_json(&model.config, model.end, mode))
}

/// What weights that share a scale are rounded to: trits times their mean magnitude in half precision.
fn rounded_group(weights: &[f32]) -> Vec<f32> {
    let scale = f16::from_f32(absmean_scale(weights.iter().copied())).to_f32();
    weights.iter().map(|weight| f32::from(absmean_trit(*weight, 1.0 / scale)) * scale).collect()
}

/// The trits of a matrix, four rows to a byte, and their scale (formats.md: bits 2 k and 2 k + 1 of byte `[r, i]` hold trit
/// + 1 of row `r + k rows / 4`).
fn packed_trits(entry: &Entry, values: &[f32]) -> Result<[Stored; 2]> {
    let [rows, cols] = entry.shape;
    if !rows.is_multiple_of(4) {
        return Err(Error::Argument(format!("{} has {rows} rows, expected a multiple of 4 to pack", entry.name)));
    }
    let reciprocal = 1.0 / absmean_scale(values.iter().copied());
    let quarter = rows / 4 * cols;
    let code = |at: usize| (absmean_trit(values[at], reciprocal) + 1) as u8;
    let bytes = (0..quarter).map(|i| (0..4).fold(0, |byte, k| byte | code(i + k * quarter) << (2 * k))).collect();
    let scale = entry.name.replace(".weight", ".weight_scale");
    Ok([
        Stored { name: entry.name.clone(), dtype: Dtype::U8, shape: vec![rows / 4, cols], bytes },
        Stored::floats(scale, vec![1], &[1.0 / reciprocal]),
    ])
}
