"""A pair becomes a detector: what is kept, what is moved, what is resized, and pairs that cannot."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mmvit.models.build import build_image_tower, build_text_tower
from mmvit.models.config import ConvStemConfig, ImageTowerConfig, QueryPoolConfig, TextTowerConfig
from mmvit.models.core_config import CaitConfig, ConvNextConfig, CoreConfig, MixerConfig, MvitConfig
from mmvit.models.foreign import ForeignImageTower
from mmvit.models.lit import DualEncoder
from mmvit.models.owl import OwlDetector
from mmvit.models.surgery import to_detector
from mmvit.models.towers import join
from mmvit.tokens.positions import resample_grid

CORE = CoreConfig(width=32, depth=2, num_heads=2, mlp_dim=64)
TEXT = TextTowerConfig(
    core=CoreConfig(width=24, depth=1, num_heads=2, mlp_dim=48, causal=True), vocab_size=50, context_length=8
)


def image(**fields) -> ImageTowerConfig:
    return ImageTowerConfig(**{"core": CORE, "image_size": (64, 64), "patch_size": 16} | fields)


def pair_of(tower, embed_dim: int | None = 16, center: bool = False) -> DualEncoder:
    """A pair whose every parameter is off its start."""
    torch.manual_seed(0)
    if isinstance(tower, ImageTowerConfig):
        tower = build_image_tower(tower)
    mean = torch.rand(tower.width) if center else None
    pair = join(tower, build_text_tower(TEXT), embed_dim=embed_dim, center=mean)
    for value in pair.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return pair.eval()


def pixels(height: int = 64, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator).byte()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(1, 49, (*shape, 8), generator=torch.Generator().manual_seed(2))


def learns_whole(detector: OwlDetector) -> bool:
    """Whether every parameter gets a gradient, as distributed training demands."""
    out = detector.train()(pixels(), words(2, 3))
    loss = out.logits.sum() + out.boxes.sum()
    (loss if out.objectness is None else loss + out.objectness.sum()).backward()
    return all(p.requires_grad and p.grad is not None for p in detector.parameters())


TOWERS = {
    "class token": (image(), "mul_ln"),
    "mean": (image(pool="mean"), "drop"),
    "mean, no class token": (image(pool="mean", class_token=False), "drop"),
    "mean and norm": (image(pool="mean_norm", core=CoreConfig(**vars(CORE) | {"norm_last": False})), "drop"),
    "attention": (image(pool="map", class_token=False), "drop"),
    "sequence": (image(pool="seq", class_token=False), "drop"),
    "queries": (image(pool="queries", queries=QueryPoolConfig(count=3, width=24, num_heads=2)), "drop"),
    "distilled": (image(pool="cls_dist", distill_token=True, registers=2), "mul_ln"),
    "convolutions": (
        image(pool="mean", class_token=False, stem=ConvStemConfig(layers=2, channels=8)),
        "drop",
    ),
    "relative": (
        image(pool="mean", core=CoreConfig(**vars(CORE) | {"relative": "block"}), position="none"),
        "drop",
    ),
    "cait": (
        image(class_token=False, core=CaitConfig(width=32, depth=1, num_heads=2, mlp_dim=64)),
        "mul_ln",
    ),
    "mixer": (
        image(
            class_token=False,
            pool="mean",
            position="none",
            core=MixerConfig(width=32, depth=1, tokens=16, token_dim=8, mlp_dim=64),
        ),
        "drop",
    ),
    "convnext": (
        image(
            class_token=False,
            pool="mean_norm",
            position="none",
            core=ConvNextConfig(widths=(32, 48), depths=(1, 1), kernel=3),
        ),
        "norm",
    ),
    "mvit": (
        image(
            class_token=False,
            pool="mean",
            core=MvitConfig(
                width=32, num_heads=2, depths=(1, 1), grid=(4, 4), q_stride=(2, 2), kv_stride=(2, 2)
            ),
        ),
        "drop",
    ),
}


@pytest.mark.parametrize("case", TOWERS)
def test_every_kind_of_tower(case):
    config, merge = TOWERS[case]
    pair = pair_of(config)
    before = copy.deepcopy(pair.state_dict())
    detector = to_detector(pair)
    assert detector.config.merge == merge
    assert detector.config.image.pool in ("cls", "mean")
    assert torch.equal(detector.encode_queries(words(3)), pair.text(words(3)))
    with torch.no_grad():
        tokens, kept = pair.image.forward_tokens(pixels()), detector.image.forward_tokens(pixels())
        if case == "mean and norm":
            tokens.values = pair.image.pool.norm(tokens.values)
        assert torch.equal(kept.values, tokens.values)
        if case == "convnext":
            normed = pair.image.pool.norm(tokens.values)
            torch.testing.assert_close(detector.merge(tokens.values), normed, rtol=0, atol=1e-5)
    assert learns_whole(detector)
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("embed_dim", [16, None])
@torch.no_grad()
def test_projected_tokens_average_to_the_pairs_embedding(embed_dim, center):
    pair = pair_of(image(pool="mean"), embed_dim, center)
    detector = to_detector(pair, class_init="projection")
    embedding = detector.encode_image(pixels()).embeddings.mean(dim=1)
    torch.testing.assert_close(embedding, pair.image(pixels()), rtol=0, atol=2e-6)
    torch.testing.assert_close(F.normalize(embedding), pair.encode_image(pixels()), rtol=0, atol=2e-6)


@torch.no_grad()
def test_a_projected_start_is_the_pairs_classifier_at_its_temperature():
    pair = pair_of(image(pool="mean"), 16, False)
    detector = to_detector(pair, class_init="projection")
    candidates = detector.encode_image(pixels())
    queries = torch.randn(5, candidates.embeddings.shape[-1])
    cosines = F.normalize(candidates.embeddings, dim=-1) @ F.normalize(queries, dim=-1).T
    expected = pair.logit_scale.exp() * cosines + math.log(0.01 / 0.99)
    torch.testing.assert_close(detector.score(candidates, queries), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_projection_reads_tokens_of_other_towers_too():
    pair = pair_of(image())
    detector = to_detector(pair, class_init="projection", merge="drop")
    tokens = pair.image.forward_tokens(pixels()).values[:, 1:]
    torch.testing.assert_close(detector.encode_image(pixels()).embeddings, pair.image.project(tokens))
    with pytest.raises(ValueError, match="image head reads 24 features, tokens are 32 wide"):
        to_detector(pair_of(TOWERS["queries"][0]), class_init="projection")


@pytest.mark.parametrize("case", ["class token", "distilled", "relative", "mean, no class token", "mvit"])
@torch.no_grad()
def test_another_size_stores_what_was_resampled(case):
    """A detector made for another size computes what the pair's tower computes there."""
    pair = pair_of(TOWERS[case][0])
    detector = to_detector(pair, image_size=(96, 48))
    assert detector.config.image.image_size == (96, 48)
    assert detector.image.grid == (6, 3)
    wanted = pair.image.forward_tokens(pixels(96, 48)).values
    torch.testing.assert_close(
        detector.image.forward_tokens(pixels(96, 48)).values, wanted, rtol=0, atol=1e-5
    )
    assert to_detector(pair, image_size=128).config.image.image_size == (128, 128)


