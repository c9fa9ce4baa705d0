//! From any readable checkpoint to Trion's packed file: a plain safetensors file, laid out as the kernels read it.
//!
//! Every model goes through this form. A checkpoint is packed in memory when it is opened, so that a packed file gives
//! the same bits by construction.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};
use trion_core::int6::{GROUP_COLS, PAIR_BYTES, PAIR_COLS};
use trion_core::packing::{BLOCK_COLS, TILE_ROWS};
use trion_core::quant::int6_row;
use trion_core::{Config, Int6Matrix, LayerNorm, Packing, Projection, TernaryMatrix};

use crate::error::{Error, Result};
use crate::map::{Mmap, zeros};
use crate::packed::{FORMAT, PackedConfig, VERSION, trits_ending, trits_shape};
use crate::source::{Checkpoint, FloatType, MatrixId, Settings, SourceMatrix, TritRows, TritScale, VectorId, float_at};

/// Where tensor data begins: a multiple of this, so that mapped tensors are aligned for any register.
const ALIGNMENT: usize = 64;

/// Number format of the float embedding and head in a packed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FloatFormat {
    /// As the checkpoint has them: nothing is lost.
    #[default]
    Keep,
    /// Half precision, rounded half to even.
    F16,
    /// One signed byte for each weight and one float for each row, rounded half to even.
    Int8,
    /// Six bits for each weight, a byte for each 16 of them and one float for each row; products quantise activations, to
    /// int8 in groups of 128 columns.
    Int6,
}

/// What [`quantize`] may change.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackOptions {
    /// Number format of embedding and head.
    pub embedding: FloatFormat,
    /// How trits lie in the file. Matrices with group scales have twos whatever is asked for.
    pub packing: Packing,
}

/// Packs a checkpoint into one file: a Hugging Face directory or a GGUF file.
///
/// `progress(done, total)` is called with bytes written so far. The file appears whole or not at all. Gives its size.
///
/// # Errors
/// When the checkpoint cannot be read, or the file cannot be written.
pub fn quantize(from: &Path, to: &Path, options: &PackOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
    let image = crate::model::read_checkpoint(from, options, progress)?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().ok_or_else(|| Error::Argument(format!("{} is not a file name", to.display())))?;
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = File::create_new(&temporary)
        .and_then(|mut file| {
            file.write_all(&image)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, to));
    if let Err(error) = written {
        // Whatever was written is of no use; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(to, error));
    }
    Ok(image.len() as u64)
}

/// One tensor of the packed file.
struct Entry<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
    content: Content<'a>,
}

