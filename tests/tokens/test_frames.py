"""Convolutions along the time of a spectrogram: known answers, silence behind the sound, mistakes."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.frames import FrameConvolutions, frame_grid
from mmvit.tokens.positions import resample_grid, sincos_1d_halves

FLOOR = -0.7


def stem(**fields) -> FrameConvolutions:
    torch.manual_seed(0)
    made = FrameConvolutions(16, 10, **fields)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


@pytest.mark.parametrize("frames", [1, 2, 7, 8])
def test_two_convolutions_with_a_gelu_behind_each(frames):
    made, x = stem(), torch.randn(2, frames, 10)
    tokens = made(x)
    first, second = made.convs
    y = F.gelu(F.conv1d(x.transpose(1, 2), first.weight, first.bias, 1, 1))
    y = F.gelu(F.conv1d(y, second.weight, second.bias, 2, 1))
    assert tokens.grid == frame_grid(frames, 3, (1, 2)) == ((frames + 1) // 2,)
    assert tokens.mask is None
    assert torch.equal(tokens.values, y.transpose(1, 2))
    assert made.bfloat16()(x).values.dtype == torch.bfloat16


def test_other_strides_and_kernels():
    made = stem(kernel=5, strides=(2, 3, 2))
    assert made(torch.randn(1, 50, 10)).grid == frame_grid(50, 5, (2, 3, 2)) == (5,)


def test_tokens_behind_the_last_frame_that_sounds_are_masked():
    x = torch.full((4, 12, 10), FLOOR)
    x[0, :7] = torch.randn(7, 10)  # its last frame starts token 3
    x[1, 5, 4] = 0.0  # silence in front of a sound counts
    x[2, :] = torch.randn(12, 10)
    made = stem(skip_silence=True)
    mask = made(x).mask  # the fourth is silent throughout
    assert mask.sum(1).tolist() == [4, 3, 6, 6]
    assert all(row[:n].all() for row, n in zip(mask, (4, 3, 6, 6), strict=True))
    cut = made(x[:2])
    assert (cut.grid, cut.mask.shape) == ((4,), (2, 4))
    assert torch.equal(cut.values, stem()(x[:2]).values[:, :4])


def test_start_keeps_the_variance():
    torch.manual_seed(0)
    weight = FrameConvolutions(256, 40).convs[0].weight
    assert weight.var().item() == pytest.approx(1 / (3 * 40), rel=0.05)


def test_mistakes():
    with pytest.raises(ValueError, match=r"kernel 4 and strides \(1, 2\), expected an odd kernel"):
        FrameConvolutions(8, 4, kernel=4)
    with pytest.raises(ValueError, match=r"strides \(\), expected an odd kernel and one or more"):
        FrameConvolutions(8, 4, strides=())
    for x, words in (
        (torch.zeros(1, 8, 12), "8 frames x 12 mel bands, expected frames of 10"),
        (torch.zeros(1, 0, 10), "0 frames"),
        (torch.zeros(1, 1, 8, 10), r"expected \(B,T,M\)"),
        (torch.zeros(1, 8, 10, dtype=torch.int16), "floating point"),
    ):
        with pytest.raises(ValueError, match=words):
            stem()(x)


def test_whispers_positions_are_sines_then_cosines():
    table = sincos_1d_halves(5, 6)[0]
    omega = torch.tensor([1.0, 1e-2, 1e-4])
    angle = torch.arange(5)[:, None] * omega
    torch.testing.assert_close(table, torch.cat([angle.sin(), angle.cos()], 1), rtol=0, atol=1e-6)
    assert torch.equal(sincos_1d_halves(3, 6)[0], table[:3])
    with pytest.raises(ValueError, match="even width of at least 4, got 5"):
        sincos_1d_halves(3, 5)


def test_a_line_of_positions_is_cut_or_stretched():
    table = torch.arange(6.0).reshape(1, 6, 1)
    assert resample_grid(table, (6,), (4,), "crop")[0, :, 0].tolist() == [0, 1, 2, 3]
    assert resample_grid(table, (6,), (4,), "cut_or_stretch")[0, :, 0].tolist() == [1, 2, 3, 4]
    stretched = resample_grid(table, (6,), (12,), "bilinear")[0, :, 0]
    assert stretched[[1, 2]].tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match=r"grid \(7,\) is larger than the stored \(6,\)"):
        resample_grid(table, (6,), (7,), "crop")
