"""The audio tower: two leading tokens, other lengths, the norm on what they say together."""

import pytest
import torch

import mmvit
from mmvit.models.audio import AudioTower
from mmvit.tokens.positions import resample_grid

SMALL = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "spectrogram_size": (96, 40)}


def tower(**overrides):
    torch.manual_seed(0)
    model = mmvit.create_model("ast_base_patch16", **SMALL | overrides)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_the_grid_is_frequency_by_time_behind_two_tokens():
    model = tower()
    assert isinstance(model, AudioTower)
    assert model.grid == (3, 9)
    assert model.pos_embed.shape == (1, 2 + 27, 32)
    tokens = model.tokens(torch.randn(2, 96, 40))
    assert (tokens.grid, tokens.prefix) == ((3, 9), 2)
    special = torch.cat([model.cls_token, model.dist_token], 1) + model.pos_embed[:, :2]
    assert torch.equal(tokens.values[0, :2], special[0])


def test_the_lowest_frequencies_come_first():
    model = tower()
    x = torch.randn(1, 96, 40)
    changed = x.clone()
    changed[:, :, 26:] += 1  # mel bands of the last row of patches only
    same = (model.tokens(x).values == model.tokens(changed).values).all(-1)[0]
    assert same[: 2 + 18].all()
    assert not same[2 + 18 :].any()


def test_shorter_sounds_use_the_middle_of_the_positions():
    model = tower()
    model.patch_embed.proj.weight.data.zero_()
    model.patch_embed.proj.bias.data.zero_()
    found = model.tokens(torch.randn(1, 56, 40)).values[:, 2:]
    grid = model.pos_embed[:, 2:].reshape(3, 9, 32)
    assert torch.equal(found.reshape(3, 5, 32), grid[:, 2:7])
    longer = model.tokens(torch.randn(1, 200, 40)).values[:, 2:]
    wanted = resample_grid(model.pos_embed[:, 2:], (3, 9), (3, 19), "cut_or_stretch")
    torch.testing.assert_close(longer, wanted, rtol=0, atol=1e-6)


def test_features_are_the_normed_mean_of_both_tokens():
    model = tower(pool_eps=0.5)
    x = torch.randn(2, 96, 40)
    values = model.forward_tokens(x).values
    norm = model.pool.norm
    wanted = torch.nn.functional.layer_norm(values[:, :2].mean(1), (32,), norm.weight, norm.bias, eps=0.5)
    torch.testing.assert_close(model.features(x), wanted, rtol=0, atol=1e-5)


def test_one_head_on_the_features_and_a_gradient_everywhere():
    model = mmvit.create_model("ast_base_patch16", num_classes=5, **SMALL)
    assert model.head_dist is None
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model(torch.randn(2, 96, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"spectrogram_size": (96, 12)},
            r"\(96, 12\) \(frames, mel bands\), expected at least patch_size=16",
        ),
        ({"patch_stride": (0, 10)}, "patch_stride .0, 10. at least 1"),
        ({"distill_token": False}, "distill_token is False"),
    ],
)
def test_mistakes_name_the_remedy(overrides, message):
    with pytest.raises(ValueError, match=message):
        tower(**overrides)
