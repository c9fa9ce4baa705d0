//! `config.json` and its companions.

use std::fs;
use std::path::Path;

use serde_json::Value;
use trion_core::{Activation, Config};

use crate::error::{Error, Result};
use crate::source::{QUERY_KEY_NORMS, SUB_NORMS, Settings};

/// What the checkpoint's linear layers hold, by `quantization_config` (formats.md, "Formats and reference semantics").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinearKind {
    /// Packed trits; outputs are multiplied by `weight_scale` (`AutoBitLinear`, offline).
    PackedMultiply,
    /// Packed trits; outputs are divided by `weight_scale` (`BitLinear`).
    PackedDivide,
    /// Float masters, made ternary by absmean (online).
    Masters,
    /// Floats as they are, or trits by groups.
    Float,
}

/// Everything that `config.json` and the files beside it say.
pub(super) struct HfConfig {
    pub(super) settings: Settings,
    pub(super) linear: LinearKind,
    /// Whether the head is the embedding; `None` where the file does not say.
    pub(super) tied: Option<bool>,
}

/// A JSON object of a file, with errors that name both.
struct Object<'a> {
    file: &'a Path,
    json: &'a Value,
}

impl<'a> Object<'a> {
    /// A field that is present and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        let mut found = found.to_string();
        found.truncate(found.char_indices().nth(60).map_or(found.len(), |(at, _)| at));
        Error::malformed(self.file, key, format!("is {found}, expected {expected}"))
    }

    fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| self.wrong(key, value, "a whole number")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::malformed(self.file, key, "is missing, expected a whole number")),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.size_or(key, None)
    }

    fn float_or(&self, key: &str, default: f32) -> Result<f32> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_f64().map(|n| n as f32).ok_or_else(|| self.wrong(key, value, "a number"))
        })
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.flag(key)?.unwrap_or(default))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))).transpose()
    }

    fn text_or(&self, key: &str, default: &'a str) -> Result<&'a str> {
        self.get(key).map_or(Ok(default), |value| value.as_str().ok_or_else(|| self.wrong(key, value, "a string")))
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.tokens(key)?.into_iter().next())
    }

    /// A token id, or a list of them.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        list.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }

    /// An object within this one.
    fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        self.get(key)
            .map(|json| if json.is_object() { Ok(json) } else { Err(self.wrong(key, json, "an object")) })
            .map(|json| Ok(Object { file: self.file, json: json? }))
            .transpose()
    }

    fn unsupported(&self, key: &str, message: impl Into<String>) -> Error {
        Error::unsupported(self.file, key, message)
    }
}

impl HfConfig {
    /// Reads `config.json`, `generation_config.json`, `tokenizer.json` and the chat template of a directory.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let file = directory.join("config.json");
        let json = read_json(&file)?;
        let object = Object { file: &file, json: &json };
        let architecture = match object.get("architectures").and_then(|list| list.get(0)) {
            Some(name) => name.as_str().ok_or_else(|| object.wrong("architectures", name, "a list of names"))?,
            None => return Err(Error::malformed(&file, "architectures", "is missing, expected a list of names")),
        };
        // 1bitLLM's class differs from Microsoft's by one letter; its model_type is llama.
        let bitnet = architecture == "BitNetForCausalLM";
        let one_bit = architecture == "BitnetForCausalLM";
        if !bitnet && !one_bit && !["LlamaForCausalLM", "Qwen3ForCausalLM"].contains(&architecture) {
            let message = format!(
                "is {architecture}; supported are BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM and \
                 Qwen3ForCausalLM"
            );
            return Err(object.unsupported("architectures", message));
        }
        for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            if object.flag_or(key, false)? {
                return Err(object.unsupported(key, "is true; only false is supported"));
            }
        }
        let (linear, projection_norm_eps) = linear_kind(&object, one_bit)?;
        let hidden_size = object.size("hidden_size")?;
        let heads = object.size("num_attention_heads")?;
        let config = Config {
            vocab_size: object.size("vocab_size")?,
            hidden_size,
            intermediate_size: object.size("intermediate_size")?,
            num_hidden_layers: object.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: object.size_or("num_key_value_heads", Some(heads))?,
            head_dim: object.size_or("head_dim", Some(hidden_size.checked_div(heads).unwrap_or(0)))?,
            max_position_embeddings: object.size_or("max_position_embeddings", Some(2048))?,
            rms_norm_eps: object.float_or("rms_norm_eps", 1e-6)?,
            projection_norm_eps,
            rope_theta: rope_theta(&object)?,
            hidden_act: hidden_act(&object, if bitnet { "relu2" } else { "silu" })?,
            activation_group: 0,
        };
        config.validate().map_err(|e| Error::malformed(&file, "config", e.to_string()))?;

        // Qwen's configurations name a first token that its texts do not begin with.
        let begins = architecture != "Qwen3ForCausalLM";
        let mut bos = object.token("bos_token_id")?.filter(|_| begins);
        let mut eos = object.tokens("eos_token_id")?;
        let generation = directory.join("generation_config.json");
        if generation.exists() {
            let json = read_json(&generation)?;
            let object = Object { file: &generation, json: &json };
            bos = object.token("bos_token_id")?.filter(|_| begins).or(bos);
            eos.extend(object.tokens("eos_token_id")?);
            eos.sort_unstable();
            eos.dedup();
        }
        let name =
            directory.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let settings = Settings {
            config,
            bos_token_id: bos,
            eos_token_ids: eos,
            tokenizer_json: read_optional(&directory.join("tokenizer.json"))?,
            chat_template: chat_template(directory)?,
            name: name.unwrap_or_else(|| architecture.to_owned()),
            norms: match architecture {
                "BitNetForCausalLM" | "BitnetForCausalLM" => SUB_NORMS,
                "Qwen3ForCausalLM" => QUERY_KEY_NORMS,
                _ => &[],
            },
            projection_norms: match object.object("quantization_config")? {
                Some(quantization) => quantization.flag_or("use_rms_norm", false)?,
                None => false,
            },
        };
        Ok(HfConfig { settings, linear, tied: object.flag("tie_word_embeddings")? })
    }
}

