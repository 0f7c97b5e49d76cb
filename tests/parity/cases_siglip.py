"""transformers' SiglipModel against the siglip*_* presets, open_clip's against one of each kind."""

import copy
from functools import partial
from typing import Any
from unittest import mock

import open_clip
import torch
import transformers
from torch import nn

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity import pairs
from tests.parity.case import Case

VOCABULARY = 1000
_SMALL = "a vocabulary of 1,000; "


def _inputs(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Texts that fill the context: their padding is read like words, and the last position is pooled."""
    return pairs.pair_inputs(shape, end=VOCABULARY - 1) | {
        "mask": torch.ones(shape[0], shape[4], dtype=torch.bool)
    }


def _transformers_model(name: str, depth: int | None) -> nn.Module:
    pair = preset(name)
    sizes = {
        which: {
            "hidden_size": core.width,
            "num_hidden_layers": depth or core.depth,
            "num_attention_heads": core.num_heads,
            "intermediate_size": core.mlp_dim,
        }
        for which, core in (("vision", pair.image.core), ("text", pair.text.core))
    }
    sizes["vision"] |= {"image_size": pair.image.image_size[0], "patch_size": pair.image.patch_size}
    sizes["text"] |= {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": pair.text.context_length,
        "projection_size": pair.text.embed_dim,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=sizes["text"], vision_config=sizes["vision"])
    )


def _transformers(name: str, depth: int | None = 2) -> Case:
    pair = preset(name)
    side, p, length = pair.image.image_size[0], pair.image.patch_size, pair.text.context_length
    cut: dict[str, Any] = {"image.depth": depth, "text.depth": depth} if depth else {}
    return Case(
        preset=name,
        peer="transformers SiglipModel",
        build=lambda: _transformers_model(name, depth),
        convert=hub.from_transformers,
        outputs=pairs.transformers_pair,
        ours=pairs.ours,
        inputs=_inputs,
        shape=(2, 3, side, side, length),
        other=(2, 3, 10 * p, 13 * p, length),
        overrides={"vocab_size": VOCABULARY} | cut,
        blocks=f"{depth} of {pair.image.core.depth}" if depth else "all",
        differs=("position_resample",),
        slow=depth is None,
        note=_SMALL + pairs.PAIR_NOTE + ", which is read at its last position",
    )


def _open_clip_model(theirs: str) -> nn.Module:
    """open_clip's model with 2 blocks in each tower; it has no option for those of its image tower."""
    config = copy.deepcopy(open_clip.get_model_config(theirs))
    config["text_cfg"] |= {"layers": 2, "vocab_size": VOCABULARY}
    config.pop("custom_text")
    timm = open_clip.timm_model.timm
    with mock.patch.object(timm, "create_model", partial(timm.create_model, depth=2)):
        return open_clip.CustomTextCLIP(**config)


def _open_clip_resized(peer: Any, shape: tuple[int, ...]) -> nn.Module:
    """timm's own resampling of positions in the trunk."""
    peer.visual.trunk.set_input_size(img_size=shape[2:4])
    return peer


def _open_clip(name: str, theirs: str, differs: tuple[str, ...] = ()) -> Case:
    pair = preset(name)
    side, p, length = pair.image.image_size[0], pair.image.patch_size, pair.text.context_length
    return Case(
        preset=name,
        peer=f"open_clip {theirs}",
        build=lambda: _open_clip_model(theirs),
        convert=hub.from_open_clip,
        outputs=pairs.open_clip_pair,
        ours=pairs.ours,
        inputs=_inputs,
        shape=(2, 3, side, side, length),
        other=(2, 3, 10 * p, 13 * p, length),
        resize=_open_clip_resized,
        overrides={"vocab_size": VOCABULARY, "image.depth": 2, "text.depth": 2},
        blocks=f"2 of {pair.text.core.depth}",
        differs=differs,
        note=_SMALL + pairs.PAIR_NOTE + ("; open_clip computes the exact GELU in places" if differs else ""),
    )


# transformers always has a text head, which this one lacks.
_HEADLESS = "siglip_so400m_patch16_256_i18n"
CASES = [
    *(_transformers(name) for name in list_models("siglip*") if name != _HEADLESS),
    _open_clip("siglip_base_patch16_224", "ViT-B-16-SigLIP", differs=("activation",)),
    _open_clip("siglip2_base_patch32_256", "ViT-B-32-SigLIP2-256"),
    _open_clip(_HEADLESS, "ViT-SO400M-16-SigLIP-i18n-256", differs=("activation",)),
    _transformers("siglip_base_patch16_224", depth=None),
]
