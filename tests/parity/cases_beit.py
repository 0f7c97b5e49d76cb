"""timm's Beit against the beit_* and beitv2_* presets, transformers' Beit and Data2VecVision beside them."""

import warnings
from functools import partial
from typing import Any

import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import list_models
from tests.parity.case import Case
from tests.parity.cases_vit import timm_case, timm_resized


def _resized(peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's interpolation of the tables indexes with a list
        return timm_resized(peer, shape)


def _beit(name: str, depth: int = 2, slow: bool = False) -> Case:
    return timm_case(name, depth, resize=_resized, slow=slow)


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model: Any = getattr(peer, peer.base_model_prefix)
    out = model(x, interpolate_pos_encoding=True)
    return {
        "tokens": out.last_hidden_state,
        "pooled": out.pooler_output,
        "logits": peer(x, interpolate_pos_encoding=True).logits,
    }


def _transformers(kind: str, depth: int = 2) -> Case:
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=depth,
        use_relative_position_bias=True,
        layer_norm_eps=1e-6,
        num_labels=10,
        image_size=224,
    )
    name = f"{kind}ForImageClassification"
    return Case(
        preset="beit_base_patch16_224",
        peer=f"transformers {name}",
        build=partial(getattr(transformers, name), config),
        convert=partial(hub.from_transformers, head=True),
        outputs=_outputs,
        shape=(1, 3, 224, 224),
        other=(1, 3, 160, 224),
        overrides={"depth": depth},
        blocks=f"{depth} of 12",
        differs=("relative_resample", "position_resample"),
        note="tables follow another grid bilinearly, as transformers resamples them",
    )


CASES = [
    *(_beit(n) for n in (*list_models("beit_*"), *list_models("beitv2_*")) if n != "beit_base_patch16_224"),
    _beit("beit_base_patch16_224", 12),
    _beit("beit_large_patch16_224", 24, slow=True),
    _transformers("Beit"),
    _transformers("Data2VecVision"),
]
