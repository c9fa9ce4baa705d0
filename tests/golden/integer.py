"""The decoder families in numpy, written from their formulas: the second opinion on every reference.

Everything between the integers is float64, so the result is what exact arithmetic would give up to about 1e-12. A
float32 implementation differs from it by rounding alone, unless rounding decides an activation's integer. `Ties`
watches for that.

Symbols: x [tokens, in] activations, T [out, in] trits, gamma the weight scale, s = 127 / max|x| the activation scale.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Linear = Callable[[Array], Array]

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder, read from a Hugging Face config."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    theta: float
    activation: str
    tied: bool
    sub_norms: bool
    qk_norms: bool

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Shape":
        """Reads both spellings of the RoPE base: `rope_theta` and `rope_parameters`."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim", config["hidden_size"] // heads),
            vocab=config["vocab_size"],
            eps=config["rms_norm_eps"],
            theta=config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"],
            activation=config["hidden_act"],
            tied=config["tie_word_embeddings"],
            sub_norms=config["architectures"][0].lower() == "bitnetforcausallm",
            qk_norms=config["model_type"] == "qwen3",
        )

    def projection(self, name: str) -> tuple[int, int]:
        """[out, in] of a projection."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden),
            "k_proj": (key, self.hidden),
            "v_proj": (key, self.hidden),
            "o_proj": (self.hidden, query),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[name.rsplit(".", 1)[-1]]

    def norms(self) -> dict[str, int]:
        """The name and length of every norm outside the projections."""
        sizes = {"model.norm": self.hidden}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            sizes[at + "input_layernorm"] = self.hidden
            sizes[at + "post_attention_layernorm"] = self.hidden
            if self.sub_norms:
                sizes[at + "self_attn.attn_sub_norm"] = self.heads * self.head_dim
                sizes[at + "mlp.ffn_sub_norm"] = self.intermediate
            if self.qk_norms:
                sizes[at + "self_attn.q_norm"] = self.head_dim
                sizes[at + "self_attn.k_norm"] = self.head_dim
        return sizes


@dataclass
class Ties:
    """The smallest distance of any value to a half, where rounding would turn, since the last reset."""

    nearest: float = field(default=0.5)

    def reset(self) -> None:
        """Forgets what was seen."""
        self.nearest = 0.5

    def round(self, values: Array) -> Array:
        """Rounds half to even."""
        self.nearest = min(self.nearest, float(np.min(np.abs(np.abs(values - np.trunc(values)) - 0.5))))
        return np.rint(values)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """g x / sqrt(mean(x^2) + eps), along the last axis."""
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def absmean(weight: Array, ties: Ties) -> tuple[Array, float]:
    """Trits and gamma of a float matrix: T = clip(round(W / gamma), -1, 1), gamma = max(mean|W|, 1e-5)."""
    gamma = max(float(np.mean(np.abs(weight))), 1e-5)
    return np.clip(ties.round(weight / gamma), -1, 1).astype(np.int8), gamma


def absmax(x: Array, ties: Ties) -> tuple[Array, Array]:
    """int8 values of each row and its s = 127 / max(max|x|, 1e-5)."""
    scale = 127.0 / np.maximum(np.max(np.abs(x), axis=-1, keepdims=True), 1e-5)
    return np.clip(ties.round(x * scale), -128, 127).astype(np.int64), scale


def bit_linear(trits: Array, gamma: float, ties: Ties, norm: tuple[Array, float] | None = None) -> Linear:
    """y = (q T^T) gamma / s with one gamma; `norm` is the weight and eps of a norm on the input."""
    transposed = trits.T.astype(np.int64)

    def apply(x: Array) -> Array:
        q, scale = absmax(x if norm is None else rms_norm(x, *norm), ties)
        return (q @ transposed) * gamma / scale

    return apply


def group_linear(trits: Array, scales: Array, ties: Ties) -> Linear:
    """One scale d per group of a row and one s per group of a token: y = sum over groups of (q T^T) d / s.

    `scales` is [out, groups]; the activation's groups are the weight's.
    """
    groups = [part.T.astype(np.int64) for part in np.split(trits, scales.shape[1], axis=1)]

    def apply(x: Array) -> Array:
        y = np.zeros((x.shape[0], trits.shape[0]))
        for group, part in enumerate(np.split(x, len(groups), axis=1)):
            q, scale = absmax(part, ties)
            y += (q @ groups[group]) * scales[:, group] / scale
        return y

    return apply


def float_linear(weight: Array) -> Linear:
    """y = x W^T."""
    return lambda x: x @ weight.T


class Decoder:
    """A whole model: float tensors by their Hugging Face name, and a `Linear` for each projection and for `lm_head`."""

    def __init__(self, shape: Shape, tensors: dict[str, Array], linears: dict[str, Linear], ties: Ties) -> None:
        self.shape, self.tensors, self.linears, self.ties = shape, tensors, linears, ties

    def logits(self, ids: list[int]) -> Array:
        """[tokens, vocab] of one sequence from position 0."""
        shape = self.shape
        h = self.tensors["model.embed_tokens"][ids]
        for layer in range(shape.layers):
            at = f"model.layers.{layer}."
            h = h + self._attention(at + "self_attn.", self._norm(at + "input_layernorm", h))
            h = h + self._mlp(at + "mlp.", self._norm(at + "post_attention_layernorm", h))
        return self.linears["lm_head"](self._norm("model.norm", h))

    def _norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.tensors[name], self.shape.eps)

    def _rope(self, x: Array) -> Array:
        """[tokens, heads, head_dim], half-split: element i turns with element i + head_dim / 2."""
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[0])[:, None] * self.shape.theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def _attention(self, at: str, x: Array) -> Array:
        shape, tokens = self.shape, x.shape[0]
        q = self.linears[at + "q_proj"](x).reshape(tokens, shape.heads, shape.head_dim)
        k = self.linears[at + "k_proj"](x).reshape(tokens, shape.kv_heads, shape.head_dim)
        v = self.linears[at + "v_proj"](x).reshape(tokens, shape.kv_heads, shape.head_dim)
        if shape.qk_norms:
            q, k = self._norm(at + "q_norm", q), self._norm(at + "k_norm", k)
        q, k = self._rope(q), self._rope(k)
        out = np.empty_like(q)
        future = np.triu(np.ones((tokens, tokens), dtype=bool), 1)
        for head in range(shape.heads):
            kv = head // (shape.heads // shape.kv_heads)
            scores = q[:, head] @ k[:, kv].T / np.sqrt(shape.head_dim)
            scores[future] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv]
        joined = out.reshape(tokens, -1)
        if shape.sub_norms:
            joined = self._norm(at + "attn_sub_norm", joined)
        return self.linears[at + "o_proj"](joined)

    def _mlp(self, at: str, x: Array) -> Array:
        gate, up = self.linears[at + "gate_proj"](x), self.linears[at + "up_proj"](x)
        active = np.square(np.maximum(gate, 0)) if self.shape.activation == "relu2" else gate / (1 + np.exp(-gate))
        inner = active * up
        if self.shape.sub_norms:
            inner = self._norm(at + "ffn_sub_norm", inner)
        return self.linears[at + "down_proj"](inner)
