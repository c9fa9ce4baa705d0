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
        write_file(directory, "tokenizer.json", tokenizer)?;
        write_json(directory, "tokenizer_config.json", &tokenizer_config(model))?;
    }
    Ok(())
}

/// Shapes in the names of Hugging Face. The type is that of the runtimes' own decoders with the same inputs and outputs; what
/// the blocks compute is in the graph.
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
        "transformers.js_config": { "dtype": "fp32", "use_external_data_format": external },
    })
}

fn generation_config(model: &Model) -> Value {
    json!({ "bos_token_id": model.bos_token_id(), "eos_token_id": model.eos_token_ids(), "do_sample": false })
}

fn genai_config(model: &Model) -> Value {
    let config = model.config();
    let eos = model.eos_token_ids();
    json!({
        "model": {
            "type": "decoder",
            "bos_token_id": model.bos_token_id().unwrap_or(0),
            "eos_token_id": eos,
            "pad_token_id": eos.first().copied().unwrap_or(0),
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "decoder": {
                "filename": GRAPH_FILE,
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
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
        },
        "search": {
            "do_sample": false,
            "max_length": config.max_position_embeddings,
            // The graph gives longer keys and values than it takes, so one buffer cannot hold both.
            "past_present_share_buffer": false,
        },
    })
}

fn tokenizer_config(model: &Model) -> Value {
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    if let Some(template) = model.chat_template_source() {
        config["chat_template"] = template.into();
    }
    config
}

fn write_json(directory: &Path, name: &str, value: &Value) -> Result<()> {
    write_file(directory, name, &format!("{value:#}\n"))
}

fn write_file(directory: &Path, name: &str, content: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).map_err(|e| Error::io(&path, e))
}
