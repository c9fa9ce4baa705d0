"""Draws one block of an exported graph, and one of its projections in full, as the picture of docs/onnx.md.

    pip install onnx
    apt-get install graphviz
    python3 docs/onnx_graph.py EXPORT_DIR [LAYER] > docs/onnx.svg

What is drawn is what the file has: nodes, edges, types, shapes and constants, with the types between nodes by ONNX's
shape inference. Only two things are known beforehand: which nodes make one box, by their names, and colours.
"""

import html
import pathlib
import re
import shutil
import subprocess
import sys

import onnx
from onnx import numpy_helper

FONT = "Helvetica,Arial,sans-serif"
GREY, INK = "#5f6b7a", "#1f2933"
# Fill and border by what a box is.
COLOURS = {
    "quantize": ("#fdf0d5", "#c98a1b"),
    "linear": ("#dbeafe", "#3b6fb5"),
    "norm": ("#e3f4e6", "#4b9460"),
    "attention": ("#ede4fa", "#7d5bb5"),
    "outside": ("#f3f4f6", "#9aa5b1"),
    "": ("#ffffff", "#7b8794"),
}
KINDS = {"RMSNormalization": "norm", "Attention": "attention", "RotaryEmbedding": "attention"}


class Model:
    """The graph, with what is looked up in it."""

    def __init__(self, folder, layer):
        path = pathlib.Path(folder, "onnx", "model.onnx")
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        graph = model.graph
        self.name = next((entry.value for entry in model.metadata_props if entry.key == "name"), graph.name)
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.types = {value.name: value.type.tensor_type
                      for value in [*graph.input, *graph.value_info, *graph.output]}
        self.prefix = f"model.layers.{layer}"
        self.letters = {}
        self.block = [node for node in self.nodes if node.output[0].startswith((self.prefix + ".", self.prefix + "/"))]
        if not self.block:
            sys.exit(f"{path} has no nodes of a layer {layer}")
        # A projection is a module that multiplies by a weight of its own; a norm has one too, but does not multiply.
        self.projections = {module(node.output[0]) for node in self.block if "MatMul" in node.op_type}
        # What a projection computes without its weights makes integers of activations; others may read those too.
        self.quantizing, weighted = set(), set()
        for node in self.block:
            output = node.output[0]
            own = module(output)
            if own not in self.projections:
                continue
            if any(name in weighted or name in self.tensors and name.startswith(own + ".") for name in node.input):
                weighted.add(output)
            else:
                self.quantizing.add(output)

    def short(self, name):
        """A name without what every name of the block begins with, and without the plainest end."""
        return name.removeprefix(self.prefix).lstrip("./").removesuffix("/output")

    def dim(self, dim):
        """A number, or a letter for what a run decides: `letters` has their names."""
        if not isinstance(dim, str):
            return str(dim)
        # Inference calls lengths that it cannot follow unk__0 and so on.
        if dim.startswith("unk__"):
            self.letters["?"] = "not known by shape inference"
            return "?"
        return dim[0] if self.letters.setdefault(dim[0], dim) == dim else dim

    def type(self, name):
        """`FLOAT [b, s, 384]`; nothing if shape inference does not know the type."""
        if name in self.tensors:
            tensor = self.tensors[name]
            dtype, dims = tensor.data_type, list(tensor.dims)
        elif name in self.types:
            dtype = self.types[name].elem_type
            if not self.types[name].HasField("shape"):
                return onnx.TensorProto.DataType.Name(dtype)
            dims = [dim.dim_param or dim.dim_value for dim in self.types[name].shape.dim]
        else:
            return ""
        return f"{onnx.TensorProto.DataType.Name(dtype)} [{', '.join(map(self.dim, dims))}]"

    def constant(self, name):
        """The value of a small tensor, or its type."""
        tensor = self.tensors[name]
        if len(tensor.dims) > 1 or sum(tensor.dims) > 4 or tensor.external_data:
            return self.type(name)
        value = numpy_helper.to_array(tensor)
        text = ", ".join(f"{number:.6g}" for number in value.reshape(-1).tolist())
        return f"[{text}]" if tensor.dims else text

    def settings(self, node, shown=()):
        """The constants and attributes of a node, by the names that its operator gives them; not those in `shown`."""
        try:
            inputs = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain).inputs
        except onnx.defs.SchemaError:
            inputs = []
        lines, attributes = [], []
        for i, name in enumerate(node.input):
            if name in self.tensors and name not in shown:
                named = i < len(inputs) and inputs[i].option != onnx.defs.OpSchema.FormalParameterOption.Variadic
                lines.append(f"{inputs[i].name} = {self.constant(name)}" if named else self.constant(name))
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if node.op_type == "Cast" and attribute.name == "to":
                value = onnx.TensorProto.DataType.Name(value)
            value = f"{value:.6g}" if isinstance(value, float) else value
            attributes.append(f"{attribute.name} = {value}")
        return lines + [", ".join(attributes)] if attributes else lines


def module(name):
    """The module that computes a tensor: what stands before the slash."""
    return name.rsplit("/", 1)[0]