/// The kind of linear layers, and the epsilon of norms inside them.
fn linear_kind(object: &Object<'_>, one_bit: bool) -> Result<(LinearKind, f32)> {
    const DEFAULT_EPS: f32 = 1e-6;
    let Some(quantization) = object.object("quantization_config")? else {
        let kind = if one_bit { LinearKind::Masters } else { LinearKind::Float };
        return Ok((kind, DEFAULT_EPS));
    };
    let method = quantization.text_or("quant_method", "")?;
    if method != "bitnet" {
        let message = format!("is {method:?}; only \"bitnet\" is supported");
        return Err(quantization.unsupported("quantization_config.quant_method", message));
    }
    let unconverted = match quantization.get("modules_to_not_convert") {
        Some(Value::Array(names)) => names.as_slice(),
        Some(other) => return Err(quantization.wrong("modules_to_not_convert", other, "a list of names")),
        None => &[],
    };
    for module in unconverted {
        if module.as_str() != Some("lm_head") {
            let message = format!("names {module}; only \"lm_head\" can stay unconverted");
            return Err(quantization.unsupported("quantization_config.modules_to_not_convert", message));
        }
    }
    let class = quantization.text_or("linear_class", "bitlinear")?;
    let mode = quantization.text_or("quantization_mode", "offline")?;
    let kind = match (class, mode) {
        ("bitlinear", "offline") => LinearKind::PackedDivide,
        ("autobitlinear", "offline") => LinearKind::PackedMultiply,
        ("bitlinear" | "autobitlinear", "online") => LinearKind::Masters,
        _ => {
            let message = format!(
                "has linear_class {class:?} and quantization_mode {mode:?}; supported are bitlinear and autobitlinear, \
                 offline and online"
            );
            return Err(quantization.unsupported("quantization_config", message));
        }
    };
    Ok((kind, quantization.float_or("rms_norm_eps", DEFAULT_EPS)?))
}

/// The base of the rotary embedding, by the old name or that of transformers 5. Scaled variants are refused.
fn rope_theta(object: &Object<'_>) -> Result<f32> {
    let mut theta = object.float_or("rope_theta", 10_000.0)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = object.object(key)? else { continue };
        let kind = rope.text_or("rope_type", rope.text_or("type", "default")?)?;
        if kind != "default" {
            return Err(object.unsupported(key, format!("has rope_type {kind:?}; only \"default\" is supported")));
        }
        theta = rope.float_or("rope_theta", theta)?;
    }
    Ok(theta)
}

fn hidden_act(object: &Object<'_>, default: &str) -> Result<Activation> {
    match object.text_or("hidden_act", "")? {
        "" if default == "relu2" => Ok(Activation::Relu2),
        "" | "silu" | "swish" => Ok(Activation::Silu),
        "relu2" => Ok(Activation::Relu2),
        other => Err(object.unsupported("hidden_act", format!("is {other:?}; supported are relu2 and silu"))),
    }
}

/// The chat template: a file of its own, or a field of `tokenizer_config.json`, whose list form has one named "default".
fn chat_template(directory: &Path) -> Result<Option<String>> {
    if let Some(text) = read_optional(&directory.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let file = directory.join("tokenizer_config.json");
    if !file.exists() {
        return Ok(None);
    }
    let json = read_json(&file)?;
    let object = Object { file: &file, json: &json };
    match object.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|t| t.get("template")?.as_str()).map(str::to_owned))
        }
        Some(other) => Err(object.wrong("chat_template", other, "a template or a list of named templates")),
    }
}

fn read_json(file: &Path) -> Result<Value> {
    let bytes = fs::read(file).map_err(|e| Error::io(file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::malformed(file, "file", format!("is not JSON: {e}")))
}

fn read_optional(file: &Path) -> Result<Option<String>> {
    if !file.exists() {
        return Ok(None);
    }
    let bytes = fs::read(file).map_err(|e| Error::io(file, e))?;
    let text = String::from_utf8(bytes).map_err(|e| Error::malformed(file, "file", format!("is not UTF-8: {e}")))?;
    Ok(Some(text))
}
