"""open_clip's CLIP against the clip_* presets, transformers' CLIPModel against the *_quickgelu ones."""

import copy
from typing import Any

import open_clip
import transformers
from torch import nn

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity import pairs
from tests.parity.case import Case

_NAMES = {"base": "B", "large": "L", "huge": "H", "giant": "g", "gigantic": "bigG"}


def open_clip_name(name: str) -> str:
    """open_clip's name of a preset: clip_large_patch14_336 -> ViT-L-14-336."""
    _, size, patch, side, *_ = name.split("_")
    return f"ViT-{_NAMES[size]}-{patch.removeprefix('patch')}" + ("" if side == "224" else f"-{side}")


def open_clip_model(name: str, depth: int | None, size: Any = None, kind: Any = open_clip.CLIP) -> nn.Module:
    """open_clip's model by its name, with `depth` blocks in each tower (None = all), for another picture."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config.pop("custom_text", None)
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if part in config and depth:
            config[part]["layers"] = depth
    if size is not None:
        config["vision_cfg"]["image_size"] = size
    return kind(**config)


def open_clip_resized(name: str, depth: int | None, kind: Any, peer: nn.Module, shape: Any) -> nn.Module:
    """The same weights for another square picture, by open_clip's own resampling."""
    other, state = open_clip_model(name, depth, shape[2], kind), peer.state_dict()
    open_clip.model.resize_pos_embed(state, other)
    other.load_state_dict(state)
    return other


def _cut(depth: int | None, full: int) -> dict[str, Any]:
    return {
        "overrides": {"image.depth": depth, "text.depth": depth} if depth else {},
        "blocks": f"{depth} of {full}" if depth else "all",
        "slow": depth is None,
        "note": pairs.PAIR_NOTE,
        "ours": pairs.ours,
        "inputs": pairs.pair_inputs,
    }


def _open_clip(name: str, depth: int | None = 2) -> Case:
    image = preset(name).image
    side, p, theirs = image.image_size[0], image.patch_size, open_clip_name(name)
    return Case(
        preset=name,
        peer=f"open_clip {theirs}",
        build=lambda: open_clip_model(theirs, depth),
        convert=hub.from_open_clip,
        outputs=pairs.open_clip_pair,
        shape=(2, 3, side, side, 77),
        other=(2, 3, 10 * p, 10 * p, 40),
        resize=lambda peer, shape: open_clip_resized(theirs, depth, open_clip.CLIP, peer, shape),
        **_cut(depth, image.core.depth),
    )


def _transformers(name: str, depth: int = 2) -> Case:
    pair = preset(name)
    side, p = pair.image.image_size[0], pair.image.patch_size
    sizes = {
        which: {
            "hidden_size": core.width,
            "num_hidden_layers": depth,
            "num_attention_heads": core.num_heads,
            "intermediate_size": core.mlp_dim,
        }
        for which, core in (("vision", pair.image.core), ("text", pair.text.core))
    }
    sizes["vision"] |= {"image_size": side, "patch_size": p}
    sizes["text"] |= {"bos_token_id": 49_406, "eos_token_id": 49_407, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        vision_config=sizes["vision"], text_config=sizes["text"], projection_dim=pair.image.embed_dim
    )
    return Case(
        preset=name,
        peer="transformers CLIPModel",
        build=lambda: transformers.CLIPModel(config),
        convert=hub.from_transformers,
        outputs=pairs.transformers_pair,
        shape=(2, 3, side, side, 77),
        other=(2, 3, 10 * p, 13 * p, 40),
        differs=("position_resample",),
        **_cut(depth, pair.image.core.depth),
    )


CASES = [
    *(_open_clip(name) for name in list_models("clip_*") if not name.endswith("quickgelu")),
    *(_transformers(name) for name in list_models("clip_*_quickgelu")),
    _open_clip("clip_base_patch32_224", depth=None),
    _open_clip("clip_huge_patch14_224", depth=None),
]
