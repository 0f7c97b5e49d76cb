"""transformers' models -> our towers, pairs and classifiers, outputs equal.

Constants that no state dict holds (epsilon, GELU, normalisation, pooling) come from the peer's config or,
where it is silent, from what its family was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.hub.convert import feeding
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.families import family_of
from mmvit.hub.convert.files.read import read_weights
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import Line, strip_prefix, translate
from mmvit.hub.convert.transformers import (
    ast,
    beit,
    clap,
    convnext,
    mae,
    owl,
    tables,
    videomae,
    whisper,
)
from mmvit.hub.convert.transformers.config import clip_pair_of, core_of, image_of
from mmvit.models.config import (
    AudioTowerConfig,
    DetectorConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TextTowerConfig,
    VideoTowerConfig,
)
from mmvit.models.overrides import override
from mmvit.models.presets import AnyConfig


def from_transformers(source: nn.Module | str | Path, *, head: bool = True, **overrides: Any) -> nn.Module:
    """A tower, classifier, pair or detector of a transformers model; `.report` tells what was done.

    A detector, and what takes clips or sounds, carries how it is fed as `.preprocess`; `hub.save` writes it.

    Args:
        source: a model, or a folder written by its `save_pretrained` (read without network; safetensors
            only).
        head: False leaves a classifier or the detection heads out: the tower or the pair of towers alone.
        overrides: fields of our config to change: `depth=11`, `norm_last=False`, `image_size=128`,
            `context_length=64`, `pool="mean"`.

    Raises:
        ValueError: a model type without a converter, or tensors that do not fit.
        FileNotFoundError: no such folder, or no safetensors in it.
    """
    transformers = need("transformers")
    name = type(source).__name__ if isinstance(source, nn.Module) else str(source)
    config: Any
    if isinstance(source, nn.Module):
        config, state = source.config, source.state_dict()
    else:
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(f"'{source}' has no config.json: expected a folder saved by transformers")
        config = transformers.AutoConfig.from_pretrained(str(source), local_files_only=True)
        state = read_weights(Path(source))
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"no converter for transformers' '{config.model_type}': {nearest(config.model_type, _FAMILIES)}"
        )
    family = _FAMILIES[config.model_type]
    state = strip_prefix(state, family.prefixes)
    if family.prepare is not None:
        state = family.prepare(state)
    ours, table = family.describe(config, state), family.table
    if head and family.whole is not None and (detector := family.whole[0](config, state)) is not None:
        ours, table = detector, family.whole[1]
    saved = {} if isinstance(source, nn.Module) else _saved(Path(source) / "preprocessor_config.json")
    ours = _as_fed(ours, saved)
    biases = [f"{theirs}.bias" for theirs, mine in family.heads.items() if mine == "head"]
    classes = next((len(state[bias]) for bias in biases if bias in state), 0)
    reads = {state[f"{n}.weight"].shape[1] for n in family.heads if f"{n}.weight" in state}
    if head and classes and reads != {ours.core.out_width}:
        raise ValueError(
            f"{name}: its classifier reads more than the pooled features (DINOv2's also the mean of the "
            "patches): head=False reads the tower alone"
        )
    ours, table = with_head(ours, table, family.heads, classes if head else 0)
    translated, report = translate(state, table, source=name)
    model: Any = assemble(override(ours, overrides), translated, report, source=name)
    if isinstance(ours, DetectorConfig):
        model.preprocess = owl.preprocess_of(config, model.config.image.image_size, saved)
    elif (fed := feeding.clip_preprocess(model.config, saved)) is not None:
        model.preprocess = fed
    return model


def _saved(file: Path) -> dict[str, Any]:
    """What a preprocessor_config.json says; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _as_fed(config: Any, saved: Mapping[str, Any]) -> Any:
    """The config with the mean and deviation of the folder's own preprocessing, where it states them."""
    if isinstance(config, AudioTowerConfig):
        return feeding.as_fed(config, saved)
    mean, std = saved.get("image_mean"), saved.get("image_std")
    if not (mean and std):
        return config
    stated: dict[str, Any] = {"mean": tuple(mean), "std": tuple(std)}
    if isinstance(config, DualEncoderConfig | DetectorConfig):
        image: Any = replace(config.image, **stated)
        return replace(config, image=image)
    seen = isinstance(config, ImageTowerConfig | VideoTowerConfig)
    return replace(config, **stated) if seen else config


