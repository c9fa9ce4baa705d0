"""Makes the golden data beside this file: tiny checkpoints with random weights, and what transformers makes of them.

    pip install transformers==5.23.0 torch safetensors accelerate gguf
    python tests/golden/make.py [--out FOLDER] [NAME ...]

A case is a folder:
    config.json, model.safetensors (or shards and their index), or *.gguf
    reference.safetensors   for each prompt K: input_ids_K [tokens] i32, logits_K [tokens, vocab] f32, greedy_K [16] i32
    case.json               family, prompts, how they were checked, versions
    tokenizer.json, tokenizer_vectors.json   in some

The reference is float32 throughout: stored tensors are up-cast, attention is eager with a mask of ones, and each greedy
token comes from a forward pass over the whole sequence without a cache.

Where a value that is to become an integer lies close to a half, two correct programs may round it differently. A prompt
is therefore kept only if `integer.py`, which shares no code with transformers, agrees on every logit of the prompt and
of its greedy continuation, no rounding was nearer than `TIE` to a half, every greedy token won by more than `MARGIN`,
and the continuation has at least `VARIETY` different tokens: one token repeated would hide a cache that does not move.

The same machine and versions give the same bytes; another processor may change the last bits of the logits.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

sys.dont_write_bytecode = True

import bpe
import gguf_files
import integer
from cases import BF16, CHECKPOINTS, F32, GGUFS, Case
from integer import Array, Decoder, Shape, Ties

LENGTHS = (1, 9, 24)
STEPS = 16
AGREE = 1e-4
MARGIN = 0.01
TIE = 1e-4
VARIETY = 4
ATTEMPTS = 4000
GROUP = 128


@dataclass
class Built:
    """A case's tensors as stored, the same model in numpy, and its packed projections as (trits, gamma)."""

    stored: dict[str, torch.Tensor]
    decoder: Decoder
    ternary: dict[str, tuple[Array, float]]


# -------------------------------------------------------------------------------------------------------------- weights


def pack(trits: Array) -> torch.Tensor:
    """[out, in] trits -> u8 [out / 4, in]: bits 2k of row r hold T[r + k out / 4] + 1."""
    quarters = np.split((trits + 1).astype(np.uint8), 4)
    return torch.from_numpy(quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6)


def random_groups(rng: np.random.Generator, rows: int, columns: int, gain: float) -> tuple[Array, Array]:
    """Trits [rows, columns] and f16 scales [rows, columns / 128]. One group in sixty-four is all zero."""
    trits = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    groups = columns // GROUP
    scales = (gain * rng.uniform(0.5, 1.5, (rows, groups))).astype(np.float16)
    trits.reshape(rows * groups, GROUP)[::64] = 0
    return trits, scales


def build(case: Case) -> Built:
    """Draws the weights of a case, rounds them to their stored types, and builds the numpy model from the result."""
    rng = np.random.default_rng(case.seed)
    shape = Shape.from_config(case.config)
    quantization = case.config.get("quantization_config", {})
    ties = Ties()
    stored: dict[str, torch.Tensor] = {}
    tensors: dict[str, Array] = {}
    linears: dict[str, integer.Linear] = {}
    ternary: dict[str, tuple[Array, float]] = {}

    def store(name: str, values: Array, dtype: torch.dtype) -> Array:
        stored[name] = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(dtype)
        return stored[name].double().numpy()

    def table(name: str) -> Array:
        """The embedding or the head, [vocab, hidden]."""
        dtype = case.embedding_dtype or case.dtype
        if case.storage == "groups":
            trits, scales = random_groups(rng, shape.vocab, shape.hidden, 0.35)
            return store(name + ".weight", trits * np.repeat(scales, GROUP, axis=1), dtype)
        return store(
            name + ".weight", 1.6 / np.sqrt(shape.hidden) * rng.standard_normal((shape.vocab, shape.hidden)), dtype
        )

    tensors["model.embed_tokens"] = table("model.embed_tokens")
    head = tensors["model.embed_tokens"] if shape.tied else table("lm_head")
    linears["lm_head"] = integer.float_linear(head)
    for name, size in shape.norms().items():
        tensors[name] = store(name + ".weight", rng.uniform(0.5, 1.5, size), case.dtype)

    for layer in range(shape.layers):
        for projection in integer.PROJECTIONS:
            name = f"model.layers.{layer}.{projection}"
            rows, columns = shape.projection(projection)
            master = rng.standard_normal((rows, columns)) * 1.5 / np.sqrt(columns)
            if case.storage == "float":
                linears[name] = integer.float_linear(store(name + ".weight", master, case.dtype))
            elif case.storage == "groups":
                trits, scales = random_groups(rng, rows, columns, 1.8 / np.sqrt(columns))
                weight = store(name + ".weight", trits * np.repeat(scales, GROUP, axis=1), case.dtype)
                linears[name] = integer.float_linear(weight)
            elif case.storage == "online":
                trits, gamma = integer.absmean(store(name + ".weight", master, case.dtype), ties)
                linears[name] = integer.bit_linear(trits, gamma, ties)
            else:
                trits, gamma = integer.absmean(master, ties)
                stored[name + ".weight"] = pack(trits)
                divided = quantization["linear_class"] == "bitlinear"
                scale = store(name + ".weight_scale", np.array([1 / gamma if divided else gamma]), BF16)[0]
                ternary[name] = (trits, 1 / scale if divided else scale)
                norm = None
                if quantization.get("use_rms_norm"):
                    weight = store(name + ".rms_norm.weight", rng.uniform(0.5, 1.5, columns), case.dtype)
                    norm = (weight, quantization["rms_norm_eps"])
                linears[name] = integer.bit_linear(*ternary[name], ties, norm)
    # float32 sums of |W| differ by about 1e-6 in relative terms; a weight nearer to a half than that could turn.
    if case.storage == "online" and ties.nearest < 1e-5:
        raise SystemExit(f"{case.name}: a weight lies {ties.nearest:.1e} from a rounding tie, take another seed")
    return Built(stored, Decoder(shape, tensors, linears, ties), ternary)


