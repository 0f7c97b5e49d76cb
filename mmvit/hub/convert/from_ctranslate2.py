"""A Whisper in CTranslate2's file format -> our audio tower: the encoder; the decoder stays behind.

Source: Whisper (arXiv:2212.04356); names as CTranslate2's converter writes them.
Differs: keys lose a bias that the file holds beside those of queries and values: it shifts all scores of a
query alike, which the softmax does not see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.files.ctranslate2 import Variables, read_ctranslate2
from mmvit.hub.convert.keymap import Line, blocks, first_third, row, translate
from mmvit.hub.preprocess import preprocess_of
from mmvit.models.config import AudioTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.overrides import override
from mmvit.models.presets.whisper import CORE, TOWER

ARCHITECTURE = "WhisperSpec"
_ENCODER = "encoder/"
_HEADS = "encoder/num_heads"


def _last_third(x: Tensor) -> Tensor:
    return x[2 * len(x) // 3 :]


def _norm(theirs: str, ours: str) -> list[Line]:
    return [(f"{theirs}/gamma", f"{ours}.weight"), (f"{theirs}/beta", f"{ours}.bias")]


TABLE: list[Line] = [
    ("encoder/conv1/*", "patch_embed.convs.0.*"),
    ("encoder/conv2/*", "patch_embed.convs.1.*"),
    ("encoder/position_encodings/encodings", "pos_embed", row),
    *_norm("encoder/layer_norm", "core.norm"),
    *blocks(
        "encoder/layer_{i}/",
        "core.blocks.{i}.",
        [
            *_norm("self_attention/layer_norm", "norm1"),
            ("self_attention/linear_0/weight", "attn.qkv.weight"),
            ("self_attention/linear_0/bias", "attn.q_bias", first_third),
            ("self_attention/linear_0/bias", "attn.v_bias", _last_third),
            ("self_attention/linear_1/*", "attn.proj.*"),
            *_norm("ffn/layer_norm", "norm2"),
            ("ffn/linear_0/*", "mlp.fc1.*"),
            ("ffn/linear_1/*", "mlp.fc2.*"),
        ],
    ),
]


def from_ctranslate2(path: str | Path, **overrides: Any) -> nn.Module:
    """The audio tower of a Whisper model, the mean over all frames, no head; `.report` tells what was done.

    It carries how it is fed as `.preprocess`, which `hub.save` writes: windows of 30 s.

    Args:
        path: model.bin, or the folder that holds it. Weights in half precision or 8 bit become float32.
        overrides: fields of our config to change, e.g. `depth=4`, `pool="map"`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another architecture, or tensors that do not fit.
    """
    path = Path(path)
    path = path / "model.bin" if path.is_dir() else path
    found = read_ctranslate2(path, lambda name: name.startswith(_ENCODER))
    if found.architecture != ARCHITECTURE:
        raise ValueError(f"'{path}' holds a {found.architecture[:60]}, expected a {ARCHITECTURE}")
    config = _described(found, path)
    del found.tensors[_HEADS]
    state, report = translate(found.tensors, TABLE, source=str(path))
    report.left_out |= dict.fromkeys(found.others, "the decoder, which writes text; the tower is the encoder")
    model: Any = assemble(override(config, overrides), state, report, source=str(path))
    model.preprocess = preprocess_of(model.config)
    return model


def _described(found: Variables, path: Path) -> AudioTowerConfig:
    """The tower's config, read off the shapes."""
    tensors = found.tensors
    needed = {"encoder/conv1/weight": 3, "encoder/position_encodings/encodings": 2, _HEADS: 0}
    needed["encoder/layer_0/ffn/linear_0/weight"] = 2
    for name, axes in needed.items():
        if name not in tensors or tensors[name].ndim != axes:
            raise ValueError(f"'{path}' has no '{name}' of {axes} axes: not a Whisper encoder")
    if (heads := int(tensors[_HEADS])) < 1:
        raise ValueError(f"'{path}' has {heads} heads of attention, expected at least 1")
    rows, width = tensors["encoder/position_encodings/encodings"].shape
    core = CoreConfig(
        width=width,
        depth=sum(name.endswith("/ffn/layer_norm/gamma") for name in tensors),
        num_heads=heads,
        mlp_dim=tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        **CORE,
    )
    bands = tensors["encoder/conv1/weight"].shape[1]
    # The second convolution takes every other frame.
    return AudioTowerConfig(core=core, spectrogram_size=(2 * rows, bands), **TOWER)
