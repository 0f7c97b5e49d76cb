"""Detection heads: the bias table and the logits by hand, how they start, which cells see a picture."""

import math

import pytest
import torch
from torch import nn

from mmvit.heads.detect import BoxHead, ClassHead, MergeClass, box_bias, grid_mask, query_logits


def test_the_bias_is_the_corner_of_each_patch():
    """The published table: logit((c+1)/w) with 1e-4 on both sides, and the size of one patch."""
    bias = box_bias((4, 4), "corner")
    wanted = torch.tensor([-1.0983, 0.0, 1.0983, 9.2103])
    torch.testing.assert_close(bias[:4, 0], wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(bias[::4, 1], wanted, rtol=0, atol=1e-4)  # row-major: y follows the rows
    torch.testing.assert_close(bias[:, 2:], torch.full((16, 2), -1.0983), rtol=0, atol=1e-4)


def test_the_bias_of_other_grids_and_kinds():
    boxes = box_bias((2, 5), "corner").sigmoid()
    assert boxes.shape == (10, 4)
    torch.testing.assert_close(boxes[:, 2], torch.full((10,), 0.2), rtol=0, atol=2e-4)
    torch.testing.assert_close(boxes[:, 3], torch.full((10,), 0.5), rtol=0, atol=2e-4)
    middle = box_bias((2, 5), "center").sigmoid()
    torch.testing.assert_close(middle[:5, 0], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]), rtol=0, atol=2e-4)
    torch.testing.assert_close(middle[::5, 1], torch.tensor([0.25, 0.75]), rtol=0, atol=2e-4)
    assert box_bias((1, 1), "corner").isfinite().all()


def test_logits_by_hand():
    embeddings = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 4.0]])
    shift, scale = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 3.0]])
    got = query_logits(embeddings, shift, scale, queries)
    wanted = torch.tensor([[[1.1 * 2, 1.3 * 2, 1.5 * 2], [-3.0, 0.0, -0.6]]])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    own = query_logits(embeddings.expand(2, -1, -1), shift, scale, torch.stack([queries, queries.flip(0)]))
    torch.testing.assert_close(own[1].flip(-1), own[0])


def test_a_zero_embedding_has_no_cosine_and_no_nan():
    got = query_logits(torch.zeros(1, 1, 4), torch.tensor([[0.3]]), torch.tensor([[2.0]]), torch.zeros(2, 4))
    torch.testing.assert_close(got, torch.full((1, 1, 2), 0.6))


def test_the_class_head_starts_near_the_prior():
    torch.manual_seed(0)
    head = ClassHead(64, 8, prior=0.01)
    assert head.logit_shift.bias.item() == pytest.approx(math.log(0.01 / 0.99))
    assert head.dense.weight.std().item() == pytest.approx(1e-6, rel=0.2)
    tokens = 50 * torch.randn(4, 9, 64) + 30  # whatever the tokens share, and however long they are
    embeddings, shift, scale = head(tokens)
    torch.testing.assert_close(shift.sigmoid(), torch.full((4, 9), 0.01))
    assert (scale == 1).all()
    logits = query_logits(embeddings, shift, scale, torch.randn(5, 8))
    assert (logits - shift[..., None]).abs().max() <= 1  # a cosine
    logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_scales_stay_positive():
    head = ClassHead(16, 8)
    nn.init.normal_(head.logit_scale.weight)
    scale = head(torch.randn(4, 9, 16))[2]
    assert (scale > 0).all()
    assert scale.min() < 0.1
    assert scale.max() > 3


def test_the_box_head_starts_at_its_bias():
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 16)
    assert (BoxHead(16, 4, torch.nn.functional.gelu, zero=True)(tokens) == 0).all()
    assert (BoxHead(16, 1, torch.nn.functional.gelu)(tokens) != 0).any()


def test_merging_norms_the_product():
    torch.manual_seed(0)
    tokens, class_token = torch.randn(2, 5, 8), torch.randn(2, 8)
    merge = MergeClass(8, 1e-5)
    wanted = torch.nn.functional.layer_norm(tokens * class_token[:, None], (8,))
    torch.testing.assert_close(merge(tokens, class_token), wanted)
    torch.testing.assert_close(merge(tokens), torch.nn.functional.layer_norm(tokens, (8,)))


@pytest.mark.parametrize(
    ("region", "rows", "columns"),
    [
        ((0, 0, 1, 1), range(4), range(4)),
        ((0, 0, 1, 0.5), range(2), range(4)),  # ends on a border of cells
        ((0, 0, 0.26, 1), range(4), range(2)),
        ((0, 0, 1, 0.001), range(1), range(4)),  # a sliver is seen by one row
        ((0.5, 0.5, 1, 1), range(2, 4), range(2, 4)),
        ((0, 0, 0, 0), (), ()),
    ],
)
def test_the_cells_that_see_a_picture(region, rows, columns):
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    for r in rows:
        for c in columns:
            wanted[r, c] = True
    got = grid_mask(torch.tensor([[region, (0.0, 0.0, 0.0, 0.0)]]), (4, 4))
    assert torch.equal(got[0].view(4, 4), wanted)


def test_several_pictures_in_one_tensor():
    """Mosaics: what any picture covers is seen."""
    tiles = torch.tensor([[(0.0, 0.0, 0.5, 0.25), (0.5, 0.5, 0.75, 1.0)]])
    got = grid_mask(tiles, (4, 4)).view(4, 4)
    assert got.nonzero().tolist() == [[0, 0], [0, 1], [2, 2], [3, 2]]
