"""Clips and spectrograms as tokens: the convolution they stand for, their order, their positions."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.audio import SpectrogramPatches, spectrogram_grid
from mmvit.tokens.image import PatchEmbed
from mmvit.tokens.positions import FIXED, resample_grid, sincos_1d, sincos_2d
from mmvit.tokens.video import TubeletEmbed


def test_tubelets_are_the_convolution_with_time_slowest():
    torch.manual_seed(0)
    stem = TubeletEmbed(12, (2, 4, 6))
    clips = torch.randn(2, 3, 6, 8, 18)
    tokens = stem(clips)
    wanted = F.conv3d(clips, stem.proj.weight, stem.proj.bias, stride=(2, 4, 6))
    assert tokens.grid == (3, 2, 3)
    torch.testing.assert_close(tokens.values, wanted.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


def test_a_still_clip_gives_the_tokens_of_the_picture_when_the_kernel_is_spread_over_time():
    torch.manual_seed(0)
    picture, clip = PatchEmbed(8, 4), TubeletEmbed(8, (2, 4, 4))
    clip.proj.weight.data = picture.proj.weight.data[:, :, None].repeat(1, 1, 2, 1, 1) / 2
    clip.proj.bias.data = torch.randn(8)
    picture.proj.bias.data = clip.proj.bias.data
    x = torch.randn(2, 3, 8, 8)
    tokens = clip(x[:, :, None].repeat(1, 1, 4, 1, 1)).values
    torch.testing.assert_close(tokens, picture(x).values.repeat(1, 2, 1), rtol=0, atol=1e-6)


def test_bytes_of_a_clip_are_normalised_per_channel():
    stem = TubeletEmbed(8, (2, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)))
    torch.testing.assert_close(stem(clips).values, stem((clips / 255 - mean) / std).values, rtol=0, atol=1e-5)


def test_spectrogram_patches_are_the_convolution_with_frequency_slowest():
    torch.manual_seed(0)
    stem = SpectrogramPatches(10, 16, stride=(10, 8))
    x = torch.randn(2, 101, 64)
    tokens = stem(x)
    wanted = F.conv2d(x.transpose(1, 2)[:, None], stem.proj.weight, stem.proj.bias, stride=(10, 8))
    assert tokens.grid == (5, 11) == spectrogram_grid((101, 64), 16, (10, 8))
    torch.testing.assert_close(tokens.values, wanted.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    assert torch.equal(stem(x[:, :96]).values, tokens.values), "the last 5 frames fill no patch"


@pytest.mark.parametrize(
    ("size", "grid"), [((1024, 128), (12, 101)), ((512, 128), (12, 50)), ((128, 128), (12, 12))]
)
def test_token_grids_of_ast(size, grid):
    assert spectrogram_grid(size, 16, (10, 10)) == grid


@pytest.mark.parametrize(
    ("stem", "x", "message"),
    [
        (TubeletEmbed(8, (2, 4, 4)), torch.zeros(1, 4, 3, 8, 8), "channels before frames"),
        (
            TubeletEmbed(8, (2, 4, 4)),
            torch.zeros(1, 3, 3, 8, 8),
            r"3x8x8 .*multiples of patch_size=\(2, 4, 4\)",
        ),
        (SpectrogramPatches(8, 16), torch.zeros(1, 1, 64, 64), "expected .B,T,M."),
        (SpectrogramPatches(8, 16), torch.zeros(1, 64, 64, dtype=torch.int16), "floating point"),
        (SpectrogramPatches(8, 16), torch.zeros(1, 64, 12), "64 frames x 12 mel bands, expected at least 16"),
    ],
)
def test_wrong_inputs_say_what_is_expected(stem, x, message):
    with pytest.raises(ValueError, match=message):
        stem(x)


def test_the_line_of_sines_has_videomaes_published_values():
    table = sincos_1d(1568, 768)
    assert table.sum().item() == pytest.approx(245_744.99, abs=0.05)
    assert table[0, 1567, :2].tolist() == pytest.approx([0.608948, -0.793210], abs=1e-6)
    assert table[0, 100, 100].item() == pytest.approx(-0.956366, abs=1e-6)


def test_the_line_of_sines_equals_transformers_bitwise():
    module = pytest.importorskip("transformers.models.videomae.modeling_videomae")
    assert torch.equal(sincos_1d(200, 48), module.get_sinusoid_encoding_table(200, 48))


def test_maes_table_equals_transformers():
    module = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")
    theirs = module.build_2d_sinusoidal_position_embedding(height=5, width=5, embed_dim=48)
    swapped = torch.cat([theirs[:, 24:], theirs[:, :24]], 1)  # as its weights were trained: width first
    torch.testing.assert_close(FIXED["sincos2d_mae"]((5, 5), 48)[0], swapped, rtol=0, atol=1e-6)
    assert (sincos_2d((5, 5), 48)[0] - swapped).abs().max() > 0.1, "MoCo v3's frequencies are others"


def test_clips_are_resampled_in_space_and_then_in_time():
    torch.manual_seed(0)
    table = torch.randn(1, 2 * 4 * 4, 8)
    space = resample_grid(table, (2, 4, 4), (2, 6, 5), "bicubic")
    for t in range(2):
        part = resample_grid(table[:, 16 * t : 16 * t + 16], (4, 4), (6, 5), "bicubic")
        torch.testing.assert_close(space[:, 30 * t : 30 * t + 30], part, rtol=0, atol=1e-6)
    longer = resample_grid(table, (2, 4, 4), (4, 4, 4), "bicubic").reshape(4, 16, 8)
    first, last = table.reshape(2, 16, 8)
    torch.testing.assert_close(longer[1], 0.75 * first + 0.25 * last, rtol=0, atol=1e-6)
    torch.testing.assert_close(longer[0], first, rtol=0, atol=1e-6)


def test_spectrogram_positions_are_cut_or_stretched():
    torch.manual_seed(0)
    table = torch.randn(1, 12 * 101, 4)
    image = table.reshape(12, 101, 4)
    cut = resample_grid(table, (12, 101), (8, 50), "cut_or_stretch").reshape(8, 50, 4)
    assert torch.equal(cut, image[2:10, 25:75])
    wanted = F.interpolate(image[2:10].permute(2, 0, 1)[None], size=(8, 130), mode="bilinear")
    found = resample_grid(table, (12, 101), (8, 130), "cut_or_stretch").reshape(8, 130, 4)
    torch.testing.assert_close(found, wanted[0].permute(1, 2, 0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="recompute"):
        resample_grid(table, (12, 101), (8, 50), "recompute")
