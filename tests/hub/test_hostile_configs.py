"""Configs and files that ask for models larger than what is stored: refused before anything is allocated."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvit import hub
from mmvit.data.image import ImagePreprocess
from mmvit.models.config import ClassifierConfig, ImageTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets import build_model
from tests.hub import flax_files as flax


def refused(read: Callable[[], object], match: str) -> None:
    """`read` ends in one line."""
    with pytest.raises(ValueError, match=match) as caught:
        read()
    assert "\n" not in str(caught.value)


TOWER = ImageTowerConfig(
    core=CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32), image_size=(16, 16), patch_size=8
)


@pytest.fixture
def folder(tmp_path) -> Path:
    model = build_model(ClassifierConfig(tower=TOWER, num_classes=3))
    hub.save(model, tmp_path / "model", preprocess=ImagePreprocess(size=(16, 16)))
    return tmp_path / "model"


GREEDY = {
    "width": (("tower", "core", "width", 10**6), "tensors of another shape"),
    "a width beyond all numbers": (("tower", "core", "width", 10**30), "a model of these sizes cannot be"),
    "mlp_dim": (("tower", "core", "mlp_dim", 10**12), "tensors of another shape"),
    "depth": (("tower", "core", "depth", 10**9), "depth is 1000000000, but there are"),
    "registers": (("tower", "registers", 10**12), "tensors missing: tower.reg_token"),
    "image_size": (("tower", "image_size", [8 * 10**5, 8 * 10**5]), "tensors of another shape"),
    "patch_size": (("tower", "patch_size", 0), "cannot be|patch_size"),
    "a negative width": (("tower", "core", "width", -16), "cannot be|width"),
    "a deviation of zero": (("tower", "std", [0.0, 0.5, 0.5]), "cannot be"),
    "num_classes": (("num_classes", 10**13), "tensors of another shape"),
    "words for numbers": (("tower", "image_size", ["a", "b"]), "cannot be|image_size"),
}


@pytest.mark.parametrize("case", GREEDY)
def test_a_config_that_asks_for_more_than_its_weights(case: str, folder) -> None:
    (*path, value), message = GREEDY[case]
    config = json.loads((folder / "config.json").read_text())
    where = config["model"]
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    refused(lambda: hub.load(folder), message)


def test_a_config_nested_without_end(folder) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    refused(lambda: hub.load(folder), "config.json' is not valid JSON")


def test_a_few_bytes_that_name_a_giant(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tree = flax.random_vit(rng)
    giant = np.zeros(2 * 10**6, np.float32)
    for n in (0, 1):
        tree[f"Transformer/encoderblock_0/LayerNorm_{n}/scale"] = giant
    np.savez_compressed(tmp_path / "w.npz", **tree)
    refused(lambda: hub.from_big_vision(tmp_path / "w.npz"), "tensors of another shape")


def test_a_few_numbers_in_a_torch_file_that_name_a_giant(tmp_path) -> None:
    state = {"blocks.0.norm1.weight": torch.zeros(2 * 10**6), "blocks.0.mlp.fc1.weight": torch.zeros(4, 2)}
    state |= {"patch_embed.proj.weight": torch.zeros(2, 3, 4, 4), "pos_embed": torch.zeros(1, 5, 2)}
    torch.save(state, tmp_path / "w.pth")
    refused(lambda: hub.from_checkpoint(tmp_path / "w.pth", "deit", num_heads=2), "tensors missing")
    far = {"blocks.999999999.norm1.weight": torch.zeros(2), **state}
    torch.save(far, tmp_path / "w.pth")
    refused(
        lambda: hub.from_checkpoint(tmp_path / "w.pth", "deit", num_heads=2),
        r"has blocks \[0, 999999999\], expected 0..1 without gaps",
    )
