"""Text from an exported model with ONNX Runtime alone, the most likely token each time.

    pip install onnxruntime numpy tokenizers
    python3 generate.py exported "Once upon a time" 64
    python3 generate.py exported --ids 0,47,1258 64

The last form needs no tokenizer: it prints the tokens that follow as JSON.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime


def generate(session, config, ids, count):
    """Yields the tokens that follow, until one ends the text."""
    # The cache starts empty, and each run gives the next one: keys and values of every token so far.
    cache = {}
    for wanted in session.get_inputs():
        if wanted.name.startswith("past_key_values."):
            _, heads, _, size = wanted.shape
            cache[wanted.name] = np.zeros((1, heads, 0, size), np.float32)
    if not cache:
        sys.exit("this graph has no cache: it was exported with --no-cache")
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    names = [output.name for output in session.get_outputs()]
    new, length = ids, 0
    for _ in range(count):
        inputs = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, length + len(new)), np.int64),
            "position_ids": np.arange(length, length + len(new))[None],
        }
        outputs = dict(zip(names, session.run(None, {**inputs, **cache})))
        length += len(new)
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        token = int(outputs["logits"][0, -1].argmax())
        yield token
        if token in ends:
            return
        new = [token]


def main():
    directory, text, *rest = sys.argv[1:]
    directory = pathlib.Path(directory)
    session = onnxruntime.InferenceSession(directory / "onnx" / "model.onnx")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if text == "--ids":
        words, *rest = rest
        ids = [int(word) for word in words.split(",")]
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        ids = tokenizer.encode(text).ids
    new = list(generate(session, config, ids, int(rest[0]) if rest else 64))
    print(new if text == "--ids" else tokenizer.decode(ids + new))


main()
