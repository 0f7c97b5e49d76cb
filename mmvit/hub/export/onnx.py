"""The encoders of a model as ONNX graphs, each checked against torch before anybody sees it.

  image.onnx   pixels uint8 (batch,3,H,W), normalised inside -> embeddings (batch,E), or logits (batch,C)
  text.onnx    ids int64 and mask bool (batch,length) -> embeddings (batch,E)
  onnx.json    how pictures are resized, how texts become ids, temperature and bias; tokenizer/ beside it
Pictures have one size, at which positions are stored; batch and, unless the last position is read, length are
free. Source: torch.onnx (the exporter on torch.export).
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.errors import nearest, need
from mmvit.hub.export.parts import Parts, parts_of
from mmvit.hub.fingerprint import fingerprint
from mmvit.hub.plain import kind_of
from mmvit.hub.whole import whole_folder

TOLERANCE = 1e-4
_SIDES = {
    "dual_encoder": ("image", "text"),
    "image_tower": ("image",),
    "text_tower": ("text",),
    "image_classifier": ("image",),
}
_TWO_GIB = 2**31  # above it the weights stand in a file of their own, for ONNX's container ends there


@dataclass(frozen=True)
class Graph:
    """One exported graph.

    Attributes:
        file: its name in the folder.
        inputs: name -> type and shape, free sizes by name.
        output: "embeddings", unit vectors, or "logits".
        difference: largest absolute difference to torch, over several batch sizes and lengths.
    """

    file: str
    inputs: dict[str, str]
    output: str
    difference: float


class Encoder(nn.Module):
    """A tower with its embeddings at length 1, or a classifier as it is: what one graph computes."""

    def __init__(self, tower: nn.Module, output: str) -> None:
        super().__init__()
        self.tower, self.output = tower, output

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B,E) unit vectors, or logits (B,C), float32."""
        out = self.tower(*inputs).float()
        return out if self.output == "logits" else normalize(out, dim=-1)


def export_onnx(
    m: Any,
    path: str | os.PathLike[str],
    *,
    preprocess: ImagePreprocess | None = None,
    tokenizer: Tokenizer | None = None,
    opset: int = 18,
) -> list[Graph]:
    """The graphs that were written into the folder `path`, which appears whole or not at all.

    Args:
        m: a folder of ours, what `mmvit.load` or `hub.load` gave, or a module.
        path: the folder to write; one that this function wrote before is replaced.
        preprocess: takes the place of the model's own.
        tokenizer: likewise.
        opset: version of ONNX's operators, 18 or later.

    Raises:
        ValueError: a model that torch cannot export, or whose graph computes something else.
        FileExistsError: `path` holds something else.
        UserError: onnx, onnxscript or onnxruntime is missing.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        need(library, "onnx")
    path = Path(path)
    if path.exists() and not (path / "onnx.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"'{path}' exists and holds no ONNX export: choose another folder")
    parts = parts_of(m, preprocess, tokenizer)
    kind = kind_of(parts.model.config)
    if kind not in _SIDES:
        raise ValueError(f"ONNX export does not write a {kind}: {nearest(kind, _SIDES)}")
    model = copy.deepcopy(parts.model).to("cpu").float().eval()
    output = "logits" if kind == "image_classifier" else "embeddings"
    with whole_folder(path) as half:
        graphs = [
            _export(
                side, Encoder(getattr(model, side) if kind == "dual_encoder" else model, output), half, opset
            )
            for side in _SIDES[kind]
        ]
        if parts.tokenizer:
            parts.tokenizer.save(half / "tokenizer")
        facts = _facts(parts, kind, graphs, opset)
        (half / "onnx.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return graphs


def _export(side: str, encoder: Encoder, folder: Path, opset: int) -> Graph:
    """One side's graph, written and checked."""
    tower: Any = encoder.tower
    config = getattr(tower.config, "tower", tower.config)
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if side == "image":
        height, width = config.image_size
        example, shapes = (2, height, width), {"pixels": f"uint8 (batch,3,{height},{width})"}
    else:
        context, fixed = config.context_length, _reads_last(config)
        # Not the whole context and not 1, which the tracer would take for constants.
        example = (2, context if fixed else max(2, context - 1), 0)
        if not fixed:
            free[1] = torch.export.Dim("length", min=1, max=context)
        length = context if fixed else "length"
        shapes = {"ids": f"int64 (batch,{length})", "mask": f"bool (batch,{length})"}
    file = folder / f"{side}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about itself
        try:
            program = torch.onnx.export(
                encoder,
                tuple(_inputs(side, *example, config).values()),
                input_names=list(shapes),
                output_names=[encoder.output],
                dynamic_shapes=((free,) * len(shapes),),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its many steps raise
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"torch cannot export this {side} encoder to ONNX: {said}") from error
    assert program is not None
    _forget_sources(program.model)
    weights = sum(p.numel() for p in encoder.parameters()) * 4
    program.save(str(file), external_data=weights > _TWO_GIB)
    return Graph(file.name, shapes, encoder.output, compare(side, encoder, file, config))


