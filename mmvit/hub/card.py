"""The model card README.md: what people and hubs read first, written from facts that the saver knows.

What nobody said is called "not stated"; nothing is made up. The metadata block follows the hub's model-card
schema: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

import json
import re
from typing import Any

from torch import nn

_PIPELINES = {
    "dual_encoder": "zero-shot-image-classification",
    "video_pair": "feature-extraction",
    "audio_pair": "zero-shot-audio-classification",
    "detector": "zero-shot-object-detection",
    "vatt": "feature-extraction",
    "image_tower": "image-feature-extraction",
    "text_tower": "feature-extraction",
    "video_tower": "feature-extraction",
    "audio_tower": "feature-extraction",
    "image_classifier": "image-classification",
    "video_classifier": "video-classification",
    "audio_classifier": "audio-classification",
}
_KIND = {
    "dual_encoder": "An image-text pair",
    "video_pair": "A video-text pair",
    "audio_pair": "An audio-text pair",
    "detector": "An open-vocabulary detector",
    "vatt": "Video, audio and text in common spaces",
    "image_tower": "An image tower",
    "text_tower": "A text tower",
    "video_tower": "A video tower",
    "audio_tower": "An audio tower",
    "image_classifier": "An image classifier",
    "video_classifier": "A video classifier",
    "audio_classifier": "An audio classifier",
}
_INTENDED = {
    "dual_encoder": "Comparing pictures with texts: search, and classification with classes given as words.",
    "video_pair": "Comparing clips with texts: search, and classification with classes given as words.",
    "audio_pair": "Comparing sounds with texts: search, and classification with classes given as words.",
    "detector": "Finding objects in pictures, named by words or shown by an example, with boxes and scores.",
    "vatt": "Comparing clips, sounds, pictures and texts: search, and classes given as words.",
    "image_tower": "Turning pictures into vectors: search by picture, probes, a part of a larger model.",
    "text_tower": "Turning texts into vectors: search by text, a part of a larger model.",
    "video_tower": "Turning clips into vectors: probes, fine-tuning, a part of a larger model.",
    "audio_tower": "Turning sounds into vectors: probes, fine-tuning, a part of a larger model.",
    "image_classifier": "Sorting pictures into the classes that it was trained with.",
    "video_classifier": "Sorting clips into the classes that it was trained with.",
    "audio_classifier": "Sorting sounds into the classes that it was trained with.",
}
_USE = {
    "dual_encoder": """model = mmvit.load("{name}")
pictures = model.encode(image=["photo.jpg"])           # (1, {dim}) unit vectors
texts = model.encode(text=["a fox", "a violin"])
print(model.similarity(pictures, texts))""",
    "video_pair": """model = mmvit.load("{name}")
clips = model.encode(video=["fox.mp4"])                # (1, {dim}) unit vectors
texts = model.encode(text=["a fox", "a violin"])
print(model.similarity(clips, texts))""",
    "audio_pair": """model = mmvit.load("{name}")
sounds = model.encode(audio=["dog.wav"])               # (1, {dim}) unit vectors
texts = model.encode(text=["a dog barks", "a violin"])
print(model.similarity(sounds, texts))""",
    "detector": """detector = mmvit.Detector(mmvit.load("{name}"))
found = detector.detect(["photo.jpg"], queries=["a fox", "a violin"])[0]
print(found.boxes, found.scores, found.labels)  # pixels of the picture, xyxy""",
    "vatt": """model = mmvit.load("{name}")
clips, sounds = model.encode(video=["dog.mp4"]), model.encode(audio=["dog.wav"])  # (1, {dim}) unit vectors
texts = model.encode(text=["a dog barks", "a violin"])
print(model.similarity(clips, texts), model.similarity(sounds, texts))""",
    "image_tower": """model = mmvit.load("{name}")
features = model.encode(image=["photo.jpg"])           # (1, {dim}) unit vectors""",
    "text_tower": """model = mmvit.load("{name}")
embeddings = model.encode(text=["a fox", "a violin"])  # (2, {dim}) unit vectors""",
    "image_classifier": """loaded = mmvit.hub.load("{name}")
logits = loaded.model(loaded.preprocess("photo.jpg")[None])""",
    "video_tower": """loaded = mmvit.hub.load("{name}")
features = loaded.model(clips)  # (B,3,T,H,W) uint8 -> (B, {dim})""",
    "audio_tower": """loaded = mmvit.hub.load("{name}")
features = loaded.model(sounds)  # spectrograms (B,T,M) or waveforms (B,S), as in training -> (B, {dim})""",
    "video_classifier": """loaded = mmvit.hub.load("{name}")
logits = loaded.model(clips)  # (B,3,T,H,W) uint8""",
    "audio_classifier": """loaded = mmvit.hub.load("{name}")
logits = loaded.model(sounds)  # spectrograms (B,T,M) or waveforms (B,S), as in training""",
}
# The facts that a reader needs to decide whether to use a model; `missing_facts` names those not given.
WANTED = ("license", "data", "metrics", "intended_use", "limitations")


def missing_facts(card: dict[str, Any]) -> list[str]:
    """Those of `WANTED` that a card does not state."""
    return [key for key in WANTED if not card.get(key)]


