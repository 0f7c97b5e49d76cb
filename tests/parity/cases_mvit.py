"""timm's MultiScaleVit against the mvitv2_* presets, torchvision's MViT against mvit_v1_* and mvit_v2_*."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.models.mvitv2 import MultiScaleVit, checkpoint_filter_fn, model_cfgs
from torch import Tensor, nn
from torchvision.models.video import mvit

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity.case import Case

_STAGES = (1, 1, 1, 1)
_SHORT: dict[str, Any] = {"overrides": {"depths": _STAGES}}
SQUARE = "timm's model rebuilt for the other size, its tables resized by timm; ours resizes as it runs"


def timm_outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    tokens = peer.forward_features(x)
    return {
        "tokens": tokens,
        "pooled": peer.forward_head(tokens, pre_logits=True),
        "logits": peer.forward_head(tokens),
    }


def timm_model(name: str, short: bool, side: int = 224) -> nn.Module:
    """timm's model, or one with a block in each stage."""
    if not short:
        return timm.create_model(name, img_size=side)
    fields = {**vars(model_cfgs[name]), "depths": _STAGES}
    return MultiScaleVit(type(model_cfgs[name])(**fields), img_size=(side, side))


def timm_resized(name: str, short: bool, peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    other = timm_model(name, short, shape[2])
    other.load_state_dict(checkpoint_filter_fn(peer.state_dict(), other))
    return other


def _timm_case(name: str, full: bool, short: bool) -> Case:
    depth = sum(model_cfgs[name].depths)
    return Case(
        preset=name,
        peer=f"timm {name}",
        build=partial(timm_model, name, short),
        convert=partial(hub.from_timm, head=True),
        outputs=timm_outputs,
        shape=(1, 3, 224, 224),
        other=(1, 3, 160, 160),
        resize=partial(timm_resized, name, short),
        blocks=f"4 of {depth}" if short else "all",
        slow=full,
        note=SQUARE,
        **(_SHORT if short else {}),
    )


def video_model(name: str, short: bool) -> nn.Module:
    """torchvision's MViT as the preset describes it: its two named models are two of these."""
    config = preset(name, **(_SHORT["overrides"] if short else {}))
    core, clip = config.core, config.clip_size
    v1, last, settings = core.widen == "mlp", len(core.depths) - 1, []
    for stage, depth in enumerate(core.depths):
        for block in range(depth):
            starts, ends = stage > 0 and block == 0, stage < last and block == depth - 1
            q = core.q_stride if starts else (1, 1, 1)
            settings.append(
                mvit.MSBlockConfig(
                    num_heads=core.num_heads * 2**stage,
                    input_channels=core.width * 2 ** (stage - (starts and not v1)),
                    output_channels=core.width * 2 ** (stage + (ends and v1)),
                    kernel_q=[] if v1 and not starts else [3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[] if v1 and not starts else list(q),
                    stride_kv=[
                        max(k // s**stage, 1) for k, s in zip(core.kv_stride, core.q_stride, strict=True)
                    ],
                )
            )
    return mvit.MViT(
        spatial_size=clip[1:],
        temporal_size=clip[0],
        block_setting=settings,
        residual_pool=not v1,
        residual_with_cls_embed=False,
        rel_pos_embed=not v1,
        proj_after_attn=not v1,
    )


def video_outputs(peer: Any, x: Tensor) -> dict[str, Tensor]:
    """torchvision remembers the size of the clip in its encoding; relative tables are resized as it runs."""
    if peer.pos_encoding.spatial_pos is None:
        peer.pos_encoding.temporal_size = x.shape[2] // 2
        peer.pos_encoding.spatial_size = (x.shape[3] // 4, x.shape[4] // 4)
    seen = []
    hook = peer.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = peer(x)
    hook.remove()
    return {"tokens": seen[0], "pooled": seen[0][:, 0], "logits": logits}


def video_resized(peer: Any, shape: tuple[int, ...]) -> nn.Module:
    """v1's tables at another size, as SlowFast takes them there: places bicubic, times linear."""
    encoding = peer.pos_encoding
    if encoding.spatial_pos is None:
        return peer
    (h, w), (D,) = encoding.spatial_size, encoding.class_token.shape
    encoding.temporal_size, encoding.spatial_size = shape[2] // 2, (shape[3] // 4, shape[4] // 4)
    place = encoding.spatial_pos.T.reshape(1, D, h, w)
    place = nn.functional.interpolate(place, size=encoding.spatial_size, mode="bicubic")
    time = nn.functional.interpolate(
        encoding.temporal_pos.T[None], size=encoding.temporal_size, mode="linear"
    )
    encoding.spatial_pos = nn.Parameter(place[0].flatten(1).T)
    encoding.temporal_pos = nn.Parameter(time[0].T)
    return peer


def _video_case(
    name: str, full: bool, shape: tuple[int, ...] | None = None, note: str = "", peer: str = ""
) -> Case:
    config: Any = preset(name)
    v1 = config.core.widen == "mlp"
    return Case(
        preset=name,
        peer=f"torchvision {peer or 'MViT'}",
        build=partial(video_model, name, not full),
        convert=partial(hub.from_torchvision, head=True),
        outputs=video_outputs,
        shape=shape or (1, 3, *config.clip_size),
        other=(2, 3, 8, 96, 128) if v1 else (2, 3, 8, 96, 160),
        resize=video_resized,
        blocks="all" if full else f"4 of {config.core.depth}",
        # SlowFast's normalisation, which no torchvision model carries.
        differs=("mean", "std"),
        slow=full,
        note=note,
        **({} if full else _SHORT),
    )


_SMALLER = "at 8x104x104: at its own size torchvision keeps gigabytes of scores"

CASES = [
    *(_timm_case(f"mvitv2_{n}", False, False) for n in ("tiny", "small", "base", "small_cls", "base_cls")),
    *(_timm_case(f"mvitv2_{n}", False, True) for n in ("large", "large_cls", "huge_cls")),
    _timm_case("mvitv2_large", True, False),
    _video_case("mvit_v1_base_16x4", False, peer="mvit_v1_b"),
    _video_case("mvit_v2_small_16x4", False, peer="mvit_v2_s"),
    _video_case("mvit_v1_base_16x4", True, peer="mvit_v1_b"),
    _video_case("mvit_v2_small_16x4", True, peer="mvit_v2_s"),
    *(_video_case(f"mvit_{n}_32x3", False) for n in ("v1_base", "v2_base")),
    _video_case("mvit_v2_large_40x3", False, (2, 3, 8, 104, 104), _SMALLER),
]


def same_as_torchvision(name: str, build: Any) -> bool:
    """Whether `video_model` has the tensors of torchvision's named model."""
    with torch.device("meta"):
        ours, theirs = video_model(name, False).state_dict(), build().state_dict()
    return {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
