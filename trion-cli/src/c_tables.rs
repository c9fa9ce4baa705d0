//! A model as C: the tables of trion.h's section "Bare metal" and the arrays that they point to.

use std::fmt::{Display, Write};

use trion_core::{Activation, FloatData, Layer, LayerNorm, Linear, Matrix, Packing, Projection, Rescale};
use trion_engine::{CacheType, Model, SessionOptions};

use crate::common::Failure;

/// Columns that a line of numbers may have.
const LINE: usize = 110;

/// What the names in C begin with.
pub(crate) struct Names {
    lower: String,
    upper: String,
}

impl Names {
    /// `None` for what is no identifier in C.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let goes_on = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        (begins && goes_on).then(|| Names { lower: name.to_owned(), upper: name.to_ascii_uppercase() })
    }
}

/// The two files, and how much of the program's memory their arrays are.
pub(crate) struct CTables {
    pub(crate) source: String,
    pub(crate) header: String,
    pub(crate) weight_bytes: usize,
    pub(crate) text_bytes: usize,
}

impl CTables {
    /// A model with its tokens' texts, if it has a tokenizer, and a session's options and size.
    ///
    /// # Errors
    /// When the tokenizer cannot be used.
    pub(crate) fn new(
        model: &Model,
        names: &Names,
        options: &SessionOptions,
        session_size: usize,
    ) -> Result<Self, Failure> {
        let Names { lower, upper } = names;
        let mut arrays = Arrays::default();
        let table = model_table(&mut arrays, model);
        let weight_bytes = arrays.bytes;
        let mut source = format!(
            "/* A model for trion.h, made by `trion embed`. */\n#include \"{lower}.h\"\n\n{}{table}",
            arrays.text
        )
        .replace("@NAME", lower);
        let cache = match options.cache {
            CacheType::F32 => "TRION_CACHE_F32",
            CacheType::F16 => "TRION_CACHE_F16",
        };
        let _ = writeln!(
            source,
            "\nconst trion_bare_options {lower}_options = {{\n    .struct_size = sizeof(trion_bare_options),\n    \
             .context = {},\n    .max_batch = {},\n    .cache = {cache},\n}};",
            options.context, options.max_batch
        );
        let (texts, texts_header, text_bytes) = if model.has_tokenizer() {
            texts(model, lower)?
        } else {
            (String::new(), "\n/* The model has no tokenizer, so there are no texts of tokens. */\n".to_owned(), 0)
        };
        source.push_str(&texts);
        let ends: Vec<String> = model.eos_token_ids().iter().map(|id| format!("(token) == {id}u")).collect();
        let ends = if ends.is_empty() { "0".to_owned() } else { ends.join(" || ") };
        let vocabulary = model.config().vocab_size;
        let header = format!(
            "/* A model for trion.h, made by `trion embed`. */
#ifndef {upper}_H
#define {upper}_H

#include <trion.h>

extern const trion_bare_model {lower}_model;

/* Options of a session, and bytes that are enough for its buffer. */
extern const trion_bare_options {lower}_options;
#define {upper}_SESSION_SIZE {session_size}

#define {upper}_VOCAB_SIZE {vocabulary}
/* Whether a token, named once, ends a text. */
#define {upper}_ENDS_TEXT(token) ({ends})
{texts_header}
#endif
"
        );
        Ok(CTables { source, header, weight_bytes, text_bytes })
    }
}

/// Definitions of constant arrays, whose names begin with `@NAME_`.
#[derive(Default)]
struct Arrays {
    text: String,
    bytes: usize,
}

impl Arrays {
    /// Defines an array; gives its name.
    fn add<T: Display>(&mut self, kind: &str, what: &str, element_bytes: usize, values: Vec<T>) -> String {
        let name = format!("@NAME_{}", what.replace('.', "_"));
        self.bytes += element_bytes * values.len();
        let _ = writeln!(self.text, "static const {kind} {name}[{}] = {{", values.len());
        push_numbers(&mut self.text, values);
        self.text.push_str("};\n\n");
        name
    }

    fn floats(&mut self, what: &str, values: Option<&[f32]>) -> String {
        match values {
            Some(values) => {
                let name = self.add("float", what, 4, values.iter().copied().map(literal).collect());
                format!("{{{name}, {}}}", values.len())
            }
            None => "{NULL, 0}".to_owned(),
        }
    }

