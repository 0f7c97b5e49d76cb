"""The image tower: token bookkeeping, kept subsets, other resolutions, initial values, names of weights."""

import pytest
import torch

from mmvit.models.presets import create_model
from mmvit.tokens.positions import resample_grid


def tower(**overrides):
    torch.manual_seed(0)
    model = create_model("vit_mu_patch16_224", **{"image_size": 64, "patch_size": 8, **overrides})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_names_of_the_weights():
    model = tower(registers=2, layer_scale=0.1, norm_first=True, pool="map", embed_dim=4, center=True)
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    linear = [f"core.blocks.0.{n}" for n in block] + [
        "core.norm",
        "core.norm_pre",
        "patch_embed.proj",
        "head",
    ]
    linear += [f"pool.{n}" for n in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")]
    wanted = {f"{n}.{part}" for n in linear for part in ("weight", "bias")}
    wanted |= {"cls_token", "reg_token", "pos_embed", "pool.latent", "head.mean"}
    wanted |= {f"core.blocks.0.ls{i}.gamma" for i in (1, 2)}
    assert set(model.state_dict()) == wanted
    assert model.pos_embed.shape == (1, 65, 32)


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_features_are_the_pooled_tokens(pool):
    model = tower(pool=pool, registers=2, depth=2)
    x = torch.rand(2, 3, 64, 64)
    encoded = model.forward_tokens(x, layers=(1,))
    assert encoded.values.shape == (2, 1 + 2 + 64, 32)
    assert (encoded.grid, encoded.prefix, sorted(encoded.layers)) == ((8, 8), 3, [1])
    torch.testing.assert_close(model.features(x), model.pool(encoded), rtol=0, atol=1e-5)
    assert torch.equal(model(x), model.project(model.features(x)))


def test_positions_follow_the_input_or_its_error_says_why():
    model = tower(position_resample="bicubic")
    x = torch.rand(1, 3, 48, 80)
    model.patch_embed.proj.weight.data.zero_()
    model.patch_embed.proj.bias.data.zero_()
    tokens = model.tokens(x)
    assert tokens.grid == (6, 10)
    assert torch.equal(tokens.values[:, 0], model.cls_token[:, 0] + model.pos_embed[:, 0])
    wanted = resample_grid(model.pos_embed[:, 1:], (8, 8), (6, 10), "bicubic")
    torch.testing.assert_close(tokens.values[:, 1:], wanted)
    with pytest.raises(ValueError, match="60x64 pixels, expected multiples of patch_size=8"):
        model.features(torch.rand(1, 3, 60, 64))


def test_class_token_without_position_equals_the_folded_form():
    with_row, without = tower(), tower(class_position=False)
    state = with_row.state_dict()
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    without.load_state_dict(state)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(with_row(x), without(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_permuting_patches_with_their_positions_leaves_the_features(pool):
    model = tower(pool=pool, class_position=False)
    x = torch.rand(1, 3, 64, 64)
    before = model.features(x)
    order = torch.randperm(64)
    patches = x.view(1, 3, 8, 8, 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(1, 64, 3, 8, 8)[:, order]
    shuffled = patches.view(1, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 64, 64)
    model.pos_embed.data = model.pos_embed.data[:, order]
    torch.testing.assert_close(model.features(shuffled), before, rtol=0, atol=1e-5)


def test_kept_tokens_are_those_of_the_whole_picture():
    model = tower(registers=1)
    x = torch.rand(2, 3, 64, 64)
    keep = torch.stack([torch.randperm(64)[:16] for _ in range(2)])
    tokens, whole = model.tokens(x, keep), model.tokens(x)
    assert torch.equal(tokens.kept, keep)
    rows = whole.values[:, 2:].gather(1, keep[..., None].expand(-1, -1, 32))
    assert torch.equal(tokens.values, torch.cat([whole.values[:, :2], rows], 1))
    everything = torch.arange(64).expand(2, -1)
    torch.testing.assert_close(model.forward_tokens(x, everything).values, model.forward_tokens(x).values)
    assert model.forward_tokens(x, keep).values.shape == (2, 18, 32)


def test_initial_values():
    torch.manual_seed(0)
    model = create_model("vit_small_patch16_224", depth=1, registers=4)
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(384**-0.5, rel=0.02)
    assert model.reg_token.std().item() == pytest.approx(0.02, rel=0.1)
    fixed = create_model("vit_mu_patch16_224", position="sincos2d", pool="mean")
    assert "pos_embed" in fixed.state_dict()
    assert "pos_embed" not in dict(fixed.named_parameters())
    assert fixed.pos_embed.shape == (1, 196, 32)
    assert not fixed.position_rows


def test_bytes_equal_normalised_floats_and_autocast_stays_close():
    model = tower()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    features = model.features(pixels)
    torch.testing.assert_close(features, model.features((pixels / 255 - 0.5) / 0.5), rtol=0, atol=1e-4)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    exact = model(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(pixels)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low, exact).min() > 0.999
    assert model.bfloat16()(pixels).dtype == torch.float32  # the projection is always made in float32


def test_export_keeps_the_function_and_leaves_the_model_usable():
    model = tower().eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    exported = torch.export.export(model, (pixels,)).module()
    torch.testing.assert_close(exported(pixels), model(pixels), rtol=0, atol=1e-5)