@torch.no_grad()
def test_fixed_positions_are_made_anew_where_the_tower_says_so():
    fixed = image(position="sincos2d_mae", position_resample="recompute", class_position=False)
    detector = to_detector(pair_of(fixed), image_size=96)
    assert torch.equal(detector.image.pos_embed, build_image_tower(detector.config.image).pos_embed)
    stretched = to_detector(pair_of(image(position="sincos2d", class_position=False)), image_size=96)
    table = build_image_tower(image(position="sincos2d", class_position=False)).pos_embed
    wanted = resample_grid(table, (4, 4), (6, 6), "bicubic_antialias")
    assert torch.equal(stretched.image.pos_embed, wanted)


def test_drop_path_and_other_fields():
    pair = pair_of(image())
    detector = to_detector(pair, drop_path=(0.2, 0.1), objectness=True, box_bias="center", hide_padding=True)
    assert (detector.config.image.core.drop_path, detector.config.text.core.drop_path) == (0.2, 0.1)
    assert (detector.config.box_bias, detector.config.hide_padding) == ("center", True)
    assert learns_whole(detector)
    assert to_detector(pair, prior=0.2).class_head.logit_shift.bias.item() == pytest.approx(-1.3863, abs=1e-4)


def test_a_locked_pair_gives_a_detector_that_learns():
    pair = pair_of(image())
    pair.requires_grad_(False)
    assert learns_whole(to_detector(pair))


