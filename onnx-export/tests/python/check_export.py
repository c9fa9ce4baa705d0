"""Checks exported graphs with the tools of ONNX, and runs each once.

Of every directory that is named, onnx/model.onnx is checked: ONNX's checker and strict shape inference, operators of
the standard only (or ONNX Runtime's own too, with --contrib), and a prompt in ONNX Runtime whose logits are all finite.

    python3 check_export.py [--contrib] DIR...
"""

import argparse
import collections
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

STANDARD = {"", "ai.onnx"}
CONTRIB = {"com.microsoft"}
PROMPT = [1, 2, 3, 5]
DIMENSIONS = {"batch_size": 1, "sequence_length": len(PROMPT), "total_sequence_length": len(PROMPT)}


def nodes(graph):
    """The nodes of a graph, and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from nodes(inner)


def check_domains(model, allowed):
    functions = [node for function in model.functions for node in nodes(function)]
    domains = {node.domain for node in [*nodes(model.graph), *functions]} | {it.domain for it in model.opset_import}
    if not domains <= allowed:
        raise ValueError(f"operators of other domains: {', '.join(sorted(domains - allowed))}")


def run(path):
    """Runs the prompt, with an empty cache where the graph has one."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    positions = np.arange(len(PROMPT), dtype=np.int64)[None]
    inputs = {
        "input_ids": np.array([PROMPT], np.int64),
        "attention_mask": np.ones_like(positions),
        "position_ids": positions,
    }
    feed = {}
    for wanted in session.get_inputs():
        if wanted.name in inputs:
            feed[wanted.name] = inputs[wanted.name]
        elif wanted.name.startswith("past_key_values."):
            # The dimension that has none of these names is the length of the past. Programs rely on the names too:
            # transformers.js takes any other name than batch_size for zero.
            shape = [size if isinstance(size, int) else DIMENSIONS.get(size, 0) for size in wanted.shape]
            feed[wanted.name] = np.zeros(shape, np.float32)
        else:
            raise ValueError(f"an input that nothing is known about: {wanted.name}")
    outputs = dict(zip([it.name for it in session.get_outputs()], session.run(None, feed)))
    logits = outputs["logits"]
    if logits.shape[:2] != (1, len(PROMPT)) or not np.isfinite(logits).all():
        raise ValueError(f"logits of the shape {logits.shape}, finite: {np.isfinite(logits).all()}")
    for name, value in outputs.items():
        if name.startswith("present.") and value.shape[2] != len(PROMPT):
            raise ValueError(f"{name} has the shape {value.shape}")
    return logits


def check(directory, allowed):
    path = str(directory / "onnx" / "model.onnx")
    # By path, since a model with external data may be larger than a message can be.
    onnx.checker.check_model(path, full_check=True)
    with tempfile.TemporaryDirectory() as temporary:
        inferred = str(pathlib.Path(temporary) / "model.onnx")
        onnx.shape_inference.infer_shapes_path(path, inferred, check_type=True, strict_mode=True, data_prop=True)
    model = onnx.load(path, load_external_data=False)
    check_domains(model, allowed)
    logits = run(path)
    types = collections.Counter(onnx.TensorProto.DataType.Name(it.data_type) for it in model.graph.initializer)
    size = sum(file.stat().st_size for file in (directory / "onnx").iterdir())
    opset = {it.domain: it.version for it in model.opset_import}[""]
    print(f"{path}: opset {opset}, {size} bytes, {len(model.graph.node)} nodes, {dict(types)}, "
          f"next token {logits[0, -1].argmax()}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--contrib", action="store_true", help="allow operators of com.microsoft")
    parser.add_argument("directories", metavar="DIR", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    allowed = STANDARD | (CONTRIB if arguments.contrib else set())
    failed = 0
    for directory in arguments.directories:
        try:
            check(directory, allowed)
        except Exception as error:  # Each tool has errors of its own.
            failed += 1
            print(f"{directory}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


main()