def int8_groups(built: Built, with_head: bool) -> Decoder:
    """The grouped model again with int8 activations, one scale per group of 128 and token."""
    plain = built.decoder
    linears = dict(plain.linears)
    for name in linears:
        if name == "lm_head" and not with_head:
            continue
        weight = built.stored[name + ".weight"].double().numpy()
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        scales = np.abs(groups).max(axis=-1)
        linears[name] = integer.group_linear(np.sign(weight).astype(np.int8), scales, plain.ties)
    return Decoder(plain.shape, plain.tensors, linears, plain.ties)


# ------------------------------------------------------------------------------------------------------------ reference


def save_checkpoint(folder: Path, config: dict[str, Any], stored: dict[str, torch.Tensor], shards: int = 1) -> None:
    """config.json and the tensors. Shards take names in turn, so that a weight and its scale lie in different files."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(stored)
    files = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    for shard, file in enumerate(files):
        save_file({name: stored[name] for name in names[shard::shards]}, folder / file, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in stored.values())},
        "weight_map": {name: files[position % shards] for position, name in enumerate(names)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load(folder: Path) -> Any:
    """The model in float32, with the norms and embeddings that from_pretrained leaves in their stored type."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=F32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: sorted(names) for key, names in report.items() if names}
    if wrong:
        raise SystemExit(f"{folder.name}: transformers reports {wrong}")
    # PreTrainedModel.float() refuses quantised models; the base class's up-casts what is floating, and nothing else.
    return torch.nn.Module.float(model).eval()


@torch.no_grad()
def forward(model: Any, ids: list[int]) -> Array:
    """[tokens, vocab] f32."""
    batch = torch.tensor([ids])
    return model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits[0].numpy()


@dataclass
class Prompt:
    """A prompt with its reference, and how clear of ties and how near to `integer.py` it is."""

    ids: list[int]
    logits: Array
    greedy: list[int]
    margin: float
    difference: float
    tie: float


def try_prompt(model: Any, decoder: Decoder, ids: list[int]) -> Prompt | None:
    """The prompt with its reference, or None where it is not robust."""
    decoder.ties.reset()
    decoder.logits(ids)
    if decoder.ties.nearest < TIE:
        return None
    sequence, steps = list(ids), []
    for _ in range(STEPS):
        steps.append(forward(model, sequence)[-1])
        sequence.append(int(np.argmax(steps[-1])))
    best = np.sort(np.stack(steps), axis=-1)
    margin = float(np.min(best[:, -1] - best[:, -2]))
    logits = forward(model, ids)
    second = decoder.logits(sequence[:-1])
    difference = max(np.abs(second[: len(ids)] - logits).max(), np.abs(second[len(ids) - 1 :] - np.stack(steps)).max())
    if margin <= MARGIN or difference > AGREE or decoder.ties.nearest < TIE or len(set(sequence[len(ids) :])) < VARIETY:
        return None
    return Prompt(ids, logits, sequence[len(ids) :], margin, float(difference), decoder.ties.nearest)


def find_prompts(case: Case, model: Any, decoder: Decoder) -> list[Prompt]:
    """One robust prompt of each length: the beginning-of-text token, then random ones. The shortest is random alone."""
    found = []
    for length in LENGTHS:
        for attempt in range(ATTEMPTS):
            ids = (
                np.random.default_rng([case.seed, length, attempt]).integers(decoder.shape.vocab, size=length).tolist()
            )
            if length > 1:
                ids[0] = case.config["bos_token_id"]
            prompt = try_prompt(model, decoder, ids)
            if prompt is not None:
                found.append(prompt)
                break
        else:
            raise SystemExit(
                f"{case.name}: no robust prompt of {length} tokens in {ATTEMPTS} attempts, take another seed"
            )
    return found


# --------------------------------------------------------------------------------------------------------------- output


def write_lines(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """JSON with one member a line."""
    if isinstance(value, dict):
        members, ends = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()], "{}"
    else:
        members, ends = [json.dumps(item, ensure_ascii=False) for item in value], "[]"
    path.write_text(ends[0] + "\n" + ",\n".join(members) + "\n" + ends[1] + "\n", encoding="utf-8")


