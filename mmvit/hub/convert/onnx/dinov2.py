"""A DINOv2 vision transformer out of an exported ONNX graph -> our image tower's names.

The exporter keeps the names of biases, norms, LayerScale and tokens, but folds the transpose of each Linear
into an anonymous MatMul operand: those are found through the graph, by the name of the node that uses them,
and turned back.
Source: Oquab et al. 2023 (DINOv2); names as in transformers' Dinov2Model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvit.errors import need

_PARTS = r"attention/attention/(?:query|key|value)|attention/output/dense|mlp/fc[12]"
_LINEAR = rf"/backbone/encoder/(layer\.\d+/(?:{_PARTS}))/MatMul"


def read_dinov2_onnx(path: str | Path) -> dict[str, Tensor]:
    """The backbone's tensors under transformers' names, `embeddings.cls_token` and so on.

    Raises:
        ValueError: the graph lacks the position table or has no recognisable encoder.
    """
    onnx = need("onnx", extra="corpus")
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {t.name: t for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}

    def value(name: str) -> Tensor:
        if name in stored:
            return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())
        node = made[name]
        if node.op_type != "Constant":
            raise ValueError(
                f"{path}: '{name}' is computed by a {node.op_type} node, expected a stored tensor"
            )
        return torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())

    state = {n.removeprefix("backbone."): value(n) for n in stored if n.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and (match := re.fullmatch(_LINEAR, node.name)):
            weight = next(value(n) for n in node.input if n in stored)
            state[f"encoder.{match[1].replace('/', '.')}.weight"] = weight.t().contiguous()
    if not any(name.startswith("encoder.layer.") for name in state):
        raise ValueError(f"{path}: no nodes named /backbone/encoder/layer.*: not an exported DINOv2 backbone")
    state["embeddings.position_embeddings"] = _positions(made, value, state["embeddings.cls_token"].shape[-1])
    return state


def _positions(made: dict[str, Any], value: Callable[[str], Tensor], width: int) -> Tensor:
    """The table (1, 1 + grid, D): the class token's row, then the row-major grid before any resize."""
    whole = next((n for n in made.values() if n.name == "/backbone/embeddings/Add"), None)
    if whole is None:
        raise ValueError("no node /backbone/embeddings/Add: the ONNX file is not an exported DINOv2 backbone")
    # tokens + concat(class position, resized grid positions)
    class_position, resized = made[whole.input[1]].input
    node = made[resized]
    while node.op_type != "Resize":
        node = made[node.input[0]]
    while node.op_type != "Reshape":
        node = made[node.input[0]]
    grid = value(node.input[0])
    return torch.cat([value(class_position).reshape(1, 1, width), grid.reshape(1, -1, width)], dim=1)