    /// A matrix; gives what stands for it in the table.
    fn matrix(&mut self, what: &str, matrix: &Matrix<'_>, norm: Option<&[f32]>) -> String {
        let scales = format!("{what}_scales");
        let (form, data, scales, rest) = match matrix {
            Matrix::Ternary(m) => {
                let form = match m.packing() {
                    Packing::Twos => "TWOS",
                    Packing::Fives => "FIVES",
                };
                let data = self.add("uint8_t", what, 1, m.packed().to_vec());
                match m.rescale() {
                    Rescale::Multiply(scale) => (form, data, None, format!(".scale = {}", literal(scale))),
                    Rescale::Divide(scale) => (form, data, None, format!(".scale = {}, .divides = 1", literal(scale))),
                    Rescale::Groups { size, scales: halves } => {
                        let scales = self.add("uint16_t", &scales, 2, halves.to_vec());
                        (form, data, Some(scales), format!(".group = {size}"))
                    }
                }
            }
            Matrix::Int6(m) => {
                let data = self.add("uint8_t", what, 1, m.packed().to_vec());
                let scales = self.add("float", &scales, 4, m.row_scales().iter().copied().map(literal).collect());
                ("INT6", data, Some(scales), String::new())
            }
            Matrix::Float(m) => match m.data() {
                // Bits, since these numbers may be none.
                FloatData::F32(values) => {
                    let bits = values.iter().map(|value| value.to_bits()).collect();
                    ("F32", self.add("uint32_t", what, 4, bits), None, String::new())
                }
                FloatData::F16(bits) => ("F16", self.add("uint16_t", what, 2, bits.to_vec()), None, String::new()),
                FloatData::Bf16(bits) => ("BF16", self.add("uint16_t", what, 2, bits.to_vec()), None, String::new()),
                FloatData::I8 { values, scales: row_scales } => {
                    let data = self.add("int8_t", what, 1, values.to_vec());
                    let scales = self.add("float", &scales, 4, row_scales.iter().copied().map(literal).collect());
                    ("INT8", data, Some(scales), String::new())
                }
            },
        };
        let mut fields = format!(".form = TRION_BARE_{form}, .data = {data}, .size = sizeof {data}");
        if let Some(scales) = scales {
            let _ = write!(fields, ", .scales = {scales}, .scales_size = sizeof {scales}");
        }
        if !rest.is_empty() {
            let _ = write!(fields, ", {rest}");
        }
        if norm.is_some() {
            let _ = write!(fields, ", .norm = {}", self.floats(&format!("{what}_norm"), norm));
        }
        format!("{{{fields}}}")
    }

    fn layer(&mut self, n: usize, layer: &Layer<'_>) -> String {
        let mut fields = String::from("    {\n");
        let field = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        for projection in Projection::ALL {
            let Linear { matrix, norm } = layer.projection(projection);
            let name = field(projection.name());
            let value = self.matrix(&format!("{n}_{name}"), matrix, *norm);
            let _ = writeln!(fields, "        .{name} = {value},");
        }
        for norm in LayerNorm::ALL {
            let name = field(norm.name());
            let value = self.floats(&format!("{n}_{name}"), layer.norm(norm));
            let _ = writeln!(fields, "        .{name} = {value},");
        }
        fields + "    },\n"
    }
}

/// The table of a model, behind the arrays that it points to.
fn model_table(arrays: &mut Arrays, model: &Model) -> String {
    let core = model.core();
    let c = core.config();
    let embedding = arrays.matrix("embedding", core.embedding(), None);
    let layers: String = core.layers().iter().enumerate().map(|(n, layer)| arrays.layer(n, layer)).collect();
    let norm = arrays.floats("norm", Some(core.norm()));
    let head =
        if core.is_tied() { "{.form = TRION_BARE_NONE}".to_owned() } else { arrays.matrix("head", core.head(), None) };
    let act = match c.hidden_act {
        Activation::Relu2 => "RELU2",
        Activation::Silu => "SILU",
    };
    format!(
        "static const trion_bare_layer @NAME_layers[{}] = {{\n{layers}}};

const trion_bare_model @NAME_model = {{
    .struct_size = sizeof(trion_bare_model),
    .config = {{
        .vocab_size = {},
        .hidden_size = {},
        .intermediate_size = {},
        .num_hidden_layers = {},
        .num_attention_heads = {},
        .num_key_value_heads = {},
        .head_dim = {},
        .max_position_embeddings = {},
        .hidden_act = TRION_BARE_{act},
        .activation_group = {},
        .rms_norm_eps = {},
        .projection_norm_eps = {},
        .rope_theta = {},
    }},
    .embedding = {embedding},
    .layers = @NAME_layers,
    .norm = {norm},
    .head = {head},
}};
",
        c.num_hidden_layers,
        c.vocab_size,
        c.hidden_size,
        c.intermediate_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        c.max_position_embeddings,
        c.activation_group,
        literal(c.rms_norm_eps),
        literal(c.projection_norm_eps),
        literal(c.rope_theta),
    )
}

/// The tokens' texts: their definitions, their declarations, and their bytes in the program.
fn texts(model: &Model, name: &str) -> Result<(String, String, usize), Failure> {
    let (tokenizer, count) = (model.tokenizer()?, model.config().vocab_size);
    let (mut bytes, mut places) = (Vec::new(), vec![0]);
    for id in 0..count {
        bytes.extend(tokenizer.token_bytes(id as u32));
        places.push(bytes.len());
    }
    // C has no arrays without elements.
    bytes.push(0);
    let size = bytes.len() + 4 * places.len();
    let mut source = format!("\nconst unsigned char {name}_texts[{}] = {{\n", bytes.len());
    push_numbers(&mut source, bytes);
    let _ = writeln!(source, "}};\n\nconst uint32_t {name}_text_places[{}] = {{", count + 1);
    push_numbers(&mut source, places);
    source.push_str("};\n");
    let header = format!(
        "
/*
 * The bytes of token t's text, UTF-8 when put together, are {name}_texts[{name}_text_places[t]] and what follows, up to
 * {name}_texts[{name}_text_places[t + 1]], which is not one of them. Special tokens have none.
 */
extern const unsigned char {name}_texts[];
extern const uint32_t {name}_text_places[{count} + 1];
"
    );
    Ok((source, header, size))
}

/// A float that C reads as the same one: the shortest decimal number that is nearest to it.
fn literal(value: f32) -> String {
    format!("{value:?}f")
}

/// Numbers in lines.
fn push_numbers<T: Display>(text: &mut String, values: Vec<T>) {
    let mut start = text.len();
    for value in values {
        if text.len() - start > LINE - 12 {
            text.push('\n');
            start = text.len();
        }
        let _ = write!(text, "{value},");
    }
    text.push('\n');
}
