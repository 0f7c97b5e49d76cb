"""One folder holds a model: weights, config, preprocessing, tokenizer, card. Written whole or not at all.

  config.json         format, schema_version, kind, model (the config dataclass), fingerprints of the others
  model.safetensors   weights; never a pickle
  preprocess.json     how pictures are resized; how clips and sounds are cut, of models that see or hear them
  tokenizer/          for models that read text
  README.md           the model card
Loading needs no network. A part that does not match its fingerprint is an error, not a worse number.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer, load_tokenizer
from mmvit.errors import UserError, nearest
from mmvit.hub.card import card_text
from mmvit.hub.convert.files.read import read_safetensors
from mmvit.hub.convert.files.safetensors_header import read_header
from mmvit.hub.convert.files.sizes import check_sizes
from mmvit.hub.convert.keymap import fill
from mmvit.hub.fingerprint import combine, portable, weights_fingerprint
from mmvit.hub.parts import check_parts, is_of_clips
from mmvit.hub.plain import from_plain, kind_of, to_plain
from mmvit.hub.remote import PREFIX, fetch
from mmvit.hub.whole import whole_folder
from mmvit.models.presets import build_model
from mmvit.models.unfilled import Unfilled

SCHEMA_VERSION = 1
_KEYS = (
    "format",
    "schema_version",
    "mmvit_version",
    "kind",
    "model",
    "fingerprint",
    "weights_fingerprint",
    "preprocess_fingerprint",
    "tokenizer_fingerprint",
    "card",
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a folder held.

    Attributes:
        model: in eval mode, on the CPU.
        preprocess: an `ImagePreprocess`; a `ClipPreprocess` where clips or sounds are taken; None where
            nothing is known, and for a text tower.
        tokenizer: None for a model that reads no text.
        config: config.json as it was read.
        fingerprint: of model and preprocessing together.
    """

    model: nn.Module
    preprocess: Any
    tokenizer: Tokenizer | None
    config: dict[str, Any]
    fingerprint: str


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    preprocess: ImagePreprocess | ClipPreprocess | None = None,
    tokenizer: Tokenizer | None = None,
    card: dict[str, Any] | None = None,
) -> str:
    """Writes the model's folder, replacing one of ours that is there already; returns the fingerprint.

    Args:
        model: a tower, pair, detector or classifier, or video, audio and text in common spaces.
        path: the folder to write; appears complete or not at all.
        preprocess: needed by models that see pictures, or video, audio and text in common spaces; of towers
            of clips or sounds alone it may be missing. None = the one that a converted model carries.
        tokenizer: needed by models that read text.
        card: facts for README.md and config.json: license, data, metrics, base_models, notes, ...

    Raises:
        ValueError: the preprocessing or tokenizer is missing or does not fit the model.
        FileExistsError: `path` holds something that is not a saved model.
        OSError: the disk refused; what was there is untouched.
    """
    config = getattr(model, "config", None)
    kind = kind_of(config)
    carried = getattr(model, "preprocess", None)
    if preprocess is None and isinstance(carried, ImagePreprocess | ClipPreprocess):
        preprocess = carried
    check_parts(config, kind, preprocess, tokenizer)
    path = Path(path)
    _check_replaceable(path)
    state = {name: portable(value) for name, value in model.state_dict().items()}
    weights = weights_fingerprint(state)
    described: dict[str, Any] = {
        "format": "mmvit",
        "schema_version": SCHEMA_VERSION,
        "mmvit_version": _version(),
        "kind": kind,
        "model": to_plain(config),
        "fingerprint": combine(weights, config, preprocess),
        "weights_fingerprint": weights,
        "preprocess_fingerprint": preprocess.fingerprint() if preprocess else None,
        "tokenizer_fingerprint": tokenizer.fingerprint() if tokenizer else None,
        "card": card or {},
    }
    with whole_folder(path) as half:
        save_file(state, half / "model.safetensors", metadata={"format": "pt"})
        if preprocess:
            _write_json(half / "preprocess.json", preprocess.to_dict())
        if tokenizer:
            tokenizer.save(half / "tokenizer")
        (half / "README.md").write_text(card_text(path.name, described, model), encoding="utf-8")
        _write_json(half / "config.json", described)
    return described["fingerprint"]