PEERS = {
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "vit_tiny_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
    },
}


@pytest.mark.parametrize("name", PEERS)
def test_peers_that_serve_a_map(name):
    tower = ForeignImageTower.wrap(f"timm:{name}", image_size=(64, 64), **PEERS[name])
    pair = pair_of(tower)
    detector = to_detector(pair, merge="norm")
    with torch.no_grad():
        found = detector.eval().image.forward_tokens(pixels())
        given = tower.module.forward_features(tower.normalise(pixels()))
    h, w = found.grid
    if "vit" in name:
        given = given[:, 1:].unflatten(1, (h, w))
    elif "swin" not in name:
        given = given.permute(0, 2, 3, 1)
    torch.testing.assert_close(found.values.unflatten(1, (h, w)), given, rtol=0, atol=1e-4)
    assert learns_whole(detector)
    rebuilt = OwlDetector(detector.config)
    rebuilt.load_state_dict(detector.state_dict())


@torch.no_grad()
def test_a_peers_projection_averages_to_the_pairs_embedding():
    tower = ForeignImageTower.wrap("timm:resnet10t", image_size=(64, 64))
    pair = pair_of(tower, center=True)
    detector = to_detector(pair, class_init="projection").eval()
    embedding = detector.encode_image(pixels()).embeddings.mean(dim=1)
    torch.testing.assert_close(embedding, pair.image(pixels()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        detector.image.features(pixels()), pair.image.features(pixels()), rtol=1e-5, atol=1e-5
    )


def test_peers_that_cannot():
    pair = pair_of(ForeignImageTower.wrap("torchvision:resnet18", image_size=(64, 64)))
    with pytest.raises(ValueError, match="torchvision:resnet18 has no feature map.*take a timm model"):
        to_detector(pair)
    pair = pair_of(ForeignImageTower.wrap("timm:resnet10t", image_size=(64, 64)))
    with pytest.raises(ValueError, match="drop_path of the image tower is 0.1"):
        to_detector(pair, drop_path=(0.1, 0.0))
    vit = pair_of(ForeignImageTower.wrap("timm:vit_tiny_patch16_224", image_size=(64, 64), depth=1))
    with pytest.raises(ValueError, match="pos_embed' is .1, 37, 192. .*this tower cannot be resized"):
        to_detector(vit, image_size=96)
    small = pair_of(ForeignImageTower.wrap("timm:mobilenetv3_small_050", image_size=(64, 64)))
    with pytest.raises(ValueError, match="image head reads 1024 features, tokens are 288 wide"):
        to_detector(small, class_init="projection")


def test_mistakes_are_named():
    pair = pair_of(image())
    with pytest.raises(ValueError, match="class_init is 'head', expected 'zeros' or 'projection'"):
        to_detector(pair, class_init="head")
    with pytest.raises(
        ValueError, match="to_detector has no option 'objectnes', expected one of .*objectness"
    ):
        to_detector(pair, objectnes=True)
    with pytest.raises(ValueError, match="image_size is .70, 70., expected multiples of patch_size=16"):
        to_detector(pair, image_size=70)
    with pytest.raises(ValueError, match="tokens is 16, but the grid is 6x6"):
        to_detector(pair_of(TOWERS["mixer"][0]), image_size=96)
