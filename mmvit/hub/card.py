"""The model card README.md: what people and hubs read first, written from facts that the saver knows."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

_PIPELINES = {
    "dual_encoder": "zero-shot-image-classification",
    "image_tower": "image-feature-extraction",
    "text_tower": "feature-extraction",
    "image_classifier": "image-classification",
}
_KIND = {
    "dual_encoder": "An image-text pair",
    "image_tower": "An image tower",
    "text_tower": "A text tower",
    "image_classifier": "An image classifier",
}
_USE = {
    "dual_encoder": """model = mmvit.load("{name}")
pictures = model.encode(image=["photo.jpg"])           # (1, {dim}) unit vectors
texts = model.encode(text=["a fox", "a violin"])
print(model.similarity(pictures, texts))""",
    "image_tower": """model = mmvit.load("{name}")
features = model.encode(image=["photo.jpg"])           # (1, {dim}) unit vectors""",
    "text_tower": """model = mmvit.load("{name}")
embeddings = model.encode(text=["a fox", "a violin"])  # (2, {dim}) unit vectors""",
    "image_classifier": """loaded = mmvit.hub.load("{name}")
logits = loaded.model(loaded.preprocess("photo.jpg")[None])""",
}


def card_text(name: str, config: dict[str, Any], model: nn.Module) -> str:
    """The card in Markdown with the metadata block that hubs index.

    Args:
        name: of the model, its folder's name.
        config: what goes into config.json; `card` inside holds the saver's facts: `license`, `base_models`,
            `data`, `metrics` (name -> number), `notes`, and any others, listed as they are.
        model: to count its parameters.
    """
    facts = dict(config["card"])
    license_, bases = facts.pop("license", None), _list(facts.pop("base_models", []))
    data, metrics = _list(facts.pop("data", [])), facts.pop("metrics", {})
    notes = facts.pop("notes", "")
    parameters = sum(p.numel() for p in model.parameters())
    parts = [
        _metadata(config["kind"], license_, bases, data, metrics),
        f"# {name}\n\n{_KIND[config['kind']]} of {parameters / 1e6:.2f} M parameters, made with mmvit.\n",
    ]
    if notes:
        parts.append(f"{notes}\n")
    use = _USE[config["kind"]].format(name=name, dim=getattr(model, "embed_dim", "D"))
    parts.append(f"## Use\n\n```python\nimport mmvit\n\n{use}\n```\n")
    if metrics:
        rows = "\n".join(f"| {key} | {_number(value)} |" for key, value in metrics.items())
        parts.append(f"## Measured\n\n| metric | value |\n| --- | --- |\n{rows}\n")
    lines = [f"- {key.replace('_', ' ')}: {_text(value)}" for key, value in facts.items()]
    lines += [f"- licence: {license_ or 'not stated'}"]
    lines += [f"- made from: {', '.join(bases)}"] if bases else []
    lines += [f"- data: {', '.join(data)}"] if data else []
    lines += [f"- fingerprint: `{config['fingerprint'][:16]}`"]
    parts.append("## Facts\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _metadata(
    kind: str, license_: str | None, bases: list[str], data: list[str], metrics: dict[str, Any]
) -> str:
    lines = ["---", "library_name: mmvit", f"pipeline_tag: {_PIPELINES[kind]}"]
    lines += [f"license: {_scalar(license_.lower())}"] if license_ else []
    for key, values in (("base_model", bases), ("datasets", data), ("metrics", list(metrics))):
        if values:
            lines += [f"{key}:", *(f"- {_scalar(value)}" for value in values)]
    return "\n".join([*lines, "---", ""])


def _scalar(value: str) -> str:
    """A YAML scalar; JSON's quoting is YAML's."""
    return value if value.replace("-", "").replace(".", "").replace("_", "").isalnum() else json.dumps(value)


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