def _reads_last(config: Any) -> bool:
    """Whether a text tower reads the last position of its context, so that a text must fill it."""
    return config.pool == "last" and not config.pad_mask


def compare(side: str, encoder: Encoder, file: Path, config: Any) -> float:
    """The largest absolute difference between a graph and torch, over several batch sizes and lengths.

    Args:
        side: "image" or "text".
        encoder: what the graph was made of.
        file: the graph.
        config: of the tower.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    runtime = need("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for sizes in _sizes(side, config):
        inputs = _inputs(side, *sizes, config)
        (theirs,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            ours = encoder(*inputs.values())
        worst = max(worst, (ours - torch.from_numpy(theirs)).abs().max().item())
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{file.name} differs from torch by {worst:.2g}, more than {TOLERANCE}: do not use it"
        )
    return worst


def _sizes(side: str, config: Any) -> Iterator[tuple[int, int, int]]:
    """(batch, height, width) or (batch, length, 0) that a graph is tried at."""
    if side == "image":
        yield from ((b, *config.image_size) for b in (1, 3))
    elif _reads_last(config):
        yield from ((b, config.context_length, 0) for b in (1, 3))
    else:
        yield from ((b, n, 0) for b in (1, 3) for n in sorted({1, 2, config.context_length}))


def _inputs(side: str, batch: int, height: int, width: int, config: Any) -> dict[str, Tensor]:
    """Random inputs by name; texts of all lengths, `height` the longest, with padding behind them."""
    generator = torch.Generator().manual_seed(batch)
    if side == "image":
        shape = (batch, 3, height, width)
        return {"pixels": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
    ids = torch.randint(0, config.vocab_size, (batch, height), generator=generator)
    ends = torch.randint(1, height + 1, (batch, 1), generator=generator)
    ends[0] = height
    return {"ids": ids, "mask": torch.arange(height) < ends}


def _facts(parts: Parts, kind: str, graphs: list[Graph], opset: int) -> dict[str, Any]:
    """onnx.json: all that is needed to feed the graphs and to read what they say."""
    model: Any = parts.model
    facts: dict[str, Any] = {
        "format": "mmvit-onnx",
        "schema_version": 1,
        "kind": kind,
        "opset": opset,
        "fingerprint": fingerprint(model, parts.preprocess),
        "graphs": [
            {"file": g.file, "inputs": g.inputs, "output": g.output, "max_difference": g.difference}
            for g in graphs
        ],
    }
    if parts.preprocess:
        facts["preprocess"] = parts.preprocess.to_dict()
    if parts.tokenizer:
        words = parts.tokenizer
        facts["tokenizer"] = {
            "kind": words.kind,
            "context_length": words.context_length,
            "pad_id": words.pad_id,
            **words.to_spec(),
        }
    if kind == "dual_encoder":
        bias = model.logit_bias
        facts["similarity"] = {
            "activation": model.config.activation,
            "scale": model.logit_scale.exp().item(),
            "bias": 0.0 if bias is None else bias.item(),
            "formula": "activation(scale * cosine + bias)",
        }
    return facts


def _forget_sources(model: Any) -> None:
    """Nothing; takes the stack traces of this machine out of the graph."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for function in model.functions.values():
        for node in function.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
