"""A model that is built to be filled is, once filled, the model that was built as usual."""

import pytest
import torch

from mmvit.models.presets import build_model, preset
from mmvit.models.unfilled import Unfilled

SMALL = {
    "vit_mu_patch16_224_map": {"image_size": 32, "registers": 2, "layer_scale": 0.1},
    "beit_base_patch16_224": {"image_size": 32, "width": 32, "num_heads": 2, "mlp_dim": 64, "depth": 2},
    "cct_2_3x2_32_sine": {},
    "mvitv2_tiny": {"image_size": 64, "grid": (16, 16), "width": 16},
    "convnextv2_atto": {"widths": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "image_size": 64},
    "videomae_small_patch16_224": {"clip_size": (4, 32, 32), "depth": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_filled_it_is_the_same_model(name):
    config = preset(name, **SMALL[name])
    usual = build_model(config).eval()
    with Unfilled():
        model = build_model(config).eval()
    for mine, theirs in zip(model.modules(), usual.modules(), strict=True):
        if isinstance(mine, torch.nn.LayerNorm):
            assert torch.equal(mine.weight, theirs.weight), "constants are not left out"
    model.load_state_dict(usual.state_dict())
    size = getattr(config, "clip_size", None) or config.image_size
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(model(x), usual(x))


def test_nothing_is_drawn():
    before = torch.get_rng_state()
    with Unfilled():
        torch.nn.Linear(300, 300)
    assert torch.equal(torch.get_rng_state(), before)
    torch.nn.Linear(3, 3)
    assert not torch.equal(torch.get_rng_state(), before)
