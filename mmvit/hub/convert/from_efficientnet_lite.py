"""EfficientNet-Lite weights in EfficientNet-PyTorch's names -> timm's twin `tf_efficientnet_lite*`.

Source: Tan & Le 2019 (EfficientNet); the Lite variants drop squeeze-excitation and use ReLU6. Key
names as in the two libraries: blocks are numbered through in one and by (stage, block) in the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line, Report, blocks, fill, translate
from mmvit.models.foreign import ForeignImageTower

# The network was trained on (x - 127) / 128 with x in 0..255.
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3

_SEPARABLE: list[Line] = [
    ("_depthwise_conv.*", "conv_dw.*"),
    ("_bn1.*", "bn1.*"),
    ("_project_conv.*", "conv_pw.*"),
    ("_bn2.*", "bn2.*"),
]
_INVERTED: list[Line] = [
    ("_expand_conv.*", "conv_pw.*"),
    ("_bn0.*", "bn1.*"),
    ("_depthwise_conv.*", "conv_dw.*"),
    ("_bn1.*", "bn2.*"),
    ("_project_conv.*", "conv_pwl.*"),
    ("_bn2.*", "bn3.*"),
]


def convert_efficientnet_lite(
    state: Mapping[str, Tensor], timm_names: list[str], *, classifier: bool = False
) -> tuple[dict[str, Tensor], Report]:
    """The weights under timm's names, and a report.

    Args:
        state: a state dict of EfficientNet-PyTorch form (`_conv_stem.weight`,
            `_blocks.I._expand_conv.weight`, ...).
        timm_names: the state-dict names of timm's twin; its stages are read from them.
        classifier: keep the 1000-way ImageNet classifier; a tower has no place for it.
    """
    places = sorted(
        {tuple(map(int, m.groups())) for n in timm_names if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", n))}
    )
    table: list[Line] = [
        ("_conv_stem.*", "conv_stem.*"),
        ("_bn0.*", "bn1.*"),
        ("_conv_head.*", "conv_head.*"),
        ("_bn1.*", "bn2.*"),
        (
            "_fc.*",
            "classifier.*" if classifier else LEFT_OUT + "the classes of ImageNet; a tower ends in features",
        ),
    ]
    for number, (stage, block) in enumerate(places):
        expands = f"blocks.{stage}.{block}.conv_pwl.weight" in timm_names
        table += blocks(
            f"_blocks.{number}.", f"blocks.{stage}.{block}.", _INVERTED if expands else _SEPARABLE
        )
    return translate(state, table, source="EfficientNet-Lite weights")


def from_efficientnet_lite(state: Mapping[str, Tensor], name: str) -> ForeignImageTower:
    """An image tower around timm's twin `name` with the weights; `.report` tells what was done.

    Args:
        state: as `convert_efficientnet_lite` takes it.
        name: tf_efficientnet_lite0 .. tf_efficientnet_lite4.

    Raises:
        ValueError: tensors that do not fit that size.
    """
    tower = ForeignImageTower.wrap(f"timm:{name}")
    tower = ForeignImageTower(replace(tower.config, mean=MEAN, std=STD), tower.module)
    translated, report = convert_efficientnet_lite(state, list(tower.module.state_dict()))
    fill(tower.module, translated, source=name)
    tower.report = report  # type: ignore[assignment]
    return tower.eval()
