"""Exports the encoders of a saved model as ONNX graphs, checked against onnxruntime on the way.

    python scripts/export_onnx.py --model runs/lit/model --out runs/lit/onnx

Writes image.onnx and text.onnx (what the model has), onnx.json (preprocessing, tokenizer, temperature) and
the tokenizer's files. Pictures go in as uint8 RGB at the model's size and are normalised inside the graph;
batch and length of texts are free. Needs `pip install 'mmvit[onnx]'`. See docs/weights.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmvit.errors import UserError, one_line
from mmvit.hub.export.onnx import export_onnx
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model, or "hf-hub:owner/name".
        out: folder to write; one that this program wrote before is replaced.
        opset: version of ONNX's operators, 18 or later.
    """

    model: str = ""
    out: str = ""
    opset: int = 18


@one_line
def main() -> None:
    """Runs the command line."""
    config = parse(Config, description=__doc__ or "")
    if not config.model or not config.out:
        raise UserError("give --model FOLDER and --out FOLDER")
    try:
        graphs = export_onnx(config.model, config.out, opset=config.opset)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    for graph in graphs:
        inputs = ", ".join(f"{name} {shape}" for name, shape in graph.inputs.items())
        print(
            f"{config.out}/{graph.file}: {inputs} -> {graph.output}; "
            f"largest difference to torch {graph.difference:.1e}"
        )


if __name__ == "__main__":
    main()
