"""Weight files as VideoMAE, AST and AudioMAE were released -> our video and audio towers.

What no file tells stands here: VideoMAE's clips have 16 frames of 224 pixels, AST's patches lie 10 apart,
AudioMAE's 16, and both read 128 mel bands. A VideoMAE file has the names and shapes of some other methods'
files with other positions, so the family must be said.
Source: the repositories MCG-NJU/VideoMAE, YuanGongND/ast and facebookresearch/AudioMAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, cat, nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.feeding import released_preprocess
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, strip_prefix, translate
from mmvit.hub.convert.timm.vit import VIT
from mmvit.models.config import AudioTowerConfig, VideoTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.normalisation import AUDIOSET, IMAGENET
from mmvit.models.overrides import override

_DECODER = LEFT_OUT + "the decoder of masked pre-training; the tower is the encoder"
_BANDS, _CLIP = 128, (16, 224, 224)  # mel bands; frames and pixels

VIDEOMAE: list[Line] = [
    *VIT,
    ("encoder_to_decoder.weight", _DECODER),
    ("mask_token", _DECODER),
    ("decoder.*", _DECODER),
]
AST: list[Line] = [
    *blocks("v.", "", VIT),
    *(
        (f"v.{head}.*", LEFT_OUT + "the image classifier that AST started from")
        for head in ("head", "head_dist")
    ),
    ("mlp_head.0.*", "pool.norm.*"),
]


def videomae(state: Mapping[str, Tensor], num_heads: int | None) -> tuple[VideoTowerConfig, list[Line]]:
    """The video tower of VideoMAE's pre-trained or fine-tuned file, names without "encoder."."""
    t, p, q = state["patch_embed.proj.weight"].shape[2:]
    config = VideoTowerConfig(
        core=_core(state, "", num_heads, key_bias=False, norm_last="norm.weight" in state),
        clip_size=_CLIP,
        patch_size=(t, p, q),
        class_token=False,
        position="sincos1d",
        position_resample="recompute",
        pool="mean_norm" if "fc_norm.weight" in state else "mean",
        **IMAGENET,
    )
    return config, VIDEOMAE


def ast(state: Mapping[str, Tensor], num_heads: int | None) -> tuple[AudioTowerConfig, list[Line]]:
    """The audio tower of AST's file."""
    bands = (_BANDS - 16) // 10 + 1
    frames, rest = divmod(state["v.pos_embed"].shape[1] - 2, bands)
    if rest:
        raise ValueError(
            f"'v.pos_embed' has {bands * frames + rest} grid rows, expected {bands} of equal length"
        )
    config = AudioTowerConfig(
        core=_core(state, "v.", num_heads),
        spectrogram_size=(16 * -(-((frames - 1) * 10 + 16) // 16), _BANDS),
        distill_token=True,
        pool="cls_dist_norm",
        pool_eps=1e-5,
        **AUDIOSET,
    )
    return config, AST


def audiomae(state: Mapping[str, Tensor], num_heads: int | None) -> tuple[AudioTowerConfig, list[Line]]:
    """The audio tower of AudioMAE's file, whose patches and tokens, time before frequency, are turned."""
    bands = _BANDS // 16
    frames, rest = divmod(state["pos_embed"].shape[1] - 1, bands)
    if rest:
        raise ValueError(f"'pos_embed' has {bands * frames + rest} grid rows, expected {bands} to each time")

    def frequency_major(table: Tensor) -> Tensor:
        grid = table[:, 1:].reshape(1, frames, bands, -1).transpose(1, 2).flatten(1, 2)
        return cat([table[:, :1], grid], dim=1)

    config = AudioTowerConfig(
        core=_core(state, "", num_heads, norm_last="norm.weight" in state),
        spectrogram_size=(16 * frames, _BANDS),
        patch_stride=(16, 16),
        pool="mean_norm" if "fc_norm.weight" in state else "cls",
        **AUDIOSET,
    )
    turned = ("pos_embed", "patch_embed.proj.*")
    table: list[Line] = [
        *(line for line in VIT if line[0] not in turned),
        ("pos_embed", "pos_embed", frequency_major),
        ("patch_embed.proj.weight", "patch_embed.proj.weight", lambda kernel: kernel.transpose(-1, -2)),
        ("patch_embed.proj.bias", "patch_embed.proj.bias"),
        ("mask_token", _DECODER),
        ("decoder_*", _DECODER),
    ]
    return config, table


def _core(state: Mapping[str, Tensor], prefix: str, num_heads: int | None, **fields: Any) -> CoreConfig:
    """The core by the shapes of its tensors; heads are 64 wide, but in the huge model 80."""
    width = state[f"{prefix}blocks.0.norm1.weight"].shape[0]
    return CoreConfig(
        width=width,
        depth=len([n for n in state if n.startswith(f"{prefix}blocks.") and n.endswith(".norm1.weight")]),
        num_heads=num_heads or (16 if width == 1280 else width // 64),
        mlp_dim=state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0],
        **fields,
    )


# family -> (what stands before all names, reader, names of the classifier)
Reader = Callable[[Mapping[str, Tensor], int | None], tuple[Any, list[Line]]]
READERS: dict[str, tuple[str, Reader, str]] = {
    "videomae": ("encoder.", videomae, "head"),
    "ast": ("", ast, "mlp_head.1"),
    "audiomae": ("", audiomae, "head"),
}


def convert(
    state: Mapping[str, Tensor],
    family: str,
    *,
    head: bool,
    num_heads: int | None,
    source: str,
    overrides: Mapping[str, Any],
) -> nn.Module:
    """The tower, or with a classifier in the file and `head` the classifier; `.report` tells what was done.

    `.preprocess` is how it is fed; `hub.save` writes it.

    Args:
        state: the file's tensors.
        family: a name in `READERS`.
        head: keep a classifier.
        num_heads: None = by the width, as in all released models.
        source: the file, for messages.
        overrides: fields of our config to change.

    Raises:
        ValueError: tensors that do not fit.
    """
    prefix, read, classifier = READERS[family]
    state = strip_prefix(state, (prefix,)) if prefix else dict(state)
    try:
        config, table = read(state, num_heads)
    except (KeyError, ValueError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"'{source}' as family '{family}': {why}") from None
    found = state.get(f"{classifier}.weight") if head else None
    config, table = with_head(config, table, {classifier: "head"}, 0 if found is None else len(found))
    translated, report = translate(state, table, source=source)
    model: Any = assemble(override(config, dict(overrides)), translated, report, source=source)
    model.preprocess = released_preprocess(model.config)
    return model
