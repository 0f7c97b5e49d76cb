"""DeiT's second token and second head: what each reads, when, and what training gets."""

import pytest
import timm
import torch
from torch import nn

from mmvit.models.presets import create_model, list_models

TINY = {"image_size": 32, "patch_size": 8, "depth": 2, "width": 32, "num_heads": 4, "mlp_dim": 64}


def random_model(name: str, **overrides) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, **{**TINY, **overrides})
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


def test_sequence_is_class_distillation_grid_each_with_its_position():
    tower = random_model("deit_tiny_distilled_patch16_224", registers=2)
    x = torch.randn(2, 3, 32, 32)
    tokens = tower.tokens(x)
    assert (tokens.prefix, tokens.grid, tokens.values.shape[1]) == (4, (4, 4), 20)
    assert tower.pos_embed.shape[1] == 18
    torch.testing.assert_close(tokens.values[:1, :1], tower.cls_token + tower.pos_embed[:, :1])
    torch.testing.assert_close(tokens.values[:1, 1:2], tower.dist_token + tower.pos_embed[:, 1:2])
    torch.testing.assert_close(tokens.values[:1, 2:4], tower.reg_token.data)
    patches = tower.patch_embed(x).values + tower.pos_embed[:, 2:]
    torch.testing.assert_close(tokens.values[:, 4:], patches)


def test_deit3_adds_no_position_to_the_class_token():
    tower = random_model("deit3_small_patch16_224")
    assert tower.pos_embed.shape[1] == 16
    torch.testing.assert_close(tower.tokens(torch.randn(1, 3, 32, 32)).values[:, :1], tower.cls_token.data)
    assert tower.core.blocks[0].ls1 is not None


def test_logits_are_the_mean_of_two_heads_on_two_tokens():
    model = random_model("deit_tiny_distilled_patch16_224", num_classes=5)
    x = torch.randn(3, 3, 32, 32)
    tokens = model.forward_tokens(x).values
    one, two = model.both_logits(x)
    torch.testing.assert_close(one, model.head(tokens[:, 0]))
    torch.testing.assert_close(two, model.head_dist(tokens[:, 1]))
    assert torch.equal(model(x), (one + two) / 2)
    torch.testing.assert_close(model.features(x), (tokens[:, 0] + tokens[:, 1]) / 2)
    model.train()
    assert torch.equal(model(x), (one + two) / 2), "training reads both_logits, forward stays the mean"


def test_each_loss_reaches_its_own_head():
    model = random_model("deit_tiny_distilled_patch16_224", num_classes=5).train()
    one, _ = model.both_logits(torch.randn(3, 3, 32, 32))
    one.square().sum().backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.head_dist.weight.grad is None
    assert model.tower.dist_token.grad.abs().sum() > 0, "the class token attends to the distillation token"


def test_a_new_classifier_starts_at_its_bias():
    model = create_model("deit_tiny_distilled_patch16_224", num_classes=7, bias_init=-3.0, **TINY)
    assert torch.equal(model(torch.randn(1, 3, 32, 32)), torch.full((1, 7), -3.0))


def test_one_head_has_no_second_logits():
    model = random_model("deit_tiny_patch16_224", num_classes=5)
    assert model.head_dist is None
    with pytest.raises(ValueError, match="pool is 'cls', expected 'cls_dist'"):
        model.both_logits(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="pool is 'cls_dist' and distill_token is False"):
        create_model("deit_tiny_patch16_224", pool="cls_dist")


# Millions with 1000 classes as published: DeiT's table 1, timm's results for the others.
PUBLISHED = {
    "deit_tiny_patch16_224": 5.72,
    "deit_small_patch16_224": 22.05,
    "deit_base_patch16_224": 86.57,
    "deit_tiny_distilled_patch16_224": 5.91,
    "deit_small_distilled_patch16_224": 22.44,
    "deit_base_distilled_patch16_224": 87.34,
    "deit3_base_patch16_224": 86.585,
    "flexivit_base": 86.589,
    "beit_base_patch16_224": 86.53,
    "beit_large_patch16_224": 304.43,
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_as_published(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=1000)
    assert count(model) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize(
    "name", [n for n in list_models() if n.startswith(("deit", "flexivit", "beit")) and timm.is_model(n)]
)
def test_as_many_parameters_as_timm(name):
    """Of two blocks: a deep model on the meta device takes seconds."""
    small = {"depth": 2, "num_classes": 1000}
    with torch.device("meta"):
        assert count(create_model(name, **small)) == count(timm.create_model(name, **small))
