"""Generates with onnxruntime-genai from an exported directory, greedily, and compares.

The cases are a JSON list, in a file or on standard input (-). Two forms:

    {"prompt": [1, 2], "expected": [3, 4]}  tokens, and those that follow
    {"text": "Once", "ids": [12, 52]}       a text, and its tokens; the tokens must give the text again

A token that ends texts may be the last one expected; genai keeps it to itself. Writes a JSON list with what genai gives
for each case, a list of tokens. Exits with 1 where one differs.

    python3 genai_generate.py DIR CASES
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import onnxruntime_genai


def generate(model, prompt, count):
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt):]


def ends(directory):
    """The tokens that end a text."""
    config = json.loads((pathlib.Path(directory) / "genai_config.json").read_text(encoding="utf-8"))
    tokens = config["model"].get("eos_token_id", [])
    return tokens if isinstance(tokens, list) else [tokens]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("cases", metavar="CASES")
    arguments = parser.parse_args()
    cases = sys.stdin.read() if arguments.cases == "-" else pathlib.Path(arguments.cases).read_text(encoding="utf-8")
    model = onnxruntime_genai.Model(arguments.directory)
    tokenizer = None
    found, differences = [], []
    for case in json.loads(cases):
        if "text" in case:
            tokenizer = tokenizer or onnxruntime_genai.Tokenizer(model)
            expected, tokens = case["ids"], [int(token) for token in tokenizer.encode(case["text"])]
            text = tokenizer.decode(np.array(tokens, np.int32))
            if text != case["text"]:
                differences.append(f"{case['text']!r} comes back as {text!r}")
        else:
            expected = case["expected"]
            tokens = generate(model, case["prompt"], len(expected))
            if expected and expected[-1] in ends(arguments.directory):
                expected = expected[:-1]
        found.append(tokens)
        if tokens != expected:
            same = [a == b for a, b in zip(tokens, expected)]
            first = same.index(False) if False in same else len(same)
            differences.append(f"case {len(found) - 1}: token {first} differs: {tokens}, expected {expected}")
    print(json.dumps(found))
    for difference in differences:
        print(difference, file=sys.stderr)
    sys.exit(1 if differences else 0)


main()
