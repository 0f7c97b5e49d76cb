"""timm's and transformers' ConvNeXt V2 against the convnextv2_* presets."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity.case import Case

_STAGES = (1, 1, 1, 1)
_BIG = ("large", "huge")


def timm_outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    maps = peer.forward_features(x)
    return {
        "tokens": maps.flatten(2).transpose(1, 2),
        "pooled": peer.forward_head(maps, pre_logits=True),
        "logits": peer.forward_head(maps),
    }


def transformers_model(name: str) -> nn.Module:
    core: Any = preset(name).core
    config = transformers.ConvNextV2Config(
        hidden_sizes=list(core.widths), depths=list(core.depths), num_labels=10
    )
    return transformers.ConvNextV2ForImageClassification(config)


def transformers_outputs(peer: Any, x: Tensor) -> dict[str, Tensor]:
    found = peer.convnextv2(x)
    return {
        "tokens": found.last_hidden_state.flatten(2).transpose(1, 2),
        "pooled": found.pooler_output,
        "logits": peer(x).logits,
    }


def _timm_case(size: str, full: bool) -> Case:
    name, fields = f"convnextv2_{size}", {} if full else {"depths": _STAGES}
    depth = preset(name).core.depth
    return Case(
        preset=name,
        peer=f"timm {name}",
        build=partial(timm.create_model, name, **fields),
        convert=partial(hub.from_timm, head=True),
        outputs=timm_outputs,
        shape=(1, 3, 224, 224),
        other=(2, 3, 128, 180),
        overrides=fields,
        blocks="all" if full else f"4 of {depth}",
        # No tensor depends on the size; timm notes that of the weights it names first.
        differs=("image_size",),
        slow=full and size in _BIG,
    )


def _transformers_case(size: str) -> Case:
    return Case(
        preset=f"convnextv2_{size}",
        peer="transformers ConvNextV2",
        build=partial(transformers_model, f"convnextv2_{size}"),
        convert=partial(hub.from_transformers, head=True),
        outputs=transformers_outputs,
        shape=(1, 3, 224, 224),
        other=(2, 3, 128, 180),
        differs=("pool_eps",),
        note="its last norm has an epsilon of 1e-12",
    )


CASES = [
    *(_timm_case(size, True) for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large")),
    *(_timm_case(size, False) for size in _BIG),
    *(_transformers_case(size) for size in ("atto", "tiny", "base")),
]
