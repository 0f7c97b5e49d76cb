"""timm's VisionTransformer against the vit_* presets, transformers' Dinov2 against dinov2_*."""

from functools import partial
from typing import Any

import timm
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.config import ImageTowerConfig
from mmvit.models.presets import list_models, preset
from tests.parity.case import Case

CLASSES = 10
# Pooling of ours -> how timm's model is told.
_POOLS: dict[str, dict[str, Any]] = {
    "cls": {"global_pool": "token"},
    "map": {"global_pool": "map", "class_token": False, "pool_include_prefix": True},
    "mean": {"global_pool": "avg", "class_token": False, "fc_norm": False},
}


def timm_outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What timm's image models return: all tokens, the vector before the classifier, the logits."""
    tokens = peer.forward_features(x)
    return {
        "tokens": tokens,
        "pooled": peer.forward_head(tokens, pre_logits=True),
        "logits": peer.forward_head(tokens),
    }


def timm_resized(peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """timm's own resampling of positions to another picture."""
    peer.set_input_size(img_size=shape[2:])
    return peer


def timm_case(
    name: str, depth: int, *, build=None, peer: str = "", slow: bool = False, **fields: Any
) -> Case:
    """A preset that timm has under the same name, or that `build` makes, with `depth` blocks."""
    config = preset(name)
    full, p, side = config.core.depth, config.patch_size, config.image_size[0]
    cut = {} if depth == full else {"depth": depth}
    made = partial(timm.create_model, name, num_classes=CLASSES, **cut) if build is None else build
    return Case(
        **{
            "preset": name,
            "peer": peer or f"timm {name}",
            "build": made,
            "convert": partial(hub.from_timm, head=True),
            "outputs": timm_outputs,
            "shape": (1, 3, side, side),
            "other": (1, 3, 10 * p, 14 * p) if p < 32 else (1, 3, 5 * p, 8 * p),
            "resize": timm_resized,
            "overrides": cut,
            "blocks": f"{depth} of {full}" if cut else "all",
            "slow": slow,
        }
        | fields
    )


def vision_transformer(config: ImageTowerConfig, depth: int) -> nn.Module:
    """timm's class with the arguments of one of our plain configs, for presets that it has no name for."""
    core = config.core
    model = timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=core.width,
        depth=depth,
        num_heads=core.num_heads,
        mlp_ratio=(core.mlp_dim + 0.5) / core.width,  # timm rounds the product down
        num_classes=CLASSES,
        reg_tokens=config.registers,
        **_POOLS[config.pool],
    )
    model.pretrained_cfg = {"mean": config.mean, "std": config.std}
    return model


def _vit(name: str, full: bool = False) -> Case:
    config = preset(name)
    core = config.core
    plain = config.pool == "cls" and not config.registers and config.image_size == (224, 224)
    small = core.width <= 384 or (core.width <= 768 and plain and config.patch_size > 8)
    depth = core.depth if small or full else 2 if core.width <= 1024 else 1
    if timm.is_model(name):
        return timm_case(name, depth, slow=full)
    build = partial(vision_transformer, config, depth)
    return timm_case(name, depth, build=build, peer="timm VisionTransformer", slow=full)


def _dinov2_outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    out = peer(x)
    return {"tokens": out.last_hidden_state, "pooled": out.pooler_output}


def _dinov2(name: str) -> Case:
    config = preset(name)
    core = config.core
    depth = core.depth if core.width < 768 else 2
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    c = getattr(transformers, f"{kind}Config")(
        hidden_size=core.width,
        num_hidden_layers=depth,
        num_attention_heads=core.num_heads,
        image_size=518,
        patch_size=14,
    )
    cut = {} if depth == core.depth else {"depth": depth}
    return Case(
        preset=name,
        peer=f"transformers {kind}Model",
        build=partial(getattr(transformers, f"{kind}Model"), c),
        convert=hub.from_transformers,
        outputs=_dinov2_outputs,
        shape=(1, 3, 518, 518),
        other=(1, 3, 140, 196),
        overrides=cut,
        blocks=f"{depth} of {core.depth}" if cut else "all",
    )


CASES = [
    *map(_vit, list_models("vit_*")),
    _vit("vit_large_patch16_224", full=True),
    *map(_dinov2, list_models("dinov2_*")),
]