def _vit(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    return image_of(c, core_of(c), **family_of("transformers_vit").mean_std)


def _deit(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    # All of them have the distillation token; the classifier of the plain class reads the class token alone.
    pool = "cls" if "classifier.weight" in state else "cls_dist"
    return image_of(c, core_of(c), distill_token=True, pool=pool, **family_of("transformers_deit").mean_std)


def _dinov2(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    registers = getattr(c, "num_register_tokens", 0)
    return image_of(
        c,
        core_of(c, layer_scale=c.layerscale_value),
        registers=registers,
        position_resample="bicubic_antialias" if registers else "bicubic",
        **family_of("dinov2").mean_std,
    )


def _bert(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    if getattr(c, "position_embedding_type", None) not in (None, "absolute") or c.is_decoder:
        raise ValueError("only BERT encoders with absolute positions can be converted")
    row = family_of("bert")
    core = core_of(c, norm=row.norm, norm_first=row.norm_first, norm_last=row.norm_last)
    return TextTowerConfig(
        core=core, vocab_size=c.vocab_size, context_length=c.max_position_embeddings, pool="cls"
    )


def _clip(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    return clip_pair_of(c)


def _siglip(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    image = image_of(
        c.vision_config,
        core_of(c.vision_config),
        class_token=False,
        pool="map",
        **family_of("transformers_siglip").mean_std,
    )
    t = c.text_config
    text = TextTowerConfig(
        core=core_of(t),
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        pool="last",
        pad_mask=False,
        embed_dim=t.projection_size,
    )
    return DualEncoderConfig(
        image=image, text=text, logit_bias_init=-10.0, logit_scale_max=None, activation="sigmoid"
    )


def _class_token_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's tensors; a classifier (C,2D) that reads nothing of the patches' mean as one (C,D)."""
    weight = state.get("classifier.weight")
    if weight is None:
        return dict(state)
    own, mean = weight.chunk(2, dim=1)
    return dict(state) if mean.any() else {**state, "classifier.weight": own}


def _add_token_type(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors with token type 0 added to the positions, in float32."""
    types, positions = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
    if types not in state or positions not in state:
        raise ValueError(f"BERT weights lack '{types if types not in state else positions}'")
    return {**state, positions: state[positions].float() + state[types][0].float()}


@dataclass(frozen=True)
class _Family:
    """How one model type is read.

    Attributes:
        describe: its config and tensors -> our config, without a classifier.
        table: its names -> ours.
        prefixes: that composite models put before the tower's names; the first that is found is taken off.
        heads: its classifiers' names -> ours.
        prepare: changes its tensors before the table is used.
        whole: its config and tensors -> our detector's config or None, and the table of names for it.
    """

    describe: Callable[[Any, Mapping[str, Tensor]], AnyConfig]
    table: list[Line]
    prefixes: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    whole: tuple[Callable[[Any, Mapping[str, Tensor]], AnyConfig | None], list[Line]] | None = None


_HEAD = {"classifier": "head"}
_HEADS = {**_HEAD, "cls_classifier": "head", "distillation_classifier": "head_dist"}
_FAMILIES: dict[str, _Family] = {
    "vit": _Family(_vit, tables.VIT, ("vit.",), _HEAD),
    "deit": _Family(_deit, tables.DEIT, ("deit.",), _HEADS),
    "beit": _Family(beit.describe, beit.BEIT, ("beit.",), _HEAD),
    "data2vec-vision": _Family(beit.describe, beit.BEIT, ("data2vec_vision.",), _HEAD),
    "dinov2": _Family(_dinov2, tables.DINOV2, ("dinov2.",), _HEAD, _class_token_half),
    "dinov2_with_registers": _Family(
        _dinov2, tables.DINOV2, ("dinov2_with_registers.",), _HEAD, _class_token_half
    ),
    "vit_mae": _Family(mae.describe, mae.TABLE, ("vit.",), prepare=mae.prepare),
    "bert": _Family(_bert, tables.BERT, ("bert.",), prepare=_add_token_type),
    "clip": _Family(_clip, tables.CLIP),
    "siglip": _Family(_siglip, tables.SIGLIP),
    "owlvit": _Family(owl.describe, owl.PAIR, ("owlvit.",), whole=(owl.describe_whole, owl.DETECTOR)),
    "owlv2": _Family(owl.describe, owl.PAIR, ("owlv2.",), whole=(owl.describe_whole, owl.DETECTOR)),
    "convnextv2": _Family(
        convnext.describe, convnext.TABLE, ("convnextv2.",), _HEAD, prepare=convnext.prepare
    ),
    "videomae": _Family(videomae.describe, videomae.TABLE, ("videomae.",), _HEAD),
    "whisper": _Family(whisper.describe, whisper.TABLE, heads=_HEAD, prepare=whisper.prepare),
    "clap": _Family(clap.describe, clap.PAIR, prepare=clap.prepare),
    "clap_audio_model": _Family(
        clap.describe_audio, clap.AUDIO, ("audio_model.",), prepare=clap.prepare_audio
    ),
    "clap_text_model": _Family(clap.describe_text, clap.TEXT, ("text_model.",), prepare=clap.prepare_text),
    "audio-spectrogram-transformer": _Family(
        ast.describe, ast.TABLE, ("audio_spectrogram_transformer.",), {"classifier.dense": "head"}
    ),
}
