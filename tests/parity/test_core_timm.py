"""Our image tower against timm's VisionTransformer, every parameter random: within 1e-5 in float32."""

import pytest
import torch

from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.image import ImageTower

timm = pytest.importorskip("timm")
SIZE = {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8, "img_size": 32}

# arguments of timm's model -> fields of ours
CASES = {
    "plain": ({}, {}),
    "class token without position": ({"no_embed_class": True}, {"class_position": False}),
    "registers": ({"reg_tokens": 4, "no_embed_class": True}, {"registers": 4, "class_position": False}),
    "map": ({"global_pool": "map", "class_token": False}, {"pool": "map", "class_token": False}),
    "mean, then norm": ({"global_pool": "avg", "fc_norm": True}, {"pool": "mean_norm"}),
    "norm, then mean": ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
    "clip": ({"pre_norm": True, "act_layer": "quick_gelu"}, {"patch_bias": False}),
    "layer scale": ({"init_values": 0.1, "qkv_bias": False, "act_layer": "gelu_tanh"}, {}),
}
CORES = {
    "mean, then norm": {"norm_last": False},
    "clip": {"norm_first": True, "activation": "quick_gelu"},
    "layer scale": {"layer_scale": 0.1, "qkv_bias": False, "activation": "gelu_tanh"},
}


def renamed(state: dict) -> dict:
    names = {"blocks.": "core.blocks.", "norm.": "core.norm.", "norm_pre.": "core.norm_pre."}
    names |= {"attn_pool.": "pool.", "fc_norm.": "pool.norm."}
    out = {}
    for key, value in state.items():
        start = next((s for s in names if key.startswith(s)), "")
        out[names.get(start, "") + key.removeprefix(start)] = value
    return out


def pair_of_models(case: str, dtype=torch.float32):
    torch.manual_seed(0)
    theirs, fields = CASES[case]
    peer = timm.models.VisionTransformer(num_classes=0, **SIZE, **theirs).eval().to(dtype)
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    core = CoreConfig(width=32, depth=3, num_heads=4, mlp_dim=64, **CORES.get(case, {}))
    ours = (
        ImageTower(ImageTowerConfig(core=core, image_size=(32, 32), patch_size=8, **fields)).eval().to(dtype)
    )
    ours.load_state_dict(renamed(peer.state_dict()))  # strict: every name has its partner
    return peer, ours


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal(case):
    peer, ours = pair_of_models(case)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert (ours.features(x) - peer(x)).abs().max() < 1e-5
        tokens = ours.forward_tokens(x).values
        assert (tokens - peer.forward_features(x)).abs().max() < 1e-5


def test_outputs_equal_in_float64():
    peer, ours = pair_of_models("registers", torch.float64)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    assert (ours(x) - peer(x)).abs().max() < 1e-12


@pytest.mark.parametrize("case", ["plain", "registers", "map"])
@pytest.mark.parametrize("size", [(48, 24), (16, 64)])
def test_outputs_equal_at_another_resolution(case, size):
    """timm resamples its table when the model is told its size; ours as the pictures come."""
    peer, ours = pair_of_models(case)
    peer.set_input_size(img_size=size)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert (ours.features(x) - peer(x)).abs().max() < 1e-5


def test_gradients_equal():
    peer, ours = pair_of_models("plain")
    x = torch.randn(3, 3, 32, 32)
    peer(x).square().mean().backward()
    ours(x).square().mean().backward()
    grads = renamed({n: p.grad for n, p in peer.named_parameters()})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], rtol=1e-4, atol=1e-5)


def test_intermediate_layers_equal():
    peer, ours = pair_of_models("registers")
    x = torch.randn(2, 3, 32, 32)
    theirs = peer.forward_intermediates(
        x, indices=[0, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    layers = ours.forward_tokens(x, layers=(1, -1)).layers
    for (grid, prefix), number in zip(theirs, (1, 3), strict=True):
        assert (layers[number][:, 5:] - grid).abs().max() < 1e-5
        assert (layers[number][:, :5] - prefix).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "shift"),
    [({"norm_eps": 1e-3}, 1e-4), ({"activation": "gelu_tanh"}, 1e-5), ({"activation": "quick_gelu"}, 1e-3)],
)
def test_the_comparison_would_notice(change, shift):
    peer, ours = pair_of_models("plain")
    core = CoreConfig(width=32, depth=3, num_heads=4, mlp_dim=64, **change)
    wrong = ImageTower(ImageTowerConfig(core=core, image_size=(32, 32), patch_size=8)).eval()
    wrong.load_state_dict(ours.state_dict())
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert (wrong.features(x) - peer(x)).abs().max() > shift