/// Where a tensor's bytes come from.
enum Content<'a> {
    Trits { rows: usize, cols: usize, packing: Packing, read: TritRows<'a> },
    Bytes(Cow<'a, [u8]>),
}

/// The packed file of a checkpoint, in memory. Errors about the checkpoint as a whole name `path`.
pub(crate) fn pack(
    path: &Path,
    checkpoint: &dyn Checkpoint,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Mmap> {
    let settings = checkpoint.settings();
    let mut config = settings.config;
    let entries = entries(path, checkpoint, options, &mut config)?;

    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata(settings, &config));
    let mut end = 0;
    for entry in &entries {
        let offsets = json!([end, end + entry.bytes]);
        header
            .insert(entry.name.clone(), json!({ "dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets }));
        end += entry.bytes;
    }
    let mut header = Value::Object(header).to_string();
    while !(header.len() + 8).is_multiple_of(ALIGNMENT) {
        header.push(' ');
    }

    let mut image = zeros(8 + header.len() + end)?;
    let (head, mut rest) = image.split_at_mut(8 + header.len());
    head[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
    head[8..].copy_from_slice(header.as_bytes());
    let mut done = 0;
    for entry in entries {
        let (to, behind) = rest.split_at_mut(entry.bytes);
        rest = behind;
        match entry.content {
            Content::Bytes(bytes) => to.copy_from_slice(&bytes),
            Content::Trits { rows, cols, packing, read } => {
                packing.clear(to);
                let mut trits = vec![0; cols];
                for row in 0..rows {
                    read(row, &mut trits)?;
                    packing.pack_row(to, rows, cols, row, &trits)?;
                }
            }
        }
        done += entry.bytes;
        progress(done as u64, end as u64);
    }
    image.make_read_only().map_err(|e| Error::Argument(format!("cannot protect memory: {e}")))
}

/// All tensors, those with the strictest alignment first: trits, then 4-byte, 2-byte and 1-byte numbers.
fn entries<'a>(
    path: &Path,
    checkpoint: &'a dyn Checkpoint,
    options: &PackOptions,
    config: &mut Config,
) -> Result<Vec<Entry<'a>>> {
    let missing = |name: &str| Error::malformed(path, name, "is missing, expected a tensor of this role");
    let mut entries = Vec::new();
    let mut required = |id: MatrixId, name: String, shape: [usize; 2], options: &PackOptions| -> Result<()> {
        let matrix = checkpoint.matrix(id)?.ok_or_else(|| missing(&name))?;
        add_matrix(&mut entries, config, &name, shape, matrix, options)
    };
    let settings = checkpoint.settings().config;
    let table = [settings.vocab_size, settings.hidden_size];
    required(MatrixId::Embedding, "model.embed_tokens".to_owned(), table, options)?;
    let projections = PackOptions { embedding: FloatFormat::Keep, ..*options };
    for n in 0..settings.num_hidden_layers {
        for projection in Projection::ALL {
            let name = format!("model.layers.{n}.{}", projection.name());
            required(MatrixId::Layer(n, projection), name, projection.shape(&settings), &projections)?;
        }
    }
    if let Some(head) = checkpoint.matrix(MatrixId::Head)? {
        add_matrix(&mut entries, config, "lm_head", table, head, options)?;
    }

    let mut vector = |id: VectorId, name: String, required: bool| -> Result<()> {
        match checkpoint.vector(id)? {
            // Else `quantize` would write a file that cannot be opened.
            Some(values) if values.iter().any(|value| !value.is_finite()) => {
                return Err(Error::malformed(path, name, "holds a NaN or an infinity, expected finite numbers"));
            }
            Some(values) => entries.push(floats(name, &values)),
            None if required => return Err(missing(&name)),
            None => {}
        }
        Ok(())
    };
    let Settings { norms, projection_norms, .. } = *checkpoint.settings();
    vector(VectorId::FinalNorm, "model.norm.weight".to_owned(), true)?;
    for n in 0..settings.num_hidden_layers {
        for norm in LayerNorm::ALL {
            vector(
                VectorId::Layer(n, norm),
                format!("model.layers.{n}.{}.weight", norm.name()),
                norm.required() || norms.contains(&norm),
            )?;
        }
        for projection in Projection::ALL {
            let name = format!("model.layers.{n}.{}.norm.weight", projection.name());
            vector(VectorId::Projection(n, projection), name, projection_norms)?;
        }
    }
    entries.sort_by_key(|entry| match (&entry.content, entry.dtype) {
        (Content::Trits { .. }, _) | (_, "U8") => 0,
        (_, "F32") => 1,
        (_, "F16" | "BF16") => 2,
        _ => 3,
    });
    Ok(entries)
}

/// A vector of singles.
fn floats(name: String, values: &[f32]) -> Entry<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes_entry(name, "F32", vec![values.len()], bytes.into())
}

fn bytes_entry<'a>(name: String, dtype: &'static str, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Entry<'a> {
    Entry { name, dtype, shape, bytes: bytes.len(), content: Content::Bytes(bytes) }
}

/// Adds a matrix under the names that [`crate::packed`] looks for.
fn add_matrix<'a>(
    entries: &mut Vec<Entry<'a>>,
    config: &mut Config,
    name: &str,
    shape: [usize; 2],
    matrix: SourceMatrix<'a>,
    options: &PackOptions,
) -> Result<()> {
    let [rows, cols] = shape;
    match matrix {
        SourceMatrix::Trits { scale, rows: read } => {
            let packing = match scale {
                TritScale::Groups { .. } => Packing::Twos,
                _ => options.packing,
            };
            entries.push(Entry {
                name: format!("{name}.{}", trits_ending(packing)),
                dtype: "U8",
                shape: trits_shape(packing, shape).to_vec(),
                bytes: packing.bytes(rows, cols),
                content: Content::Trits { rows, cols, packing, read },
            });
            match scale {
                TritScale::Multiply(scale) => entries.push(floats(format!("{name}.scale"), &[scale])),
                TritScale::Divide(scale) => entries.push(floats(format!("{name}.scale_divisor"), &[scale])),
                TritScale::Groups { size, scales } => {
                    note_group(config, size);
                    entries.push(group_scales(name, rows, cols, size, &scales));
                }
            }
        }
        SourceMatrix::Float { dtype, bytes } => match options.embedding {
            FloatFormat::Keep => {
                let dtype = match dtype {
                    FloatType::F32 => "F32",
                    FloatType::F16 => "F16",
                    FloatType::Bf16 => "BF16",
                };
                entries.push(bytes_entry(format!("{name}.weight"), dtype, vec![rows, cols], bytes));
            }
            FloatFormat::F16 => {
                let half = |i| trion_core::numeric::f32_to_f16(float_at(dtype, &bytes, i)).to_le_bytes();
                let bytes: Vec<u8> = (0..rows * cols).flat_map(half).collect();
                entries.push(bytes_entry(format!("{name}.weight"), "F16", vec![rows, cols], bytes.into()));
            }
            FloatFormat::Int8 => {
                let mut values = Vec::with_capacity(rows * cols);
                let mut scales = Vec::with_capacity(rows);
                for row in 0..rows {
                    let weights = (0..cols).map(|col| float_at(dtype, &bytes, row * cols + col));
                    let largest = weights.clone().fold(0.0, |largest: f32, w| largest.max(w.abs()));
                    let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                    scales.push(scale);
                    values.extend(weights.map(|w| (w / scale).round_ties_even() as i8 as u8));
                }
                entries.push(floats(format!("{name}.row_scales"), &scales));
                entries.push(bytes_entry(format!("{name}.weight"), "I8", vec![rows, cols], values.into()));
            }
            FloatFormat::Int6 => {
                note_group(config, GROUP_COLS);
                let mut packed = vec![0; Int6Matrix::packed_bytes(rows, cols)];
                let (mut codes, mut scales) = (vec![0; cols], vec![0; cols.div_ceil(BLOCK_COLS)]);
                let mut row_scales = vec![0.0; rows];
                let mut weights = vec![0.0; cols];
                for row in 0..rows.next_multiple_of(TILE_ROWS) {
                    weights.fill(0.0);
                    if row < rows {
                        weights
                            .iter_mut()
                            .enumerate()
                            .for_each(|(col, w)| *w = float_at(dtype, &bytes, row * cols + col));
                    }
                    let row_scale = int6_row(&weights, &mut codes, &mut scales);
                    row_scales.get_mut(row).into_iter().for_each(|scale| *scale = row_scale);
                    Int6Matrix::pack_row(&mut packed, rows, cols, row, &codes, &scales)?;
                }
                entries.push(floats(format!("{name}.row_scales"), &row_scales));
                let shape = vec![rows.div_ceil(TILE_ROWS), cols.div_ceil(PAIR_COLS), PAIR_BYTES];
                entries.push(bytes_entry(format!("{name}.int6"), "U8", shape, packed.into()));
            }
        },
    }
    Ok(())
}

