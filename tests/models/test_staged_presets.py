"""MViT and ConvNeXt V2 as presets: published parameter counts, token counts, towers of clips, positions."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmvit.core.pooling_attention import pooled
from mmvit.hub.plain import from_plain, kind_of, to_plain
from mmvit.models.presets import build_model, create_model, preset
from mmvit.tokens.positions import separable

# preset: (classes, parameters with a classifier over them)
COUNTS = {
    "mvit_v1_base_16x4": (400, 36_610_672),
    "mvit_v1_base_32x3": (400, 53_172_880),
    "mvit_v2_small_16x4": (400, 34_537_744),
    "mvit_v2_base_32x3": (400, 51_230_128),
    "mvit_v2_large_40x3": (400, 213_390_112),
    "mvitv2_tiny": (1000, 24_173_320),
    "mvitv2_small": (1000, 34_870_216),
    "mvitv2_base": (1000, 51_472_744),
    "mvitv2_large": (1000, 217_992_952),
    "mvitv2_huge_cls": (1000, 667_000_000),
    "convnextv2_atto": (1000, 3_700_000),
    "convnextv2_femto": (1000, 5_200_000),
    "convnextv2_pico": (1000, 9_100_000),
    "convnextv2_nano": (1000, 15_600_000),
    "convnextv2_tiny": (1000, 28_600_000),
    "convnextv2_base": (1000, 89_000_000),
    "convnextv2_large": (1000, 198_000_000),
    "convnextv2_huge": (1000, 660_000_000),
}
TINY = {"width": 8, "depths": (1, 1, 1, 1)}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_published_ones(name):
    """To the last one where that is published, else to the rounding of the papers' tables."""
    classes, wanted = COUNTS[name]
    with torch.device("meta"):
        model = build_model(preset(name, num_classes=classes))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        wanted, rel=0.01 if wanted % 100_000 == 0 else 0
    )


def rows(name: str, axis: str) -> list[int]:
    with torch.device("meta"):
        core = build_model(preset(name)).core
    return [len(getattr(block.attn.rel_pos, axis)) for block in core.blocks]


def test_tables_of_relative_positions_are_as_long_as_published():
    assert rows("mvit_v2_small_16x4", "h") == [111, 55, 55, *[27] * 12, 13]
    assert rows("mvit_v2_small_16x4", "t") == [15] * 16
    assert rows("mvitv2_small_cls", "w") == [111, 55, 55, 55, *[27] * 11, 13]


