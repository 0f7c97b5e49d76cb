"""Positions by axis, patches of sounds, DropToken: identities, order, odd lengths, mistakes."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.audio import TimeMajorPatches, WaveformPatches
from mmvit.tokens.positions import RESAMPLE, axes
from mmvit.tokens.select import drop_tokens, select
from mmvit.tokens.video import TubeletEmbed
from mmvit.types import Tokens


def table(*extents, width=6):
    return torch.randn(1, sum(extents), width, generator=torch.Generator().manual_seed(0))


def test_each_position_is_the_sum_of_its_rows():
    rows = table(2, 3, 4)
    whole = axes(rows, (2, 3, 4), (2, 3, 4), "bilinear").view(2, 3, 4, 6)
    assert torch.equal(whole[1, 2, 3], rows[0, 1] + rows[0, 2 + 2] + rows[0, 2 + 3 + 3])
    step = whole[1] - whole[0]  # the same everywhere in space
    assert (step - step[0, 0]).abs().max() < 1e-6
    assert torch.equal(axes(rows, (9,), (9,), "bilinear"), rows)


@pytest.mark.parametrize("mode", [name for name in RESAMPLE if name != "crop"])
def test_axes_are_resampled_on_their_own(mode):
    rows = table(4, 3)
    longer = axes(rows, (4, 3), (8, 3), mode).view(8, 3, 6)
    step = longer[:, 1] - longer[:, 0]
    assert (step - step[0]).abs().max() < 1e-5, "the other axis is as it was"
    flat = torch.cat([torch.full((1, 4, 6), 2.0), torch.full((1, 3, 6), 5.0)], 1)
    assert (axes(flat, (4, 3), (7, 2), mode) - 7.0).abs().max() < 1e-5


def test_crop_keeps_the_first_rows_and_linear_is_interpolation():
    rows = table(6)
    assert torch.equal(axes(rows, (6,), (4,), "crop"), rows[:, :4])
    wanted = F.interpolate(rows.transpose(1, 2), size=9, mode="linear").transpose(1, 2)
    torch.testing.assert_close(axes(rows, (6,), (9,), "bilinear"), wanted)
    middle = axes(rows, (6,), (1,), "bilinear")
    torch.testing.assert_close(middle, rows[:, 2:4].mean(1, keepdim=True))


def test_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match=r"stored for a grid of 1 axes, and the tokens lie on \(2, 3\)"):
        axes(table(6), (6,), (2, 3), "bilinear")


def test_rectangular_patches_go_frame_by_frame():
    embed = TimeMajorPatches(80, (16, 5), crop=True)
    embed.proj.weight.data.copy_(torch.eye(80).view(80, 1, 16, 5))
    torch.nn.init.zeros_(embed.proj.bias)
    x = torch.randn(2, 150, 80)
    tokens = embed(x)
    assert tokens.grid == (9, 16)
    cut = tokens.values.view(2, 9, 16, 16, 5)
    assert torch.equal(cut[1, 3, 2], x[1, 48:64, 10:15])
    conv = F.conv2d(x[:, None], embed.proj.weight, stride=(16, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.values, conv)


def test_a_token_and_its_position_are_at_the_same_place():
    """A row of the frequency table marks all tokens of that band and of no other."""
    grid = TimeMajorPatches(4, (16, 5), crop=True)(torch.randn(1, 150, 80)).grid
    rows = torch.zeros(1, sum(grid), 1)
    rows[0, 9 + 5] = 1.0  # band 5
    rows[0, 2] = 10.0  # frames 32..47
    marked = axes(rows, grid, grid, "bilinear").view(9, 16)
    x = torch.zeros(1, 150, 80)
    x[:, :, 25:30] += 1.0
    x[:, 32:48] += 10.0
    embed = TimeMajorPatches(1, (16, 5), crop=True)
    torch.nn.init.constant_(embed.proj.weight, 1 / 80)
    torch.nn.init.zeros_(embed.proj.bias)
    torch.testing.assert_close(embed(x).values.view(9, 16), marked)


def test_lengths_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"150 frames x 80 mel bands, expected multiples of the patch \(16, 5\)"
    ):
        TimeMajorPatches(4, (16, 5))(torch.randn(1, 150, 80))
    with pytest.raises(ValueError, match="spectrogram is 15 frames x 80 mel bands"):
        TimeMajorPatches(4, (16, 5), crop=True)(torch.randn(1, 15, 80))
    with pytest.raises(ValueError, match="waveform has 1279 samples, expected a multiple of patch_size=128"):
        WaveformPatches(4, patch_size=128)(torch.randn(1, 1279))
    with pytest.raises(ValueError, match="clip is 6x32x32"):
        TubeletEmbed(4, (4, 16, 16))(torch.rand(1, 3, 6, 32, 32))
    with pytest.raises(ValueError, match=r"\(1, 1280\) torch.int16, expected \(B,S\) floating point"):
        WaveformPatches(4, patch_size=128)(torch.zeros(1, 1280, dtype=torch.int16))


def test_waveform_patches_are_the_convolution():
    embed, x = WaveformPatches(6, patch_size=8), torch.randn(2, 40)
    conv = F.conv1d(x[:, None], embed.proj.weight, embed.proj.bias, stride=8).transpose(1, 2)
    torch.testing.assert_close(embed(x).values, conv)
    assert embed(x).grid == (5,)


@pytest.mark.parametrize(
    ("N", "rate", "K"), [(1568, 0.5, 784), (1200, 0.5, 600), (100, 0.29, 29), (7, 0.5, 3), (9, 1, 9)]
)
def test_droptoken_keeps_the_stated_count(N, rate, K):
    keep = drop_tokens(torch.rand(3, N), rate)
    assert keep.shape == (3, K)
    assert (keep.diff(dim=1) > 0).all(), "ascending, none twice"
    assert keep.min() >= 0
    assert keep.max() < N


def test_droptoken_is_a_function_of_the_noise():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.9, 0.8, 0.1, 0.0]])
    assert drop_tokens(noise, 0.5).tolist() == [[1, 3], [2, 3]]
    shared = drop_tokens(noise[:1].expand(5, -1), 0.5)
    assert shared.tolist() == [[1, 3]] * 5
    tokens = select(Tokens(torch.arange(8.0).view(2, 4, 1), (4,)), drop_tokens(noise, 0.5))
    assert tokens.values[..., 0].tolist() == [[1, 3], [6, 7]]


def test_every_token_is_kept_equally_often():
    keep = drop_tokens(torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)), 0.3)
    share = torch.bincount(keep.flatten(), minlength=10) / 4000
    assert (share - 0.3).abs().max() < 0.03


@pytest.mark.parametrize("rate", [0.0, 1.1, -0.5])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match="keep_rate is"):
        drop_tokens(torch.rand(1, 8), rate)


def test_a_rate_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="keeps none of 8 tokens: at least 0.12"):
        drop_tokens(torch.rand(1, 8), 0.1)
