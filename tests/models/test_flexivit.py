"""FlexiViT: one set of weights at every patch size, through tower, classifier, converter and `encode`."""

import numpy as np
import pytest
import torch
from torch import nn

import mmvit
from mmvit.data.image import ImagePreprocess
from mmvit.hub import save
from mmvit.hub.convert.from_timm import from_timm
from mmvit.models.presets import create_model
from mmvit.tokens.flexi import resample_kernel
from mmvit.tokens.positions import resample_grid

SIZES = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)
TINY = {"depth": 2, "width": 32, "num_heads": 4, "mlp_dim": 64}


def flexible(**overrides) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("flexivit_small", **{**TINY, **overrides})
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=0.02 if "proj.weight" in name else 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    return flexible()


@pytest.mark.parametrize("p", SIZES)
@torch.no_grad()
def test_tokens_are_those_of_a_plain_vit_of_that_patch_size(tower, p):
    side = 240 // p
    plain = create_model(
        "vit_tiny_patch16_224", **TINY, image_size=240, patch_size=p, class_position=False
    ).eval()
    state = tower.state_dict()
    kernel = resample_kernel(state["patch_embed.proj.weight"], p, "pi")
    table = resample_grid(state["pos_embed"], (15, 15), (side, side), "bilinear_antialias")
    plain.load_state_dict({**state, "patch_embed.proj.weight": kernel, "pos_embed": table})
    x = torch.randn(1, 3, 240, 240)
    ours, theirs = tower.forward_tokens(x, patch_size=p), plain.forward_tokens(x)
    assert ours.grid == theirs.grid == (side, side)
    assert theirs.values.std() > 0.1
    assert (ours.values - theirs.values).abs().max() < 1e-5
    assert (tower.features(x, patch_size=p) - plain.features(x)).abs().max() < 1e-5
    assert (tower(x, patch_size=p) - plain(x)).abs().max() < 1e-5


def test_the_stored_kernel_stays_and_learns_at_every_size(tower):
    stored = {k: v.clone() for k, v in tower.state_dict().items()}
    x = torch.randn(1, 3, 240, 240)
    for p in (8, 16, 40):
        tower.zero_grad()
        tower(x, patch_size=p).square().sum().backward()
        assert (tower.patch_embed.proj.weight.grad != 0).all()
        assert (tower.pos_embed.grad != 0).any(-1).all() or p > 16, "coarse grids read a mean of the table"
    assert all(torch.equal(v, stored[k]) for k, v in tower.state_dict().items())


def test_larger_pictures_in_larger_patches_give_the_same_patches(tower):
    """Exactness of the operator in place: a picture doubled without smoothing, read in doubled patches."""
    x = torch.randn(1, 3, 48, 48)
    doubled = nn.functional.interpolate(
        x.unfold(2, 16, 16).unfold(3, 16, 16).reshape(-1, 1, 16, 16), size=(32, 32), mode="bilinear"
    )
    doubled = doubled.reshape(1, 3, 3, 3, 32, 32).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 96, 96)
    small, large = tower.patch_embed(x), tower.patch_embed(doubled, 32)
    assert (small.values - large.values).abs().max() < 1e-4


@torch.no_grad()
def test_classifiers_and_subsets_take_a_patch_size():
    model = flexible(num_classes=3)
    x = torch.randn(2, 3, 240, 240)
    features = model.tower.features(x, patch_size=24)
    assert torch.equal(model(x, patch_size=24), model.head(features))
    keep = torch.tensor([[0, 5, 99], [1, 2, 3]])
    assert model.forward_tokens(x, keep, patch_size=24).values.shape == (2, 4, 32)


def test_other_models_say_what_they_cannot():
    with pytest.raises(
        ValueError, match=r"patch_size=8 was asked for, and this model has patch_size=16 only"
    ):
        create_model("vit_mu_patch16_224")(torch.zeros(1, 3, 224, 224), patch_size=8)
    with pytest.raises(ValueError, match="no square patches"):
        create_model("cct_2_3x2_32")(torch.zeros(1, 3, 32, 32), patch_size=8)


@torch.no_grad()
def test_timms_file_can_be_made_for_one_size_when_it_is_read():
    timm = pytest.importorskip("timm")
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    peer = timm.create_model("flexivit_small", **small).eval()
    peer.patch_embed.proj.bias.normal_()
    every, one = from_timm(peer, head=False), from_timm(peer, patch_size=24, head=False)
    assert one.patch_embed.proj.weight.shape[-1] == 24
    assert set(one.report.resized) == {"patch_embed.proj.weight", "pos_embed"}
    x = torch.randn(1, 3, 240, 240)
    assert (one(x) - every(x, patch_size=24)).abs().max() < 1e-5


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flexi") / "model"
    save(flexible(embed_dim=8), folder, preprocess=ImagePreprocess(size=(240, 240)))
    return mmvit.load(folder)


def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, 50, 60, 3), dtype=np.uint8))


def test_encode_reads_pictures_at_a_patch_size(embedder):
    pixels = torch.stack([embedder.preprocess(p) for p in pictures()])
    with torch.no_grad():
        wanted = nn.functional.normalize(embedder.model(pixels, patch_size=40), dim=-1)
    assert torch.allclose(embedder.encode(image=pictures(), patch_size=40), wanted, atol=1e-6)
    assert torch.equal(embedder.encode(image=pictures(), patch_size=16), embedder.encode(image=pictures()))
    assert not torch.allclose(wanted, embedder.encode(image=pictures()), atol=1e-3)


def test_encode_refuses_what_cannot_be(embedder, tmp_path):
    with pytest.raises(ValueError, match=r"patch_size=7 does not divide .* 240x240 pixels: valid: 1, 2, 3"):
        embedder.encode(image=pictures(), patch_size=7)
    with pytest.raises(ValueError, match="patch_size=0 does not divide"):
        embedder.encode(image=pictures(), patch_size=0)
    save(create_model("vit_mu_patch16_224"), tmp_path / "m", preprocess=ImagePreprocess(size=(224, 224)))
    with pytest.raises(ValueError, match="was not made for many patch sizes but for 16 alone: leave it out"):
        mmvit.load(tmp_path / "m").encode(image=pictures(), patch_size=8)