def centred(node):
    """A box of dot's with its text in the middle for any font; dot gives where a line begins in its own."""
    xs = [float(x) for x in re.findall(r"(-?[\d.]+),", re.search(r' d="([^"]*)"', node)[1])]
    return re.sub(r'text-anchor="start" x="[^"]*"', f'text-anchor="middle" x="{(min(xs) + max(xs)) / 2:.1f}"', node)


class Panel:
    """A picture under construction, as a graph for dot."""

    def __init__(self, model):
        self.model, self.lines, self.labelled = model, [], set()

    def box(self, key, title, lines, kind, order=""):
        """A box with a title in bold, and small lines below. `order` keeps edges "in" or "out" in the file's order."""
        fill, border = COLOURS[kind]
        text = f"<b>{html.escape(title)}</b>" if title else ""
        small = [f'<font point-size="11" color="{GREY}">{html.escape(line)}</font>' for line in lines if line]
        label = "<br/>".join([part for part in [text, *small] if part])
        self.lines.append(f'"{key}" [label=<{label}> fillcolor="{fill}" color="{border}" ordering="{order}"]')

    def edge(self, start, end, tensors):
        """An edge, labelled with the types of those tensors that no edge or box was labelled for yet."""
        new = [name for name in tensors if name not in self.labelled and self.model.type(name)]
        self.labelled.update(new)
        label = "".join(f"\u00a0\u00a0{html.escape(self.model.type(name))}\\l" for name in new)
        # Activations go straight down; masks, positions and caches come from the side.
        weight = 8 if any("b, s, " in self.model.type(name) for name in tensors) else 1
        self.lines.append(f'"{start}" -> "{end}" [label="{label}" weight={weight}]')

    def connect(self, nodes, unit, own=()):
        """The edges among `nodes`, whose boxes `unit` names, and those from and to outside. `own` tensors get a box."""
        model = self.model
        source = {output: unit(node) for node in nodes for output in node.output}
        edges = {}
        for node in nodes:
            for name in filter(None, node.input):
                start, end = source.get(name, name), unit(node)
                if start != end and (name in own or name not in model.tensors):
                    edges.setdefault((start, end), []).append((node.output[0], name))
        # What comes from outside, in one box if it is alike: past keys and values.
        alike = {}
        for start, end in edges:
            if start not in source.values():
                ends = tuple(to for begin, to in edges if begin == start)
                alike.setdefault((ends, model.type(start)), {})[start] = None
        boxes = {}
        for (_, dtype), names in alike.items():
            names = list(names)
            boxes |= dict.fromkeys(names, names[0])
            if names[0] in own:
                value = model.constant(names[0])
                dtype = dtype if value == dtype else f"{dtype} = {value}"
            self.box(names[0], "", [*map(model.short, names), dtype], "linear" if names[0] in own else "outside")
            self.labelled.update(names)
        drawn = set()
        for (start, end), reads in edges.items():
            start = boxes.get(start, start)
            names = list(dict.fromkeys(name for _, name in reads))
            # A node that reads a tensor twice has two edges, a box of many nodes has one for all that they read.
            if len(names) == 1 and len(reads) == 2 and reads[0] == reads[1]:
                self.edge(start, end, [])
            if (start, end) not in drawn:
                self.edge(start, end, names)
            drawn.add((start, end))
        self.leave(nodes, source)

    def leave(self, nodes, source):
        """Edges to what reads the tensors of `nodes` from outside, and to the graph's outputs."""
        model, inside, drawn = self.model, {id(node) for node in nodes}, set()
        for name, start in source.items():
            readers = [node.output[0] for node in model.nodes if name in node.input and id(node) not in inside]
            readers = [module(reader) if module(reader) in model.projections else reader for reader in readers]
            lines = [model.short(reader) for reader in dict.fromkeys(readers)]
            if name in model.outputs:
                lines = [other for other in source if other in model.outputs and source[other] == start]
                lines.append(model.type(name))
                self.labelled.add(name)
            if not lines:
                continue
            end = "to " + " ".join(lines)
            self.box(end, "", lines if name in model.outputs else ["to " + lines[0], *lines[1:]], "outside")
            if (start, end) not in drawn:
                self.edge(start, end, [name])
            drawn.add((start, end))

    def svg(self):
        """The picture by dot: its size, and what to put into an SVG."""
        text = "\n".join([
            "digraph {",
            'graph [ranksep=0.2 nodesep=0.2 pad=0.05 bgcolor="transparent"]',
            'node [shape=box style="filled,rounded" margin="0.17,0.06" height=0.3]',
            f'node [fontname="{FONT}" fontsize=13 fontcolor="{INK}"]',
            f'edge [fontname="{FONT}" fontsize=10 fontcolor="{GREY}" color="#52606d" arrowsize=0.6]',
            *self.lines,
            "}",
        ])
        run = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True)
        width, height = (float(size) for size in re.search(r'width="(\d+)pt" height="(\d+)pt"', run.stdout).groups())
        body = run.stdout[run.stdout.index("<g id="):run.stdout.rindex("</svg>")]
        body = re.sub(r'<g id="node.*?</g>', lambda found: centred(found[0]), body, flags=re.DOTALL)
        # Space between an edge and its label, which some renderers want said this way.
        body = re.sub(">\u00a0+", ' dx="5">', body)
        # Without what only a program would look for: comments, names, identifiers and the groups that have them.
        body = re.sub(r'<!--.*?-->\n|<title>.*?</title>\n|<g id="(?!graph).*?>\n|</g>\n', "", body) + "</g>\n"
        body = body.replace(f' font-family="{FONT}"', "")
        return width, height, body


