"""A ViT of pictures as the start of one for clips or sounds: what it must still compute, exactly."""

from dataclasses import replace

import pytest
import torch

from mmvit.hub.convert.inflate import inflate, to_sound
from mmvit.models.config import AudioTowerConfig, ImageTowerConfig, VideoTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.image import ImageTower
from mmvit.tokens.positions import resample_grid

CORE = CoreConfig(width=24, depth=2, num_heads=2, mlp_dim=32)
COMMON = {"core": CORE, "class_token": False, "class_position": False, "pool": "mean"}
CLIP = VideoTowerConfig(clip_size=(6, 16, 24), patch_size=(2, 8, 8), **COMMON)


def picture_tower(**fields) -> ImageTower:
    torch.manual_seed(0)
    config = ImageTowerConfig(**{"image_size": (16, 24), "patch_size": 8, **COMMON, **fields})
    tower = ImageTower(config).eval()
    for p in tower.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return tower


def still(pictures: torch.Tensor, times: int) -> torch.Tensor:
    return pictures[:, :, None].repeat(1, 1, times, 1, 1)


@pytest.fixture
def in_double():
    """New towers are made in double precision: what is exact can be told from what is close."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("position", ["learned", "separable"])
@pytest.mark.parametrize("stem", ["spread", "middle"])
@torch.no_grad()
def test_a_still_clip_gives_the_pictures_tokens_at_every_time(position, stem, in_double):
    image = picture_tower()
    video = inflate(image, replace(CLIP, position=position), stem=stem).eval()
    x = torch.randn(2, 3, 16, 24)
    for name in ("tokens", "forward_tokens"):
        wanted = getattr(image, name)(x).values
        found = getattr(video, name)(still(x, 6)).values.unflatten(1, (3, -1))
        torch.testing.assert_close(found, wanted[:, None].expand_as(found), rtol=0, atol=1e-12)
    torch.testing.assert_close(video(still(x, 6)), image(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_one_tubelet_with_a_class_token_is_the_picture(in_double):
    with_class = {"class_token": True, "class_position": True, "pool": "cls"}
    image = picture_tower(**with_class)
    config = replace(CLIP, clip_size=(2, 16, 24), **with_class)
    video = inflate(image, config).eval()
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(video.features(still(x, 2)), image.features(x), rtol=0, atol=1e-12)


def test_another_grid_resamples_the_places_and_axes_start_fresh():
    image = picture_tower()
    video = inflate(image, replace(CLIP, clip_size=(4, 32, 32), position_resample="bicubic"))
    wanted = resample_grid(image.pos_embed, (2, 3), (4, 4), "bicubic")
    torch.testing.assert_close(video.pos_embed, wanted.repeat(1, 2, 1))
    torch.manual_seed(1)
    axes = inflate(image, replace(CLIP, position="axes", position_norm=True))
    assert axes.pos_embed.shape == (1, 3 + 2 + 3, 24)
    torch.testing.assert_close(axes.core.blocks[0].attn.qkv.weight, image.core.blocks[0].attn.qkv.weight)


def test_towers_of_other_sizes_are_refused():
    image = picture_tower()
    with pytest.raises(ValueError, match="inflated image tower: 1 tensors of another shape: patch_embed"):
        inflate(image, replace(CLIP, patch_size=(2, 4, 4)))
    with pytest.raises(ValueError, match=r"tensors missing: core\.blocks\.2"):
        inflate(image, replace(CLIP, core=replace(CORE, depth=3)))
    with pytest.raises(ValueError, match="1 tensors missing: cls_token"):
        inflate(image, replace(CLIP, class_token=True))


SOUND = AudioTowerConfig(spectrogram_size=(24, 16), patch_size=8, patch_stride=(8, 8), **COMMON)


@torch.no_grad()
def test_a_spectrogram_is_a_grey_picture(in_double):
    image = picture_tower()
    audio = to_sound(image, SOUND).eval()
    x = torch.randn(2, 24, 16)  # frames, bands
    picture = x.transpose(1, 2)[:, None].expand(-1, 3, -1, -1)  # rows are bands
    torch.testing.assert_close(
        audio.forward_tokens(x).values, image.forward_tokens(picture).values, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(audio(x), image(picture), rtol=0, atol=1e-12)


def test_overlapping_patches_keep_the_middle_bands_and_stretch_the_times():
    image = picture_tower(class_token=True, class_position=True, pool="cls", image_size=(48, 24))
    config = replace(
        SOUND,
        spectrogram_size=(64, 20),
        patch_stride=(4, 4),
        class_token=True,
        class_position=True,
        distill_token=True,
        pool="cls_dist",
    )
    audio = to_sound(image, config)
    assert audio.grid == (4, 15)
    table = image.pos_embed[:, 1:].unflatten(1, (6, 3)).permute(0, 3, 1, 2)
    stretched = torch.nn.functional.interpolate(table, size=(6, 15), mode="bilinear")[:, :, 1:5]
    torch.testing.assert_close(audio.pos_embed[:, 2:], stretched.flatten(2).transpose(1, 2))
    assert torch.equal(audio.pos_embed[:, 0], image.pos_embed[:, 0])
    assert torch.equal(audio.pos_embed[:, 1], image.pos_embed[:, 0])
    assert torch.equal(audio.dist_token, image.cls_token)
