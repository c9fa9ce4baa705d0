"""The cases: what each checkpoint is, how it is stored, and the seed of its weights."""

from dataclasses import dataclass, field
from typing import Any

import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class Case:
    """One checkpoint to make. `storage` says how its projections are stored:

    packed   trits, four rows to a byte, with a weight_scale
    online   float master weights, made ternary at each use
    groups   floats that are -d, 0 or d in every group of 128 along a row
    float    plain floats
    """

    name: str
    family: str
    note: str
    config: dict[str, Any]
    storage: str
    seed: int
    dtype: torch.dtype = BF16
    embedding_dtype: torch.dtype | None = None
    rename: dict[str, str] = field(default_factory=dict)
    reference_config: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    tokenizer: bool = False


def config(
    architecture: str, model_type: str, vocab: int, hidden: int, intermediate: int, **more: Any
) -> dict[str, Any]:
    """The keys that every config has, as the published files spell them."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "bos_token_id": vocab - 3,
        "eos_token_id": vocab - 2,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    } | more


def bitnet_config(vocab: int, hidden: int, intermediate: int, mode: str, **more: Any) -> dict[str, Any]:
    """microsoft/bitnet-b1.58-2B-4T in small."""
    keys = {
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode},
    }
    return config("BitNetForCausalLM", "bitnet", vocab, hidden, intermediate, **(keys | more))


def llama_config(vocab: int, hidden: int, intermediate: int, **more: Any) -> dict[str, Any]:
    """A Llama, float unless a quantization_config says otherwise."""
    keys = {"hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
    return config("LlamaForCausalLM", "llama", vocab, hidden, intermediate, **(keys | more))


def qwen3_config(vocab: int, hidden: int, intermediate: int, head_dim: int, **more: Any) -> dict[str, Any]:
    """A Qwen3, in the spelling of transformers 5."""
    keys = {
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    } | more
    made = config("Qwen3ForCausalLM", "qwen3", vocab, hidden, intermediate, **keys)
    made["dtype"] = made.pop("torch_dtype")
    del made["rope_theta"]
    return made


BITLINEAR = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"], "linear_class": "bitlinear"}

CHECKPOINTS = (
    Case(
        "bitnet_offline",
        "autobitlinear, offline",
        "packed u8 [out/4, in]; y = actq(x) @ T^T * weight_scale",
        bitnet_config(288, 64, 176, "offline", num_hidden_layers=2),
        "packed",
        seed=1,
        tokenizer=True,
    ),
    Case(
        "bitnet_online",
        "autobitlinear, online",
        "bf16 master weights, made ternary by absmean in float32 at every forward",
        bitnet_config(100, 64, 96, "online"),
        "online",
        seed=12,
    ),
    Case(
        "llama_bitlinear",
        "bitlinear",
        "packed; y = (int8(x) @ T^T) / (weight_scale * act_scale), weight_scale = 1 / gamma; two shards",
        llama_config(72, 64, 176, num_hidden_layers=2, rope_theta=500000.0, quantization_config=BITLINEAR),
        "packed",
        seed=3,
        shards=2,
    ),
    Case(
        "llama_rms_norm",
        "bitlinear with use_rms_norm",
        "as llama_bitlinear, in one file, with an RMSNorm inside every projection",
        llama_config(
            64,
            64,
            176,
            quantization_config=BITLINEAR
            | {"quantization_mode": "offline", "use_rms_norm": True, "rms_norm_eps": 1e-6},
        ),
        "packed",
        seed=4,
    ),
    Case(
        "1bitllm",
        "1bitLLM",
        "fp32 master weights, online; the reference is BitNetForCausalLM(online) after renaming"
        " inner_attn_ln -> attn_sub_norm, ffn_layernorm -> ffn_sub_norm",
        config(
            "BitnetForCausalLM",
            "llama",
            64,
            48,
            80,
            num_attention_heads=3,
            num_key_value_heads=3,
            hidden_act="silu",
            tie_word_embeddings=True,
            torch_dtype="float32",
            weight_bits=1,
            input_bits=8,
        ),
        "online",
        seed=5,
        dtype=F32,
        rename={"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"},
        reference_config={
            "architectures": ["BitNetForCausalLM"],
            "model_type": "bitnet",
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "online",
            },
        },
    ),
    Case(
        "llama_float",
        "float",
        "plain float32 Llama",
        llama_config(
            64,
            32,
            80,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            torch_dtype="float32",
        ),
        "float",
        seed=6,
        dtype=F32,
    ),
    Case(
        "qwen3_online",
        "autobitlinear, online, Qwen3",
        "bf16 master weights; q_norm and k_norm; heads * head_dim = 96 while hidden is 64; keys of transformers 5",
        qwen3_config(
            64,
            64,
            96,
            head_dim=24,
            quantization_config={
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "online",
            },
        ),
        "online",
        seed=7,
    ),
    Case(
        "qwen3_groups",
        "group scales",
        "f16 weights that are -d, 0 or d in every 128 of a row, embedding and head too; some groups are all zero."
        " The reference is plain float32, without activation quantisation",
        qwen3_config(32, 128, 256, head_dim=32, tie_word_embeddings=False, dtype="float16"),
        "groups",
        seed=8,
        dtype=F16,
    ),
)

GGUFS = (
    (
        Case(
            "gguf/small",
            "GGUF",
            "the same weights in both files; i2_s is written as the published 2B model (arch bitnet-b1.58, no"
            " activation key, no tokenizer.ggml.pre), q2_0 as llama.cpp's bitnet",
            bitnet_config(64, 128, 256, "offline", torch_dtype="float32"),
            "packed",
            seed=9,
            dtype=F32,
            embedding_dtype=F16,
            tokenizer=True,
        ),
        ("i2_s", "q2_0"),
    ),
    (
        Case(
            "gguf/wide",
            "GGUF",
            "the same weights in both files; rows of 256, the block of the TQ types; no tokenizer",
            bitnet_config(32, 256, 256, "offline", num_key_value_heads=1, torch_dtype="float32"),
            "packed",
            seed=11,
            dtype=F32,
            embedding_dtype=F16,
        ),
        ("tq1_0", "tq2_0"),
    ),
)
