"""GGUF files of a BitNet model in four ternary types. Every packer takes trits [out, in] and one scale."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

import bpe
from integer import Array, Shape

# ggml type number and general.file_type of each format. PyPI's gguf knows only the TQ types.
TYPES = {"i2_s": (36, 40), "tq1_0": (34, 36), "tq2_0": (35, 37), "q2_0": (42, 41)}

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _with_scale(codes: Array, scale: float, scale_first: bool) -> Array:
    """Joins each block's code bytes [blocks, n] with the scale as f16."""
    if np.float16(scale) != scale:
        raise SystemExit(f"a scale of {scale} has no exact f16")
    d = np.full((codes.shape[0], 1), scale, dtype="<f2").view(np.uint8)
    return np.concatenate([d, codes] if scale_first else [codes, d], axis=1)


def _ternary_bytes(codes: Array, digits: tuple[int, ...]) -> Array:
    """codes [blocks, trits of a byte, bytes] -> ceil(256 v / 243) with v the number in base 3."""
    value = np.tensordot(codes.astype(np.uint16), np.array(digits, dtype=np.uint16), axes=([1], [0]))
    return ((value * 256 + 242) // 243).astype(np.uint8)


def pack_tq1_0(trits: Array, scale: float) -> Array:
    """256 weights in 54 bytes: 48 bytes of five trits, 4 bytes of four, f16 scale."""
    codes = (trits.reshape(-1, 256) + 1).astype(np.uint8)
    powers = (81, 27, 9, 3, 1)
    head = _ternary_bytes(codes[:, :160].reshape(-1, 5, 32), powers)
    body = _ternary_bytes(codes[:, 160:240].reshape(-1, 5, 16), powers)
    tail = _ternary_bytes(codes[:, 240:].reshape(-1, 4, 4), powers[:4])
    return _with_scale(np.concatenate([head, body, tail], axis=1), scale, scale_first=False)


def pack_tq2_0(trits: Array, scale: float) -> Array:
    """256 weights in 66 bytes: each half of 128 in 32, weight 32 n + j in bits 2n of byte j; then the f16 scale."""
    codes = (trits.reshape(-1, 2, 4, 32) + 1).astype(np.uint8)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return _with_scale(packed.reshape(-1, 64), scale, scale_first=False)


def pack_q2_0(trits: Array, scale: float) -> Array:
    """64 weights in 18 bytes: f16 scale, then weight j in bits 2 (j mod 4) of byte j / 4."""
    codes = (trits.reshape(-1, 16, 4) + 1).astype(np.uint8)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    return _with_scale(packed, scale, scale_first=True)


def pack_i2_s(trits: Array, scale: float) -> Array:
    """The whole tensor: 128 weights in 32 bytes, weight j + 32 k in bits 6 - 2k of byte j; f32 scale, 28 zeros."""
    codes = (trits.reshape(-1, 4, 32) + 1).astype(np.uint8)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    tail = np.zeros(32, dtype=np.uint8)
    tail[:4] = np.array([scale], dtype="<f4").view(np.uint8)
    return np.concatenate([packed.reshape(-1), tail])


PACKERS = {"i2_s": pack_i2_s, "tq1_0": pack_tq1_0, "tq2_0": pack_tq2_0, "q2_0": pack_q2_0}


def _checked(kind: str, trits: Array, scale: float) -> Array:
    """Packs, and where PyPI's gguf can read the type, reads it back."""
    packed = PACKERS[kind](trits, scale)
    if kind in ("tq1_0", "tq2_0"):
        back = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(TYPES[kind][0])).reshape(trits.shape)
        if not np.array_equal(back, trits * np.float32(scale)):
            raise SystemExit(f"{kind}: the gguf package reads other weights than were packed")
    return packed


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, named_split: bool) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    specials = (bpe.BOS, bpe.EOS, bpe.EOT)
    writer.add_tokenizer_model("gpt2")
    if named_split:
        writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in specials else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(ids[bpe.BOS])
    writer.add_eos_token_id(ids[bpe.EOS])
    writer.add_add_bos_token(True)


def write(
    path: Path,
    kind: str,
    config: dict[str, Any],
    tensors: dict[str, Array],
    ternary: dict[str, tuple[Array, float]],
    tokenizer: Tokenizer | None,
) -> None:
    """One file: `tensors` are the embedding and norms by Hugging Face name, `ternary` the projections with scales.

    I2_S files follow the published 2B model: architecture `bitnet-b1.58`, no activation key (ReLU^2 is implied) and no
    name for the pre-tokenizer. The others have llama.cpp's architecture `bitnet` and name their activation.
    """
    shape = Shape.from_config(config)
    published = kind == "i2_s"
    arch = "bitnet-b1.58" if published else "bitnet"
    writer = gguf.GGUFWriter(None, arch)
    writer.add_name("golden")
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.theta)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(2)
    if not published:
        writer.add_string("bitnet.hidden_activation", shape.activation)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, named_split=not published)

    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens"].astype(np.float16))
    writer.add_tensor("output_norm.weight", tensors["model.norm"].astype(np.float32))
    for name, value in {**tensors, **ternary}.items():
        if not name.startswith("model.layers."):
            continue
        layer, inner = name.removeprefix("model.layers.").split(".", 1)
        name = f"blk.{layer}.{NAMES[inner]}.weight"
        if isinstance(value, tuple):
            trits, scale = value
            packed = _checked(kind, trits, scale)
            # A plain number as the type, and a view that is not uint8, keep the writer from deriving the shape itself.
            writer.add_tensor(name, packed.view(np.int8), raw_shape=trits.shape, raw_dtype=TYPES[kind][0])
        else:
            writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