/// Has sessions keep activation scales for groups of `size` columns.
fn note_group(config: &mut Config, size: usize) {
    let smallest = config.activation_group;
    config.activation_group = if smallest == 0 { size } else { smallest.min(size) };
}

/// Scales `[rows, groups]` as the kernels read them: `[tiles, groups, 32]`.
fn group_scales(name: &str, rows: usize, cols: usize, size: usize, scales: &[u16]) -> Entry<'static> {
    let groups = cols.div_ceil(size);
    let mut tiled = vec![0_u8; 2 * TernaryMatrix::group_scales(rows, cols, size)];
    for (i, scale) in scales.iter().enumerate() {
        let (row, group) = (i / groups, i % groups);
        let at = (row / TILE_ROWS * groups + group) * TILE_ROWS + row % TILE_ROWS;
        tiled[2 * at..2 * at + 2].copy_from_slice(&scale.to_le_bytes());
    }
    let shape = vec![rows.div_ceil(TILE_ROWS), groups, TILE_ROWS];
    bytes_entry(format!("{name}.group_scales.{size}"), "F16", shape, tiled.into())
}

/// `__metadata__`: strings only, by the safetensors format.
fn metadata(settings: &Settings, config: &Config) -> Value {
    let config = PackedConfig {
        config: *config,
        bos_token_id: settings.bos_token_id,
        eos_token_id: settings.eos_token_ids.clone(),
    };
    let config = config.to_json();
    let mut metadata = Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), Value::String(value));
        }
    };
    put("format", Some(FORMAT.to_owned()));
    put("version", Some(VERSION.to_owned()));
    put("name", Some(settings.name.clone()));
    put("config", Some(config.to_string()));
    put("tokenizer.json", settings.tokenizer_json.clone());
    put("chat_template", settings.chat_template.clone());
    Value::Object(metadata)
}
