"""Attention: known answers, masks, and the limits of its initial values."""

import math

import pytest
import torch

from mmvit.core.attention import Attention, attend, attendable


def naive(attn: Attention, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Attention head by head with explicit softmax; allowed (B,N,N) bool."""
    B, N, D = x.shape
    d = D // attn.num_heads
    q, k, v = (x @ w.T + b for w, b in zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True))
    out = []
    for h in range(attn.num_heads):
        part = slice(h * d, (h + 1) * d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d)
        out.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[..., part])
    return torch.cat(out, -1) @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_explicit_softmax(causal, padded):
    torch.manual_seed(0)
    B, N, D = 3, 7, 12
    attn = Attention(D, 3).double()
    torch.nn.init.normal_(attn.qkv.bias)
    x = torch.randn(B, N, D, dtype=torch.float64)
    mask = torch.arange(N) < torch.tensor([7, 4, 1])[:, None] if padded else None
    allowed = torch.ones(B, N, N, dtype=torch.bool)
    if padded:
        allowed &= mask[:, None, :]
    if causal:
        allowed &= torch.ones(N, N, dtype=torch.bool).tril()
    shared = attendable(mask, causal, N, x.device)
    out = attn(x, shared, causal and shared is None)
    torch.testing.assert_close(out, naive(attn, x, allowed), rtol=0, atol=1e-12)
    # The same rows when only some tokens ask.
    index = torch.tensor([[6, 0], [3, 1], [0, 0]])
    rows = x.gather(1, index[..., None].expand(-1, -1, D))
    asked = allowed[torch.arange(B)[:, None], index][:, None]
    some = attn(x, asked, queries=rows)
    torch.testing.assert_close(some, out.gather(1, index[..., None].expand(-1, -1, D)), rtol=0, atol=1e-12)


def test_no_mask_when_nothing_is_padded():
    assert attendable(None, True, 5, torch.device("cpu")) is None
    assert attendable(torch.ones(2, 5, dtype=torch.bool), False, 5, torch.device("cpu")).shape == (2, 1, 1, 5)


def test_a_sample_without_any_real_token_stays_finite():
    x = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    out = Attention(8, 2)(x, attendable(mask, False, 4, x.device))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_q_k_v_start_with_the_limits_of_separate_matrices():
    torch.manual_seed(0)
    D = 192
    attn = Attention(D, 3)
    limit = math.sqrt(6 / (2 * D))
    for part in (*attn.qkv.weight.chunk(3), attn.proj.weight):
        assert 0.99 * limit < part.abs().max().item() <= limit  # 0.71 * limit for one fused matrix
        assert part.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert not attn.qkv.bias.any()
    assert not attn.proj.bias.any()


def test_without_bias_and_with_wrong_heads():
    assert Attention(8, 2, qkv_bias=False).qkv.bias is None
    with pytest.raises(ValueError, match="multiple of num_heads=3"):
        Attention(8, 3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_plain_form_for_half_types_on_a_cpu_is_the_fused_one(masked, causal):
    """Values and gradients agree with the fused kernel in float32 up to bfloat16's rounding."""
    torch.manual_seed(0)
    x = torch.randn(2, 9, 3, 4, 16)  # B, N, (q, k, v), H, K
    mask = None
    if masked:
        keys = torch.arange(9) < torch.tensor([[9], [5]])
        mask = attendable(keys, causal, 9, x.device)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.to(dtype).detach().requires_grad_()
        q, k, v = leaf.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, mask, causal and not masked)
        out.float().square().sum().backward()
        assert out.dtype == dtype
        found.append((out.float(), leaf.grad.float()))
    (value, gradient), (half_value, half_gradient) = found
    assert (value - half_value).abs().max() < 0.03
    assert (gradient - half_gradient).abs().max() < 0.03 * gradient.abs().max()
