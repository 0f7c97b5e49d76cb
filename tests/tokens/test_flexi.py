"""The kernel at other patch sizes: what its operator promises, timm's operator, gradients, tokens."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.flexi import KERNEL_RESAMPLE, resample_kernel, resize_matrix
from mmvit.tokens.image import PatchEmbed

SIZES = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)


@pytest.mark.parametrize("p", [8, 16])
@pytest.mark.parametrize("q", SIZES)
def test_product_with_a_resized_patch_stays(p, q):
    """<x,w> = <Bx,w^> for every x when the patch grows; B is the resize of the picture itself."""
    x = torch.randn(5, 3, p, p, dtype=torch.float64)
    kernel = torch.randn(4, 3, p, p, dtype=torch.float64)
    resized = F.interpolate(x, size=(q, q), mode="bilinear", align_corners=False)
    before = torch.einsum("bcij,dcij->bd", x, kernel)
    after = torch.einsum("bcij,dcij->bd", resized, resample_kernel(kernel, q, "pi"))
    if q >= p:
        assert (after - before).abs().max() < 1e-11
    else:  # fewer pixels than weights: least squares, not equality
        assert (after - before).abs().max() > 1.0


@pytest.mark.parametrize("q", [5, 8, 12])
def test_equals_the_pseudo_inverse_of_the_whole_patch(q):
    """Per axis is a short cut: the paper's matrix, built from one-hot patches, gives the same kernel."""
    p = 8
    one_hot = torch.eye(p * p, dtype=torch.float64).view(p * p, 1, p, p)
    B = F.interpolate(one_hot, size=(q, q), mode="bilinear", align_corners=False).flatten(1).t()  # (q*q,p*p)
    assert torch.allclose(torch.kron(*[resize_matrix(p, q, "pi")] * 2), B, atol=1e-12)
    kernel = torch.randn(4, 3, p, p, dtype=torch.float64)
    slow = (kernel.flatten(2) @ torch.linalg.pinv(B.t()).t()).unflatten(2, (q, q))
    assert (resample_kernel(kernel, q, "pi") - slow).abs().max() < 1e-10


@pytest.mark.parametrize("mode", KERNEL_RESAMPLE)
def test_same_size_is_the_kernel_itself(mode):
    kernel = torch.randn(4, 3, 16, 16)
    assert resample_kernel(kernel, 16, mode) is kernel


@pytest.mark.parametrize("q", [8, 12, 24, 30])
def test_timms_operator_is_another(q):
    timm = pytest.importorskip("timm")
    kernel = torch.randn(4, 3, 16, 16)
    theirs = timm.layers.resample_patch_embed(kernel, [q, q])
    ours = resample_kernel(kernel, q, "timm")
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max().item())
    paper = timm.layers.resample_patch_embed(kernel, [q, q], interpolation="bilinear", antialias=False)
    pi = resample_kernel(kernel, q, "pi")
    assert (pi - paper).abs().max() < 1e-5 * max(1.0, paper.abs().max().item())
    assert (pi - ours).abs().max() > 0.3


def test_there_and_back_is_not_the_stored_kernel():
    kernel = torch.randn(4, 3, 16, 16)
    assert (resample_kernel(resample_kernel(kernel, 32, "pi"), 16, "pi") - kernel).abs().max() > 0.1


@pytest.mark.parametrize("q", [8, 12, 16, 30])
@pytest.mark.parametrize("mode", KERNEL_RESAMPLE)
def test_every_entry_of_the_stored_kernel_learns(q, mode):
    kernel = torch.randn(2, 3, 16, 16, requires_grad=True)
    (resample_kernel(kernel, q, mode) * torch.randn(2, 3, q, q)).sum().backward()
    assert (kernel.grad != 0).all()


def test_half_types_are_resampled_in_float32():
    kernel = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = resample_kernel(kernel, 24, "pi")
    assert torch.equal(inside, resample_kernel(kernel, 24, "pi"))
    half = resample_kernel(kernel.bfloat16(), 24, "pi")
    assert torch.equal(half, resample_kernel(kernel.bfloat16().float(), 24, "pi").bfloat16())


def test_patches_at_another_size():
    embed = PatchEmbed(4, 16, resample="pi")
    stored = embed.proj.weight.detach().clone()
    pixels = torch.randn(2, 3, 48, 24)
    tokens = embed(pixels, patch_size=12)
    assert tokens.grid == (4, 2)
    kernel = resample_kernel(stored, 12, "pi")
    expected = F.conv2d(pixels, kernel, embed.proj.bias, stride=12).flatten(2).transpose(1, 2)
    assert (tokens.values - expected).abs().max() < 1e-5
    assert torch.equal(embed.proj.weight, stored)
    assert torch.equal(
        embed(pixels[..., :16, :16], patch_size=16).values, embed(pixels[..., :16, :16]).values
    )


def test_wrong_sizes_say_so():
    pixels = torch.randn(1, 3, 48, 48)
    with pytest.raises(ValueError, match=r"patch_size=12 was asked for, .*patch_size=16 only"):
        PatchEmbed(4, 16)(pixels, patch_size=12)
    assert PatchEmbed(4, 16)(pixels, patch_size=16).grid == (3, 3)
    with pytest.raises(ValueError, match="48x48 pixels, expected multiples of patch_size=20"):
        PatchEmbed(4, 16, resample="pi")(pixels, patch_size=20)
    with pytest.raises(ValueError, match="patch_resample is 'nearest'"):
        PatchEmbed(4, 16, resample="nearest")
    with pytest.raises(ValueError, match="patch_size is 0"):
        PatchEmbed(4, 16, resample="pi")(pixels, patch_size=0)
