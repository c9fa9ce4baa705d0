"""Checks that transformers loads what `trion-train export` wrote, and computes what Trion computes.

    pip install transformers torch safetensors accelerate
    cargo build --release --bin trion
    python check_transformers.py [--trion PATH] [--text FILE] [--tokens N] FOLDER ...

A FOLDER is a Hugging Face directory of `--format masters` or `--format packed`. Its logits are compared for a text and
for random ids; no GPU is needed. Exits with 1 where transformers misses or does not know a tensor, or logits differ.

A difference is the largest of a position over the largest magnitude among the logits. Both programs are in float32, but
sums in another order sometimes round an activation to the other integer, and all that follows sees it: no small limit
holds. Transformers is therefore held against itself, too: "noise" is what changes of its embedding in the last bits do
to its logits, DRAWS times. Trion must be about as near: FACTOR bounds the mean of its differences by that of the
draw with the largest (but FLOOR is always near), WORST the largest difference, and LOSS the relative difference of nats
a token. Of a model with fewer layers, smaller faults show.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Without this, unpacking trits is compiled anew for every shape.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

DRAWS, FACTOR, FLOOR, WORST, LOSS = 8, 1.5, 1e-5, 5e-2, 2e-3
TEXT = (
    "Once upon a time there was a little girl who lived in a small house by the river. One day she went out to look for"
    " her friend, the old miller. The water was still, and the wheel did not turn.\n"
) * 12


def load(folder: Path) -> Any:
    """The model in float32 on the CPU; SystemExit if a tensor is missing or left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: sorted(names) for key, names in report.items() if names}
    if wrong:
        sys.exit(f"{folder}: transformers reports {wrong}")
    # Norms and embeddings stay in their stored type; PreTrainedModel.float() refuses quantised models.
    return torch.nn.Module.float(model).eval()


@torch.no_grad()
def reference(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of transformers, [tokens, vocab]."""
    batch = torch.tensor([ids])
    return model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits[0]


def trion(command: str, folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits of Trion, [tokens, vocab]."""
    with tempfile.TemporaryDirectory() as work:
        file = f"{work}/logits.safetensors"
        subprocess.run([command, "logits", folder, "--ids", ",".join(map(str, ids)), "-o", file], check=True)
        return load_file(file)["logits"]


def differences(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of each position, relative to the largest logit."""
    return (found - expected).abs().amax(1) / expected.abs().max()


def compare(command: str, folder: Path, model: Any, title: str, ids: list[int]) -> bool:
    """Prints how the two differ, and whether that is within the limits."""
    expected, found = reference(model, ids), trion(command, folder, ids)
    if found.shape != expected.shape or not found.isfinite().all():
        sys.exit(f"{folder}: Trion gave {tuple(found.shape)} logits for {tuple(expected.shape)}")
    apart = differences(found, expected)
    table, generator = model.get_input_embeddings(), torch.Generator().manual_seed(1)
    draws = []
    for _ in range(DRAWS):
        bits = 1 + 2**-22 * torch.randn(table.embedding_dim, generator=generator)
        hook = table.register_forward_hook(lambda _module, _inputs, output, bits=bits: output * bits)
        draws.append(differences(reference(model, ids), expected))
        hook.remove()
    noise = max(draws, key=lambda draw: draw.mean().item())
    targets = torch.tensor(ids[1:])
    losses = [torch.nn.functional.cross_entropy(logits[:-1], targets).item() for logits in (found, expected)]
    near = apart.mean() <= max(FACTOR * noise.mean(), FLOOR) and apart.max() <= WORST
    good = bool(near) and abs(losses[0] - losses[1]) <= LOSS * losses[1]
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    print(f"{folder}, {title}, {len(ids)} tokens: {'agrees' if good else 'DIFFERS'}")
    for name, row in (("Trion", apart), ("noise", noise)):
        print(f"  {name}: mean {row.mean():.1e}, median {row.median():.1e}, worst {row.max():.1e}")
    print(f"  next token the same at {same}; loss {losses[0]:.5f} (Trion), {losses[1]:.5f} (transformers)")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--trion", default="target/release/trion", help="the command")
    parser.add_argument("--text", type=Path, help="a text instead of the one in this file")
    parser.add_argument("--tokens", type=int, default=256, help="at most, and at most the model's context")
    options = parser.parse_args()
    text, good = options.text.read_text(encoding="utf-8") if options.text else TEXT, True
    for folder in options.folders:
        model = load(folder)
        count = min(options.tokens, model.config.max_position_embeddings)
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
        drawn = torch.randint(model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(1)).tolist()
        for title, prompt in (("text", [model.config.bos_token_id, *ids][:count]), ("random ids", drawn)):
            good &= compare(options.trion, folder, model, title, prompt)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
