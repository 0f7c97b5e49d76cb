"""timm's MlpMixer against the mixer_* presets."""

from functools import partial

import timm
from torch import nn

from mmvit import hub
from tests.parity.case import Case
from tests.parity.cases_cait import outputs

# presets built with two blocks: how many they have
_BIG = {"mixer_l16_224": 24, "mixer_l32_224": 24, "mixer_h14_224": 32}
NOTE = "one size only: the token MLPs are made for it"


def build(name: str, blocks: int | None = None) -> nn.Module:
    """timm's model; out of its class where timm has no name for it (H/14) or takes no number of blocks."""
    if blocks is None and name != "mixer_h14_224":
        return timm.create_model(name)
    patch = int(name.split("_")[1][1:])
    width = 1280 if name == "mixer_h14_224" else 1024
    peer = timm.models.mlp_mixer.MlpMixer(patch_size=patch, embed_dim=width, num_blocks=blocks or 32)
    peer.pretrained_cfg = timm.models.get_pretrained_cfg("mixer_l16_224").to_dict()  # the mean and deviation
    return peer


def _case(name: str, full: bool) -> Case:
    fewer = name in _BIG and not full
    return Case(
        preset=name,
        peer="timm MlpMixer" if name == "mixer_h14_224" else f"timm {name}",
        build=partial(build, name, 2 if fewer else None),
        convert=partial(hub.from_timm, head=True),
        outputs=outputs,
        overrides={"depth": 2} if fewer else {},
        blocks=f"2 of {_BIG[name]}" if fewer else "all",
        slow=name in _BIG and full,
        note=NOTE,
    )


CASES = [
    *(_case(name, full=name not in _BIG) for name in (*timm.list_models("mixer_*"), "mixer_h14_224")),
    _case("mixer_l16_224", full=True),
]
