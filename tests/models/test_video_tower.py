"""The video tower: positions at other sizes, kept tubelets, what both poolings read, mistakes."""

import pytest
import torch

import mmvit
from mmvit.models.video import VideoTower
from mmvit.tokens.positions import sincos_1d

SMALL = {
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 48,
    "clip_size": (4, 16, 16),
    "patch_size": (2, 8, 8),
}


def tower(**overrides):
    torch.manual_seed(0)
    model = mmvit.create_model("videomae_small_patch16_224", **SMALL | overrides)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_names_of_the_weights():
    model = tower()
    block = ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"]
    names = [f"core.blocks.{i}.{n}" for i in range(2) for n in block] + ["patch_embed.proj", "pool.norm"]
    wanted = {f"{n}.{part}" for n in names for part in ("weight", "bias")} | {"pos_embed"}
    wanted |= {f"core.blocks.{i}.attn.{n}" for i in range(2) for n in ("qkv.weight", "q_bias", "v_bias")}
    assert set(model.state_dict()) == wanted
    assert isinstance(model, VideoTower)
    assert model.patch_embed.proj.weight.shape == (32, 3, 2, 8, 8)


def test_a_fixed_table_is_made_anew_for_another_clip():
    model = tower()
    model.patch_embed.proj.weight.data.zero_()
    model.patch_embed.proj.bias.data.zero_()
    tokens = model.tokens(torch.rand(1, 3, 6, 24, 16))
    assert tokens.grid == (3, 3, 2)
    assert torch.equal(tokens.values, sincos_1d(18, 32))
    resampled = tower(position_resample="bicubic")
    resampled.patch_embed.proj.weight.data.zero_()
    resampled.patch_embed.proj.bias.data.zero_()
    assert (resampled.tokens(torch.rand(1, 3, 6, 24, 16)).values - sincos_1d(18, 32)).abs().max() > 0.1


def test_kept_tubelets_are_those_of_the_whole_clip():
    model = tower()
    x = torch.rand(2, 3, 4, 16, 16)
    keep = torch.tensor([[7, 0, 3], [1, 2, 6]])
    tokens, whole = model.tokens(x, keep), model.tokens(x)
    assert torch.equal(tokens.values, whole.values.gather(1, keep[..., None].expand(-1, -1, 32)))
    assert model.forward_tokens(x, keep).values.shape == (2, 3, 32)


def test_features_are_the_normed_mean_of_all_tubelets():
    model = tower(pool_eps=0.5)
    x = torch.rand(2, 3, 4, 16, 16)
    mean = model.forward_tokens(x).values.mean(1)
    norm = model.pool.norm
    wanted = torch.nn.functional.layer_norm(mean, (32,), norm.weight, norm.bias, eps=0.5)
    torch.testing.assert_close(model.features(x), wanted, rtol=0, atol=1e-5)


def test_a_classifier_of_clips():
    model = mmvit.create_model("videomae_small_patch16_224", num_classes=5, **SMALL)
    assert model(torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)).shape == (2, 5)


def test_one_gradient_step_reaches_every_weight():
    model = tower()
    model(torch.rand(2, 3, 4, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"clip_size": (3, 16, 16)},
            r"clip_size is \(3, 16, 16\), expected multiples of patch_size=\(2, 8, 8\)",
        ),
        ({"position": "learned"}, "recompute.*needs a fixed table"),
        ({"pool": "cls"}, "class_token is False"),
        ({"pool": "cls_dist"}, "distill_token is False"),
        ({"pool": "queries"}, "queries is None"),
    ],
)
def test_mistakes_name_the_remedy(overrides, message):
    with pytest.raises(ValueError, match=message):
        tower(**overrides)
