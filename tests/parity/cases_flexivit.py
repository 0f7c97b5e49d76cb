"""timm's FlexiViT against the flexivit_* presets, with its kernel resampled by the paper's operator."""

from functools import partial

import timm
from torch import Tensor, nn

from mmvit.models.presets import list_models, preset
from tests.parity.case import Case
from tests.parity.cases_vit import CLASSES, timm_case

_PATCH = 20  # of the other pictures


class _At:
    """Our model read at one patch size, as `outputs_of` asks models."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.size = None if x.shape[2] == x.shape[3] else _PATCH
        self.model = model

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        tower = self.model.tower
        return {
            "tokens": tower.forward_tokens(x, patch_size=self.size).values,
            "pooled": tower.features(x, patch_size=self.size),
            "logits": self.model(x, patch_size=self.size),
        }


def _resized(name: str, depth: int, peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """timm's model of the other patch size: its own functions, told the paper's operator and positions."""
    state = peer.state_dict()
    grid = (shape[2] // _PATCH, shape[3] // _PATCH)
    kernel = timm.layers.resample_patch_embed(
        state["patch_embed.proj.weight"], [_PATCH, _PATCH], interpolation="bilinear", antialias=False
    )
    table = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], list(grid), num_prefix_tokens=0, interpolation="bilinear", antialias=True
    )
    other = timm.create_model(name, img_size=shape[2:], patch_size=_PATCH, depth=depth, num_classes=CLASSES)
    other.load_state_dict({**state, "patch_embed.proj.weight": kernel, "pos_embed": table})
    return other


def _flexivit(name: str, full: bool = False) -> Case:
    depth = preset(name).core.depth if full or name != "flexivit_large" else 2
    return timm_case(
        name,
        depth,
        slow=full,
        ours=lambda model, x: _At(model, x).outputs(x),
        other=(1, 3, 160, 240),
        resize=partial(_resized, name, depth),
        note="the other pictures are cut into patches of 20 pixels",
    )


CASES = [*map(_flexivit, list_models("flexivit_*")), _flexivit("flexivit_large", full=True)]
