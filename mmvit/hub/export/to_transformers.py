"""A model of ours -> a folder that transformers reads with `from_pretrained`, outputs equal.

Source: transformers 5 and the names in its published files, which differ from those in memory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.errors import need
from mmvit.hub.export.describe import complete, peer_config
from mmvit.hub.export.feeding import preprocessor_config, special_ids, write_tokenizer
from mmvit.hub.export.parts import parts_of
from mmvit.hub.export.targets import Target, choose_target
from mmvit.hub.export.untranslate import untranslate
from mmvit.hub.fingerprint import portable
from mmvit.hub.whole import whole_folder
from mmvit.models.config import ClassifierConfig, DualEncoderConfig
from mmvit.models.peers.transformers import quiet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What `to_transformers` wrote.

    Attributes:
        architecture: the class whose `from_pretrained` reads the folder.
        notes: what the folder does not say or says otherwise, one line each.
    """

    architecture: str
    notes: tuple[str, ...]


def to_transformers(
    m: Any,
    path: str | os.PathLike[str],
    *,
    preprocess: ImagePreprocess | None = None,
    tokenizer: Tokenizer | None = None,
) -> Exported:
    """Which class reads the folder that was written, and notes; the folder appears whole or not at all.

    Towers become ViTModel, Dinov2Model or Dinov2WithRegistersModel, classifiers their ForImageClassification,
    pairs CLIPModel or SiglipModel. ViTModel has a pooler that our towers lack: read it with
    `ViTModel.from_pretrained(path, add_pooling_layer=False)`.

    Args:
        m: a folder of ours, what `mmvit.load` or `hub.load` gave, or a module.
        path: the folder to write; one that transformers wrote before is replaced.
        preprocess: takes the place of the model's own; without any, preprocessor_config.json is left out.
        tokenizer: likewise; a pair needs one, for the id of its end token.

    Raises:
        ValueError: the model has a part that no class of transformers computes; the message names the field.
        FileExistsError: `path` holds something else.
        OSError: the disk refused.
    """
    parts = parts_of(m, preprocess, tokenizer)
    config: Any = parts.model.config
    name, target = choose_target(config)
    path = Path(path)
    _check_replaceable(path)
    ids = {}
    if isinstance(config, DualEncoderConfig):
        if parts.tokenizer is None:
            raise ValueError(f"{name} needs the id of the end token: pass tokenizer=...")
        ids = special_ids(parts.tokenizer)
        if name == "CLIPModel" and ids["eos_token_id"] == 2:
            raise ValueError("the end token has id 2, which transformers' CLIP takes for an old mistake")
    described = peer_config(name, config, ids)
    state = _peer_state(name, target, {n: portable(v) for n, v in parts.model.state_dict().items()}, config)
    notes = []
    with whole_folder(path) as half:
        described.save_pretrained(half)
        save_file(state, half / "model.safetensors", metadata={"format": "pt"})
        _check_names(name, half)
        if parts.preprocess:
            image = getattr(config, "image", getattr(config, "tower", config))
            spec = preprocessor_config(parts.preprocess, image)
            (half / "preprocessor_config.json").write_text(json.dumps(spec, indent=2) + "\n")
        if parts.tokenizer and (why := write_tokenizer(parts.tokenizer, half, padding=name == "SiglipModel")):
            notes.append(why)
    if name == "ViTModel":
        notes.append("ViTModel's pooler has no weights here: pass add_pooling_layer=False")
    for note in notes:
        log.warning("%s: %s", path, note)
    return Exported(name, tuple(notes))


def _peer_state(name: str, target: Target, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors of the file that `name` reads."""
    bare = complete(name, state, config)
    theirs = {target.prefix + n: v for n, v in untranslate(bare, target.table, target=name).items()}
    if isinstance(config, ClassifierConfig):
        weight = state["head.weight"]
        if "Dinov2" in name:  # reads [class token; mean of patches]: the second half weighs nothing
            weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
        theirs |= {"classifier.weight": weight, "classifier.bias": state["head.bias"]}
    if "WithRegisters" in name:  # always has the token of its pre-training, which nothing reads
        width = state[next(n for n in state if n.endswith("cls_token"))].shape[-1]
        theirs[f"{target.prefix}embeddings.mask_token"] = torch.zeros(1, width)
    if name == "SiglipModel":
        theirs |= {n: theirs[n].reshape(1) for n in ("logit_scale", "logit_bias")}
    return theirs


def _check_names(name: str, folder: Path) -> None:
    """Nothing when transformers reads every tensor in `folder` and misses none.

    Raises:
        ValueError: it does not; nothing is written then, for it would fill in random numbers.
    """
    cls = getattr(need("transformers"), name)
    more = {"add_pooling_layer": False} if name == "ViTModel" else {}
    _, info = read_quietly(cls, folder, output_loading_info=True, **more)
    wrong = {key: sorted(map(str, found)) for key, found in info.items() if found}
    if wrong:
        raise ValueError(f"this version of transformers reads {name} otherwise than expected: {wrong}")


def read_quietly(cls: Any, folder: Path, **arguments: Any) -> Any:
    """`cls.from_pretrained(folder)` without network, progress bars and tables of names."""
    with quiet(need("transformers")):
        return cls.from_pretrained(str(folder), local_files_only=True, **arguments)


def _check_replaceable(path: Path) -> None:
    """Nothing; raises FileExistsError where something other than transformers' folder stands."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        found: Any = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, Mapping) or "model_type" not in found:
        raise FileExistsError(f"'{path}' exists and was not written by transformers: choose another folder")