def short(value: float) -> float:
    """Two digits: enough to judge by."""
    return float(f"{value:.2g}")


def write_reference(folder: Path, case: Case, model: Any, prompts: list[Prompt], extra: dict[str, Any]) -> None:
    """reference.safetensors and case.json."""
    tensors = {}
    for k, prompt in enumerate(prompts):
        tensors[f"input_ids_{k}"] = torch.tensor(prompt.ids, dtype=torch.int32)
        tensors[f"logits_{k}"] = torch.from_numpy(prompt.logits.copy())
        tensors[f"greedy_{k}"] = torch.tensor(prompt.greedy, dtype=torch.int32)
    save_file(tensors, folder / "reference.safetensors")
    packages = ("transformers", "torch", "tokenizers", "safetensors", "numpy", "gguf")
    facts = {
        "case": case.name,
        "family": case.family,
        "note": case.note,
        "model_class": type(model).__name__,
        "linear": type(model.model.layers[0].self_attn.q_proj).__name__,
        "reference_dtype": "float32 (all stored tensors up-cast; eager attention; no cache)",
        "seed": case.seed,
        "prompts": [prompt.ids for prompt in prompts],
        "greedy": [prompt.greedy for prompt in prompts],
        "greedy_margin_min": [short(prompt.margin) for prompt in prompts],
        "max_difference_to_integer_py": short(max(prompt.difference for prompt in prompts)),
    }
    if case.storage in ("packed", "online"):
        facts["nearest_rounding_tie"] = short(min(prompt.tie for prompt in prompts))
    facts |= extra
    facts["versions"] = {"python": platform.python_version()} | {name: version(name) for name in packages}
    write_lines(folder / "case.json", facts)


def cost_of_int8(built: Built, prompts: list[Prompt]) -> dict[str, Any]:
    """How far int8 activations per group move the logits, over every position of every prompt."""
    cost = {}
    for key, with_head in (("projections", False), ("projections_and_head", True)):
        decoder = int8_groups(built, with_head)
        pairs = [(decoder.logits(prompt.ids), prompt.logits) for prompt in prompts]
        differences = np.concatenate([np.abs(ours - theirs).ravel() for ours, theirs in pairs])
        equal = np.concatenate([ours.argmax(-1) == theirs.argmax(-1) for ours, theirs in pairs])
        cost[key] = {
            "max": float(f"{differences.max():.4g}"),
            "mean": float(f"{differences.mean():.4g}"),
            "argmax_agreement": float(f"{equal.mean():.4g}"),
        }
    return {"int8_activations_per_group": cost}


def make_checkpoint(case: Case, folder: Path) -> None:
    """A case in the layout of a Hugging Face directory."""
    built = build(case)
    named = {}
    for name, tensor in built.stored.items():
        for theirs, published in case.rename.items():
            name = name.replace(theirs, published)
        named[name] = tensor
    save_checkpoint(folder, case.config, named, case.shards)
    if case.reference_config:
        with tempfile.TemporaryDirectory() as place:
            save_checkpoint(Path(place), case.config | case.reference_config, built.stored)
            model = load(Path(place))
    else:
        model = load(folder)
    prompts = find_prompts(case, model, built.decoder)
    extra = cost_of_int8(built, prompts) if case.storage == "groups" else {}
    write_reference(folder, case, model, prompts, extra)
    if case.tokenizer:
        tokenizer = bpe.full(case.config["vocab_size"])
        (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
        write_lines(folder / "tokenizer_vectors.json", bpe.vectors(tokenizer, bpe.TEXTS))


def make_gguf(case: Case, folder: Path, kinds: tuple[str, ...]) -> None:
    """A case as GGUF files, one for each ternary type, all with the same weights and so the same reference."""
    built = build(case)
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place), case.config, built.stored)
        model = load(Path(place))
    tokenizer = bpe.plain(case.config["vocab_size"]) if case.tokenizer else None
    for kind in kinds:
        tensors = built.decoder.tensors
        gguf_files.write(folder / f"{kind}.gguf", kind, case.config, tensors, built.ternary, tokenizer)
    write_reference(folder, case, model, find_prompts(case, model, built.decoder), {})
    if tokenizer is not None:
        write_lines(folder / "tokenizer_vectors.json", bpe.vectors(tokenizer, bpe.PLAIN_TEXTS))


def main() -> None:
    """Makes the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Make the golden data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("names", nargs="*", help="cases to make; all by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    transformers.logging.set_verbosity_error()
    jobs = [(case, ()) for case in CHECKPOINTS] + list(GGUFS)
    unknown = set(args.names) - {case.name for case, _ in jobs}
    if unknown:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}")
    for case, kinds in jobs:
        if args.names and case.name not in args.names:
            continue
        folder = args.out / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if kinds:
            make_gguf(case, folder, kinds)
        else:
            make_checkpoint(case, folder)
        print(f"{case.name}: {sum(file.stat().st_size for file in folder.iterdir())} bytes")


if __name__ == "__main__":
    main()
