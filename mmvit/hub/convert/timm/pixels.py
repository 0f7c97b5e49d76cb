"""Which pictures a timm model was trained on: facts that its modules do not all hold."""

from __future__ import annotations

from typing import Any

from mmvit.errors import need


def pixels_of(model: Any) -> dict[str, Any]:
    """`mean` and `std` as fields of a tower's config."""
    data = need("timm").data.resolve_model_data_config(model)
    return {"mean": tuple(data["mean"]), "std": tuple(data["std"])}


def size_of(model: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    _, height, width = need("timm").data.resolve_model_data_config(model)["input_size"]
    return height, width