def block_panel(model):
    """The block, with each projection as one box and what quantises for it as another."""
    panel = Panel(model)

    def unit(node):
        name = node.output[0]
        if name in model.quantizing:
            return module(name) + "/quantize"
        return module(name) if module(name) in model.projections else name

    groups = {}
    for node in model.block:
        groups.setdefault(unit(node), []).append(node)
    for key, nodes in groups.items():
        count = f"{len(nodes)} nodes"
        if key.endswith("/quantize"):
            panel.box(key, "quantize", [count], "quantize", "out")
        elif key in model.projections:
            panel.box(key, model.short(key), [model.type(key + ".weight"), count], "linear")
        else:
            node = nodes[0]
            panel.box(key, node.op_type, [model.short(node.output[0]), *model.settings(node)],
                      KINDS.get(node.op_type, ""), "in" if node.op_type == "Attention" else "")
    # Projections that share their activations stand side by side.
    for quantize in filter(lambda key: key.endswith("/quantize"), groups):
        made = {output for node in groups[quantize] for output in node.output}
        readers = {unit(node): None for node in model.block if made & set(node.input) and unit(node) != quantize}
        panel.lines.append("{rank=same " + " ".join(f'"{reader}"' for reader in readers) + "}")
    panel.connect(model.block, unit)
    return panel.svg()


def projection_panel(model, projection):
    """A projection node by node."""
    panel = Panel(model)
    nodes = [node for node in model.block if module(node.output[0]) == projection]
    own = {name for node in nodes for name in node.input if name.startswith(projection + ".") and name in model.tensors}
    for node in nodes:
        name = node.output[0]
        lines = model.settings(node, own)
        panel.box(name, node.op_type, [", ".join(lines)], "quantize" if name in model.quantizing else "linear")
    panel.connect(nodes, lambda node: node.output[0], own)
    return panel.svg()


def legend(model):
    """What colours and letters stand for: a colour or a letter, and words."""
    used = {KINDS.get(node.op_type) for node in model.block}
    lines = [("quantize", "activations to integers, once for all that read them")] if model.quantizing else []
    lines += [("linear", "product with the weights, and back to floats")]
    lines += [("norm", "norm")] if "norm" in used else []
    lines += [("attention", "attention")] if "attention" in used else []
    lines += [("", "other operators"), ("outside", "what comes in and goes out")]
    return lines + sorted(model.letters.items(), key=lambda item: item[0] == "?")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    if not shutil.which("dot"):
        sys.exit("onnx_graph.py needs Graphviz, whose program `dot` lays out the picture: apt-get install graphviz")
    model = Model(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "0")
    first = module(next(node.output[0] for node in model.block if module(node.output[0]) in model.projections))
    own = [node.output[0] for node in model.block if module(node.output[0]) == first]
    before = len(model.quantizing.intersection(own))
    note = f"{len(own)} nodes: {before} quantize, {len(own) - before} multiply"
    panels = [
        (f"{model.prefix} of {model.name}", f"{len(model.block)} nodes", block_panel(model)),
        (model.short(first), note, projection_panel(model, first)),
    ]
    notes = legend(model)
    gap, top = 24, 58
    width = sum(panel[0] for _, _, panel in panels) + gap * (len(panels) + 1)
    height = max(panels[0][2][1], panels[1][2][1] + gap + 20 * len(notes)) + top + gap
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
          f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">')
    print(f"<title>{html.escape(' and its '.join(title for title, _, _ in panels))}</title>")
    print('<rect width="100%" height="100%" fill="#ffffff"/>')
    x = gap
    for title, note, (wide, high, body) in panels:
        print(f'<text x="{x}" y="34" font-size="18" font-weight="bold" fill="{INK}">{html.escape(title)}'
              f'<tspan dx="10" font-size="12" font-weight="normal" fill="{GREY}">{html.escape(note)}</tspan></text>')
        print(f'<svg x="{x}" y="{top}" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">\n{body}</svg>')
        x += wide + gap
    x, y = gap + panels[0][2][0] + gap, top + panels[1][2][1] + gap
    for kind, note in notes:
        y += 20
        if kind in COLOURS:
            fill, border = COLOURS[kind]
            print(f'<rect x="{x}" y="{y - 11}" width="20" height="13" rx="4" fill="{fill}" stroke="{border}"/>')
        else:
            print(f'<text x="{x + 10}" y="{y}" font-size="12" font-weight="bold" text-anchor="middle" fill="{GREY}">'
                  f"{kind}</text>")
        print(f'<text x="{x + 30}" y="{y}" font-size="12" fill="{INK}">{html.escape(note)}</text>')
    print("</svg>")


if __name__ == "__main__":
    main()
