"""Convolutional stems on two and three axes: CCT's tokenizer, MViT's overlapping patches."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.conv import ConvTokens

MEAN_STD = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def test_tokenizer_of_two_layers():
    torch.manual_seed(0)
    stem = ConvTokens(16, kernel=(3, 3), stride=(1, 1), padding=(1, 1), layers=2, channels=8, max_pool=True)
    x = torch.randn(2, 3, 20, 12)
    tokens = stem(x)
    assert tokens.grid == (5, 3)
    assert tokens.values.shape == (2, 15, 16)
    for conv in stem.convs:
        assert conv.bias is None
        x = F.max_pool2d(F.conv2d(x, conv.weight, padding=1).relu(), 3, 2, 1)
    assert torch.equal(tokens.values.view(2, 5, 3, 16), x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("axes", [2, 3])
def test_overlapping_patches_on_any_axes(axes):
    """One convolution with a bias and no pooling, another stride in time than in space."""
    torch.manual_seed(0)
    kernel, stride, padding = (3, 7, 7)[-axes:], (2, 4, 4)[-axes:], (1, 3, 3)[-axes:]
    stem = ConvTokens(16, kernel=kernel, stride=stride, padding=padding, bias=True, **MEAN_STD)
    size = (4, 16, 24)[-axes:]
    x = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    tokens = stem(x)
    assert tokens.grid == (2, 4, 6)[-axes:]
    shape = (1, 3, *[1] * axes)
    mean, std = (torch.tensor(v).view(shape) for v in MEAN_STD.values())
    normalised = (x / 255 - mean) / std
    conv = stem.convs[0]
    convolve = F.conv2d if axes == 2 else F.conv3d
    wanted = convolve(normalised, conv.weight, conv.bias, stride, padding).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.values, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(stem(normalised).values, wanted, rtol=0, atol=1e-5)
    assert stem.bfloat16()(x).values.dtype == torch.bfloat16


def test_starts_by_what_follows():
    torch.manual_seed(0)
    sides = {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)}
    for max_pool, gain in ((True, 2), (False, 1)):
        weight = ConvTokens(256, **sides, max_pool=max_pool).convs[0].weight
        assert weight.var().item() == pytest.approx(gain / (3 * 49), rel=0.05)


def test_mistakes():
    with pytest.raises(ValueError, match="expected two or three numbers in each"):
        ConvTokens(8, kernel=(3,), stride=(1,), padding=(1,))
    with pytest.raises(ValueError, match=r"kernel \(3, 3\), stride \(1, 1, 1\)"):
        ConvTokens(8, kernel=(3, 3), stride=(1, 1, 1), padding=(1, 1))
    stem = ConvTokens(8, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    with pytest.raises(ValueError, match=r"pixels are \(1, 4, 8, 8\), expected \(B,3,H,W\)"):
        stem(torch.zeros(1, 4, 8, 8))
    stem = ConvTokens(8, kernel=(3,) * 3, stride=(2,) * 3, padding=(1,) * 3)
    with pytest.raises(ValueError, match=r"expected \(B,3,T,H,W\): channels before frames"):
        stem(torch.zeros(1, 3, 8, 8))