@pytest.mark.parametrize(
    ("name", "last"), [("mvit_v1_base_16x4", (0, 2, 13)), ("mvit_v2_small_16x4", (1, 3, 14))]
)
def test_widths_double_where_published(name, last):
    """v1 widens in the block before a stage, v2 in its first; queries shrink the grid in blocks 1, 3, 14."""
    with torch.device("meta"):
        core = build_model(preset(name)).core
    assert tuple(n for n, b in enumerate(core.blocks) if b.shortcut is not None) == last
    strided = [n for n, b in enumerate(core.blocks) if math.prod(b.attn.q_stride) > 1]
    assert strided == [1, 3, 14]
    if "v1" in name:
        assert [n for n, b in enumerate(core.blocks) if b.attn.pool_q is not None] == strided
    grid, counts = preset(name).core.grid, [25_089]
    for block in core.blocks:
        grid = pooled(grid, block.attn.q_stride)
        counts.append(1 + math.prod(grid))
    assert sorted(set(counts), reverse=True) == [25_089, 6_273, 1_569, 393]
    kv = [1 + math.prod(pooled((8, 56 // s, 56 // s), (1, 8 // s, 8 // s))) for s in (1, 2, 4, 8)]
    assert kv == [393] * 4


def test_layers_of_a_full_clip_have_the_published_shapes():
    with torch.device("meta"):
        tower = build_model(preset("mvit_v2_small_16x4"))
        found = tower.forward_tokens(torch.empty(1, 3, 16, 224, 224), layers=(1, 2, 4, 15)).layers
    shapes = [tuple(found[n].shape[1:]) for n in (1, 2, 4, 15)]
    assert shapes == [(25_089, 96), (6_273, 192), (1_569, 384), (393, 768)]


@pytest.mark.parametrize("name", ["mvit_v1_base_16x4", "mvit_v2_small_16x4"])
def test_a_video_tower_reads_bytes_and_normalised_clips_of_any_size(name):
    torch.manual_seed(0)
    tower = create_model(name, clip_size=(4, 32, 32), embed_dim=6, **TINY).eval()
    clip = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    normal = (clip.float() / 255 - 0.45) / 0.225
    torch.testing.assert_close(tower(clip), tower(normal), rtol=0, atol=1e-5)
    assert tower(clip).shape == (2, 6)
    assert tower.features(clip).shape == (2, tower.width) == (2, 64)
    encoded = tower.forward_tokens(torch.randn(1, 3, 6, 64, 48))
    assert encoded.grid == (3, 2, 2)
    assert encoded.values.shape == (1, 1 + 12, 64)
    with pytest.raises(ValueError, match="tokens are masked or dropped"):
        tower.forward_tokens(clip, keep=torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    "name", ["mvit_v1_base_16x4", "mvit_v2_small_16x4", "mvitv2_tiny", "convnextv2_atto"]
)
def test_gradients_reach_every_parameter(name):
    """Save what only serves the last block's grid queries, where the class token alone is read."""
    torch.manual_seed(0)
    shape = (2, 3, 4, 32, 32) if name.startswith("mvit_") else (2, 3, 64, 64)
    small = {"widths": (8, 12, 16, 24), "depths": (1, 1, 1, 1)} if "convnext" in name else TINY
    size = {"clip_size": (4, 32, 32)} if name.startswith("mvit_") else {"image_size": 64}
    model = create_model(name, num_classes=3, **small, **size)
    model.set_checkpointing()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model(torch.randn(shape)).square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    last = "tower.core.blocks.3.attn."
    unread = {f"{last}pool_q.conv.weight", *(f"{last}rel_pos.{axis}" for axis in "thw")}
    wanted = unread if model.config.tower.pool == "cls" else set()
    assert still == wanted & dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    "name", ["mvit_v1_base_16x4", "mvit_v2_large_40x3", "mvitv2_base_cls", "convnextv2_nano"]
)
def test_configs_survive_being_written(name):
    config = preset(name, num_classes=5)
    assert from_plain(kind_of(config), to_plain(config), "config.json") == config


def test_separable_positions_are_sums_of_times_and_places():
    torch.manual_seed(0)
    table = torch.randn(1, 3 + 2 * 2, 5)
    found = separable(table, (3, 2, 2), (3, 2, 2), "bicubic").reshape(3, 4, 5)
    for t in range(3):
        for place in range(4):
            assert torch.equal(found[t, place], table[0, t] + table[0, 3 + place])
    other = separable(table, (3, 2, 2), (6, 4, 2), "bicubic").reshape(6, 8, 5)
    time = F.interpolate(table[:, :3].transpose(1, 2), size=6, mode="linear")[0].T
    places = F.interpolate(table[:, 3:].reshape(1, 2, 2, 5).movedim(-1, 1), size=(4, 2), mode="bicubic")
    wanted = time[:, None] + places[0].flatten(1).T
    torch.testing.assert_close(other, wanted, rtol=0, atol=1e-6)


def test_separable_positions_need_a_time_axis():
    with pytest.raises(ValueError, match=r"position is 'separable', expected a grid \(t,h,w\)"):
        create_model("vit_mu_patch16_224", position="separable")
    tower = create_model("mvit_v1_base_16x4", clip_size=(4, 32, 32), **TINY)
    assert tower.pos_embed.shape == (1, 1 + 2 + 64, 8)
    assert 0.015 < tower.pos_embed.std() < 0.025


def test_the_class_token_has_its_own_row():
    torch.manual_seed(0)
    tower = create_model("mvit_v1_base_16x4", clip_size=(4, 32, 32), **TINY)
    clip = torch.randn(1, 3, 4, 32, 32)
    before = tower.tokens(clip).values
    tower.pos_embed.data[:, 0] += 1
    after = tower.tokens(clip).values
    torch.testing.assert_close(after[:, 0], before[:, 0] + 1)
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_small_pictures_and_wrong_pools_are_refused():
    tower = create_model("convnextv2_atto", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="of at least 8x8"):
        tower(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="pool is 'map', expected another one on a ConvNextConfig"):
        create_model("convnextv2_atto", pool="map")