def load(path: str | os.PathLike[str]) -> Loaded:
    """The model in a folder, with its preprocessing and tokenizer, checked part by part.

    Args:
        path: the folder, or "hf-hub:owner/name[@revision]" of a hub's model, see `remote.fetch`.

    Raises:
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is damaged, does not match its fingerprint, or says something unknown.
    """
    path = fetch(str(path)) if str(path).startswith(PREFIX) else Path(path)
    config = read_config(path)
    model_config = from_plain(config["kind"], config["model"], str(path / "config.json"))
    preprocess = _load_preprocess(path, config, is_of_clips(config["kind"], model_config))
    tokenizer = _load_tokenizer(path, config)
    # A config that asks for more than the file holds must not be built to find that out.
    check_sizes(model_config, read_header(path / "model.safetensors"), source=str(path / "model.safetensors"))
    state = read_safetensors(path / "model.safetensors")
    weights = weights_fingerprint(state)
    _match(path / "model.safetensors", weights, config.get("weights_fingerprint"))
    with Unfilled():
        model = build_model(model_config)
    fill(model, state, source=str(path / "model.safetensors"))
    check_parts(model_config, config["kind"], preprocess, tokenizer)
    return Loaded(
        model=model.eval(),
        preprocess=preprocess,
        tokenizer=tokenizer,
        config=config,
        fingerprint=combine(weights, model_config, preprocess),
    )


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a saved model, its outer keys checked.

    Raises:
        FileNotFoundError: no folder, or no config.json in it.
        ValueError: not one of our configs, an unknown key, or a newer schema.
    """
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no model folder at '{path}'")
    if not file.is_file():
        raise FileNotFoundError(f"'{path}' has no config.json: it is not a saved mmvit model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != "mmvit":
        raise ValueError(f"'{file}' was not written by mmvit; read a peer's folder as 'library:{path}'")
    if config.get("schema_version") != SCHEMA_VERSION:
        found = config.get("schema_version")
        raise ValueError(
            f"'{file}' has schema_version {found}, this mmvit reads {SCHEMA_VERSION}: update mmvit"
        )
    for key in config:
        if key not in _KEYS:
            raise ValueError(f"'{file}': unknown key '{key}': {nearest(key, _KEYS)}")
    for key in ("kind", "model"):
        if key not in config:
            raise ValueError(f"'{file}': '{key}' is missing")
    return config


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a model that loads; a cheap check that reads no weights."""
    try:
        config = read_config(path)
    except (FileNotFoundError, ValueError):
        return False
    parts = {"preprocess_fingerprint": "preprocess.json", "tokenizer_fingerprint": "tokenizer"}
    needed = ["model.safetensors", *(file for key, file in parts.items() if config.get(key))]
    return all((Path(path) / name).exists() for name in needed)


def _load_preprocess(
    path: Path, config: dict[str, Any], of_clips: bool
) -> ImagePreprocess | ClipPreprocess | None:
    file, wanted = path / "preprocess.json", config.get("preprocess_fingerprint")
    if not wanted:
        return None
    if not file.is_file():
        raise FileNotFoundError(f"'{file}' is missing: the model cannot be fed without it")
    try:
        taken: Any = ClipPreprocess if of_clips else ImagePreprocess
        preprocess = taken.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (UserError, TypeError, ValueError) as error:
        raise ValueError(f"'{file}': {error}") from None
    _match(file, preprocess.fingerprint(), wanted)
    return preprocess


def _load_tokenizer(path: Path, config: dict[str, Any]) -> Tokenizer | None:
    folder, wanted = path / "tokenizer", config.get("tokenizer_fingerprint")
    if not wanted:
        return None
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is missing: the model cannot read text without it")
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise ValueError(f"'{folder}': {error}") from None
    _match(folder, tokenizer.fingerprint(), wanted)
    return tokenizer


def _match(file: Path, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(
            f"'{file}' is not the one this model was saved with (fingerprint {found[:12]}, config.json says "
            f"{wanted[:12]}): restore the file, or load, change and save the model to make the change its own"
        )


def _check_replaceable(path: Path) -> None:
    if path.exists() and not (path / "config.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"'{path}' exists and is no saved model: choose another folder")


def _write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version() -> str:
    from importlib.metadata import version

    return version("mmvit")
