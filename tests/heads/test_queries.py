"""Pooling by queries: torch's own attention as the reference, masks, the first answer alone."""

import pytest
import torch
from torch import nn

from mmvit.heads.pool import build_pool
from mmvit.heads.queries import QueryPool
from mmvit.types import Encoded


def pool() -> QueryPool:
    torch.manual_seed(0)
    made = QueryPool(24, 5, 16, 4)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


@torch.no_grad()
def test_answers_equal_torchs_attention_between_three_norms():
    ours = pool()
    theirs = nn.MultiheadAttention(16, 4, kdim=24, vdim=24, batch_first=True)
    theirs.q_proj_weight.data = ours.q.weight
    theirs.k_proj_weight.data, theirs.v_proj_weight.data = ours.kv.weight.chunk(2)
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias])
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(3, 7, 24)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    keys = ours.norm_k(x)
    out = theirs(ours.norm_q(ours.query).expand(3, -1, -1), keys, keys, key_padding_mask=~mask)[0]
    found = ours.answers(Encoded(x, (7,), mask=mask))
    torch.testing.assert_close(found, ours.norm(out), rtol=0, atol=1e-5)
    features = ours(Encoded(x, (7,), mask=mask))
    torch.testing.assert_close(features, found[:, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_masked_tokens_are_unseen():
    ours, x = pool(), torch.randn(2, 6, 24)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = torch.where(mask[..., None], x, 9.0)
    assert torch.equal(ours(Encoded(x, (6,), mask=mask)), ours(Encoded(other, (6,), mask=mask)))


def test_heads_must_divide_the_queries():
    with pytest.raises(ValueError, match="queries are 16 wide, expected a multiple of num_heads=3"):
        QueryPool(24, 5, 16, 3)


@torch.no_grad()
def test_class_and_distillation_token_are_averaged_and_may_be_normed():
    x = torch.randn(2, 6, 24)
    mean = (x[:, 0] + x[:, 1]) / 2
    assert torch.equal(build_pool("cls_dist", 24, 2, 48)(Encoded(x, (4,), 2)), mean)
    normed = build_pool("cls_dist_norm", 24, 2, 48, norm_eps=0.5)(Encoded(x, (4,), 2))
    torch.testing.assert_close(normed, nn.functional.layer_norm(mean, (24,), eps=0.5))
