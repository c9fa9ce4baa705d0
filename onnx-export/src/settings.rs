//! The files beside the graph, by which onnxruntime-genai and transformers.js open the folder.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trion_core::Activation;
use trion_engine::Model;

use crate::error::{Error, Result};
use crate::export::{DATA_FILE, ExportOptions, GRAPH_FILE};

/// All of them.
pub(crate) const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"];

/// Writes them; those of onnxruntime-genai only for a graph with a cache, which it needs.
pub(crate) fn write(model: &Model, directory: &Path, options: &ExportOptions) -> Result<()> {
    let external = directory.join(DATA_FILE).exists();
    write_json(directory, "config.json", &config(model, external))?;
    write_json(directory, "generation_config.json", &generation_config(model))?;
    if options.cache {
        write_json(directory, "genai_config.json", &genai_config(model))?;
    }
    if let Some(tokenizer) = model.tokenizer_json() {
        write_file(directory, "tokenizer.json", &with_first_token(model, tokenizer)?)?;
        write_json(directory, "tokenizer_config.json", &tokenizer_config(model)?)?;
    }
    Ok(())
}

/// Shapes in the names of Hugging Face. The type is that of the runtimes' own decoders with the same inputs and
/// outputs; what the blocks compute is in the graph.
fn config(model: &Model, external: bool) -> Value {
    let config = model.config();
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": match config.hidden_act {
            Activation::Relu2 => "relu2",
            Activation::Silu => "silu",
        },
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "bos_token_id": model.bos_token_id(),
        "eos_token_id": model.eos_token_ids(),
        // Without these, transformers.js looks in browsers for a quantised file, and for no data file.
        "transformers.js_config": { "dtype": "fp32", "use_external_data_format": external },
    })
}

fn generation_config(model: &Model) -> Value {
    json!({ "bos_token_id": model.bos_token_id(), "eos_token_id": model.eos_token_ids(), "do_sample": false })
}

/// onnxruntime-genai refuses keys that it does not know, and null.
fn genai_config(model: &Model) -> Value {
    let config = model.config();
    let mut settings = json!({
        // Not "bitnet", which it does not know.
        "type": "decoder",
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "decoder": {
            "filename": GRAPH_FILE,
            "head_size": config.head_dim,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "num_key_value_heads": config.num_key_value_heads,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    });
    if let Some(bos) = model.bos_token_id() {
        settings["bos_token_id"] = bos.into();
    }
    if let [end, ..] = model.eos_token_ids() {
        settings["eos_token_id"] = model.eos_token_ids().into();
        settings["pad_token_id"] = (*end).into();
    }
    json!({
        "model": settings,
        "search": {
            "do_sample": false,
            "max_length": config.max_position_embeddings,
            // The graph gives longer keys and values than it takes, so one buffer cannot hold both.
            "past_present_share_buffer": false,
        },
    })
}

fn tokenizer_config(model: &Model) -> Result<Value> {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": model.bos_token_id().is_some(),
        "add_eos_token": false,
        // Text comes back as it was.
        "clean_up_tokenization_spaces": false,
        "model_max_length": model.config().max_position_embeddings,
    });
    let tokenizer = model.tokenizer()?;
    if let Some(bos) = model.bos_token_id().and_then(|id| tokenizer.id_to_token(id)) {
        config["bos_token"] = bos.into();
    }
    if let Some(eos) = model.eos_token_ids().first().and_then(|id| tokenizer.id_to_token(*id)) {
        config["eos_token"] = eos.into();
    }
    if let Some(template) = model.chat_template_source() {
        config["chat_template"] = template.into();
    }
    Ok(config)
}

/// A `tokenizer.json` by which prompts begin with the model's first token. Trion sees to that itself where the file
/// does not say it; other programs go by the file.
fn with_first_token(model: &Model, tokenizer: &str) -> Result<String> {
    let Some(bos) = model.bos_token_id() else { return Ok(tokenizer.to_owned()) };
    let own = model.tokenizer()?;
    let Some(written) = own.id_to_token(bos) else { return Ok(tokenizer.to_owned()) };
    if own.encode("", true)?.first() == Some(&bos) {
        return Ok(tokenizer.to_owned());
    }
    let mut file: Value =
        serde_json::from_str(tokenizer).map_err(|e| Error::Argument(format!("tokenizer.json: {e}")))?;
    let special = json!({ "SpecialToken": { "id": written, "type_id": 0 } });
    let text = |id: &str, kind: u32| json!({ "Sequence": { "id": id, "type_id": kind } });
    let mut special_tokens = json!({});
    special_tokens[&written] = json!({ "id": written, "ids": [bos], "tokens": [written] });
    let first = json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": special_tokens,
    });
    file["post_processor"] = match file["post_processor"].take() {
        Value::Null => first,
        other => json!({ "type": "Sequence", "processors": [other, first] }),
    };
    Ok(file.to_string())
}

fn write_json(directory: &Path, name: &str, value: &Value) -> Result<()> {
    write_file(directory, name, &format!("{value:#}\n"))
}

fn write_file(directory: &Path, name: &str, content: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).map_err(|e| Error::io(&path, e))
}
