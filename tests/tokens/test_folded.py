"""Folded spectrograms: the square and its grid against a loop, the norm that never looks at the batch."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.folded import BandNorm, FoldedPatches, folded_grid


def stem(size=(32, 8), fold=4, patch=2) -> FoldedPatches:
    torch.manual_seed(0)
    made = FoldedPatches(6, patch, size=size, fold=fold)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2)
    return made


def test_pieces_lie_over_each_other_low_bands_first():
    made, x = stem(), torch.randn(2, 32, 8)
    tokens = made(x)
    assert tokens.grid == folded_grid((32, 8), 2, 4) == (16, 4)
    normed = made.norm(x)
    square = torch.cat([normed[:, 8 * r : 8 * r + 8].transpose(1, 2) for r in range(4)], dim=1)  # (B, 4*8, 8)
    wanted = made.proj(square[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.values, wanted, rtol=0, atol=1e-5)


def test_short_sounds_are_stretched_and_both_ends_kept():
    made, x = stem(), torch.randn(1, 20, 8)
    stretched = F.interpolate(made.norm(x)[:, None], (32, 8), mode="bicubic", align_corners=True)[:, 0]
    torch.testing.assert_close(stretched[:, [0, -1]], made.norm(x)[:, [0, -1]], rtol=0, atol=1e-5)
    inverse = (stretched - made.norm.bias) / made.norm.weight
    inverse = inverse * (made.norm.running_var + 1e-5).sqrt() + made.norm.running_mean
    torch.testing.assert_close(made(x).values, made(inverse).values, rtol=0, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_the_norm_is_a_batch_norm_that_is_always_in_eval_mode(training):
    torch.manual_seed(0)
    norm, peer = BandNorm(5).train(training), torch.nn.BatchNorm1d(5).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.uniform_(0.5, 2)
        getattr(peer, name).data.copy_(getattr(norm, name))
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(norm(x), peer(x.transpose(1, 2)).transpose(1, 2), rtol=0, atol=1e-6)
    mean = norm.running_mean.clone()
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]), rtol=0, atol=0)
    assert torch.equal(norm.running_mean, mean), "stored statistics are never renewed"


def test_a_sound_does_not_depend_on_the_batch():
    made, x = stem().train(), torch.randn(3, 32, 8)
    torch.testing.assert_close(made(x).values[1:2], made(x[1:2]).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 33, 8), "expected 1..32 frames of 8: cut longer sounds"),
        ((1, 0, 8), "0 frames x 8"),
        ((1, 32, 9), "x 9 mel bands"),
        ((1, 1, 32, 8), "no channel axis"),
    ],
)
def test_other_spectrograms_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        stem()(torch.randn(shape))


@pytest.mark.parametrize(
    ("size", "patch", "fold"), [((30, 8), 2, 4), ((32, 7), 2, 4), ((32, 8), 2, 0), ((0, 8), 2, 4)]
)
def test_squares_that_cannot_be_are_refused(size, patch, fold):
    with pytest.raises(ValueError, match="expected frames that are a multiple of"):
        folded_grid(size, patch, fold)
