"""Pictures and subwords as tokens, and keeping a subset of them."""

import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.image import PatchEmbed
from mmvit.tokens.select import select
from mmvit.tokens.text import TextEmbed
from mmvit.types import Tokens


def test_patches_equal_a_strided_convolution():
    torch.manual_seed(0)
    embed = PatchEmbed(8, 4).double()
    torch.nn.init.normal_(embed.proj.bias)
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    tokens = embed(x)
    wanted = F.conv2d(x, embed.proj.weight, embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    assert (tokens.grid, tokens.prefix, tokens.mask) == ((3, 2), 0, None)
    torch.testing.assert_close(tokens.values, wanted, rtol=0, atol=1e-12)
    assert torch.equal(embed(x.contiguous(memory_format=torch.channels_last)).values, tokens.values)


def test_bytes_are_normalised_and_floats_are_not():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    embed = PatchEmbed(8, 4, mean=mean, std=std, bias=False)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    by_hand = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(embed(pixels).values, embed(by_hand).values, rtol=0, atol=1e-5)
    assert embed.proj.bias is None
    with torch.inference_mode():
        embed(pixels)
    embed(pixels).values.sum().backward()  # constants made in inference mode do not poison training
    assert embed.proj.weight.grad.isfinite().all()
    low = embed.bfloat16()(pixels).values
    assert low.dtype == torch.bfloat16


def test_patch_kernel_starts_lecun_normal():
    torch.manual_seed(0)
    weight = PatchEmbed(384, 16).proj.weight
    assert weight.std().item() == pytest.approx(768**-0.5, rel=0.01)
    assert weight.abs().max().item() <= 2 * 768**-0.5 / 0.8796
    assert not PatchEmbed(8, 4).proj.bias.any()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 10, 8), "10x8 pixels, expected multiples of patch_size=4"), ((1, 1, 8, 8), r"\(1, 1, 8, 8\)")],
)
def test_wrong_pictures_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(8, 4)(torch.zeros(shape))


def test_subwords_are_looked_up_and_placed():
    torch.manual_seed(0)
    embed = TextEmbed(50, 8)
    positions = torch.randn(1, 6, 8)
    ids = torch.randint(0, 50, (2, 4))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    tokens = embed(ids, mask, positions)
    assert tokens.grid == (4,)
    assert tokens.mask is mask
    torch.testing.assert_close(tokens.values[1, 2], embed.weight[ids[1, 2]] + positions[0, 2])
    with pytest.raises(ValueError, match="7 tokens long, expected at most context_length=6"):
        embed(torch.zeros(1, 7, dtype=torch.long), None, positions)
    with pytest.raises(ValueError, match=r"mask is \(2, 3\), expected \(2, 4\)"):
        embed(ids, mask[:, :3], positions)
    with pytest.raises(ValueError, match=r"expected \(B,L\)"):
        embed(ids[0], None, positions)


def test_subword_table_starts_at_one_over_root_width():
    torch.manual_seed(0)
    assert TextEmbed(2000, 64).weight.std().item() == pytest.approx(1 / 8, rel=0.02)


def test_select_keeps_the_named_tokens_and_remembers_where_they_were():
    values = torch.arange(2 * 7).view(2, 7, 1).float()  # two special tokens, then a grid of 5
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 6] = False
    tokens = Tokens(values, (5,), prefix=2, mask=mask)
    first = select(tokens, torch.tensor([[0, 2, 4], [1, 3, 4]]))
    assert first.values[..., 0].tolist() == [[0, 1, 2, 4, 6], [7, 8, 10, 12, 13]]
    assert first.mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert (first.grid, first.prefix) == ((5,), 2)
    second = select(first, torch.tensor([[2], [0]]))
    assert second.kept.tolist() == [[4], [1]]
    assert second.values[..., 0].tolist() == [[0, 1, 6], [7, 8, 10]]
    with pytest.raises(ValueError, match=r"expected \(B,K\) int64"):
        select(tokens, torch.tensor([0, 1]))
