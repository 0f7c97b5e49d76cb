"""timm's Cait against the cait_* presets."""

from functools import partial

import timm
from torch import Tensor, nn

from mmvit import hub
from tests.parity.case import Case

# preset: side of the other picture; the deep 768 wide ones are built with two blocks
_OTHER = {"224": (160, 224), "384": (224, 320), "448": (224, 224)}
_BIG = {"cait_m36_384": 36, "cait_m48_448": 48}
NOTE = "timm's model rebuilt for the other size, its positions taken there by torch's bicubic, as deit does"


def outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    tokens = peer.forward_features(x)
    return {
        "tokens": tokens,
        "pooled": peer.forward_head(tokens, pre_logits=True),
        "logits": peer.forward_head(tokens),
    }


def resized(name: str, peer: nn.Module, shape: tuple[int, ...], **fields: int) -> nn.Module:
    """A new model for the size, since timm's takes one only."""
    state = peer.state_dict()
    side = int(state["pos_embed"].shape[1] ** 0.5)
    table = state["pos_embed"].transpose(1, 2).reshape(1, -1, side, side)
    goal = (shape[2] // 16, shape[3] // 16)
    table = nn.functional.interpolate(table, size=goal, mode="bicubic", align_corners=False)
    other = timm.create_model(name, img_size=shape[2:], **fields)
    other.load_state_dict({**state, "pos_embed": table.flatten(2).transpose(1, 2)})
    return other


def _case(name: str, full: bool) -> Case:
    fields = {"depth": 2} if name in _BIG and not full else {}
    side = name.rsplit("_", 1)[1]
    return Case(
        preset=name,
        peer=f"timm {name}",
        build=partial(timm.create_model, name, **fields),
        convert=partial(hub.from_timm, head=True),
        outputs=outputs,
        shape=(2 if side == "224" else 1, 3, int(side), int(side)),
        other=(1, 3, *_OTHER[side]),
        resize=partial(resized, name, **fields),
        overrides=dict(fields),
        blocks=f"2 of {_BIG[name]}" if fields else "all",
        slow=name in _BIG and full,
        note=NOTE,
    )


CASES = [
    *(_case(name, full=name not in _BIG) for name in timm.list_models("cait_*")),
    _case("cait_m36_384", full=True),
]