def card_text(name: str, config: dict[str, Any], model: nn.Module, source: str | None = None) -> str:
    """The card in Markdown with the metadata block that hubs index.

    Args:
        name: of the model, its folder's name.
        config: what goes into config.json; `card` inside holds the saver's facts: `license`, `base_models`,
            `data`, `metrics` (name -> number), `evaluated_on` (what data the metrics are of),
            `intended_use`, `limitations`, `notes`, and any others, listed as they are.
        model: to count its parameters.
        source: what a reader gives to `load`; None = the name.
    """
    facts = dict(config["card"])
    license_, bases = facts.pop("license", None), _list(facts.pop("base_models", []))
    data, metrics = _list(facts.pop("data", [])), facts.pop("metrics", {})
    notes, measured_on = facts.pop("notes", ""), facts.pop("evaluated_on", "")
    intended, limits = facts.pop("intended_use", ""), _list(facts.pop("limitations", []))
    kind = config["kind"]
    if kind == "dual_encoder" and (modality := model.config.modality) != "image":  # type: ignore[union-attr]
        kind = f"{modality}_pair"
    parameters = sum(p.numel() for p in model.parameters())
    use = _USE[kind].format(name=source or name, dim=getattr(model, "embed_dim", "D"))
    parts = [
        _metadata(name, kind, license_, bases, data, metrics, measured_on),
        f"# {name}\n\n{_KIND[kind]} of {parameters / 1e6:.2f} M parameters, made with mmvit.\n",
        f"{notes}\n" if notes else "",
        f"## Use\n\n```python\nimport mmvit\n\n{use}\n```\n",
        _section("Intended use", [intended or _INTENDED[kind]]),
        _section("Limitations", limits or _limitations(config, bases, metrics)),
    ]
    if metrics:
        where = f"Measured on {measured_on}.\n\n" if measured_on else ""
        rows = "\n".join(f"| {key} | {_number(value)} |" for key, value in metrics.items())
        parts.append(f"## Measured\n\n{where}| metric | value |\n| --- | --- |\n{rows}\n")
    else:
        parts.append("## Measured\n\nNo metrics were recorded.\n")
    made_from = [f"- made from: {', '.join(bases)}"] if bases else []
    parts.append(_section("Training data", [f"- data: {', '.join(data) or 'not stated'}", *made_from]))
    parts.append(_section("Licence", [f"- licence: {license_ or 'not stated'}"]))
    lines = [f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in facts.items()]
    parts.append(_section("Facts", [*lines, f"- fingerprint: `{config['fingerprint'][:16]}`"]))
    return "\n".join(part for part in parts if part)


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _limitations(config: dict[str, Any], bases: list[str], metrics: dict[str, Any]) -> list[str]:
    """What follows from the facts, for a saver who stated no limitations."""
    model = config["model"]
    text = model.get("text") or (model if config["kind"] == "text_tower" else {})
    lines = ["- None were stated. Measure it on your own data before you rely on it."]
    if length := text.get("context_length"):
        lines.append(f"- It reads at most {length} tokens of a text; the rest is cut.")
    if size := (model.get("image") or model.get("tower") or model).get("image_size"):
        lines.append(f"- It sees pictures at {size[0]}x{size[1]} pixels; smaller detail is lost.")
    if bases:
        lines.append(f"- Whatever limits {', '.join(bases)} limits this model too.")
    if not metrics:
        lines.append("- How well it does anything was not recorded.")
    return lines


def _metadata(
    name: str,
    kind: str,
    license_: str | None,
    bases: list[str],
    data: list[str],
    metrics: dict[str, Any],
    measured_on: str,
) -> str:
    """The YAML block; names that cannot be repositories of a hub stay in the text below."""
    lines = ["---", "library_name: mmvit", f"pipeline_tag: {_PIPELINES.get(kind, 'feature-extraction')}"]
    lines += _licence_lines(license_) if license_ else []
    known = {"base_model": filter(_repository, bases), "datasets": filter(_repository, data)}
    for key, values in {**known, "metrics": metrics}.items():
        if items := [f"- {_scalar(value)}" for value in values]:
            lines += [f"{key}:", *items]
    if metrics and measured_on:
        rows = [{"type": _slug(k), "name": k, "value": v} for k, v in metrics.items() if _is_number(v)]
        result = {
            "task": {"type": _PIPELINES[kind]},
            "dataset": {"type": _slug(measured_on), "name": measured_on},
            "metrics": rows,
        }
        index = [{"name": name, "results": [result]}]
        lines.append(f"model-index: {json.dumps(index, ensure_ascii=False)}")  # JSON is YAML
    return "\n".join([*lines, "---", ""])


def _licence_lines(license_: str) -> list[str]:
    """The licence by its identifier, or as "other" with its name where it is none."""
    if re.fullmatch(r"[A-Za-z0-9.-]+", license_):
        return [f"license: {_scalar(license_.lower())}"]
    return ["license: other", f"license_name: {_scalar(license_)}"]


def _repository(name: str) -> bool:
    """Whether a name can be that of a hub's repository: name or owner/name."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name, re.ASCII) is not None and ".." not in name


def _scalar(value: str) -> str:
    """A YAML scalar; JSON's quoting is YAML's."""
    # What YAML would read as a number, a boolean or nothing is quoted too.
    plain = re.fullmatch(r"[A-Za-z][\w.-]*", value, re.ASCII)
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return value if plain and value.lower() not in words else json.dumps(value, ensure_ascii=False)


def _slug(value: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_") or "unnamed"


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
