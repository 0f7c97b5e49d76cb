"""The plain form of attention: values and every gradient are those of the definition."""

import pytest
import torch

from mmvit.core.plain_attention import PlainAttention

# Fewer and more keys than the heads are wide: the probabilities are kept in one case, made anew in the other.
SIZES = {"kept": (3, 4, 5), "made anew": (6, 7, 2)}


def operands(queries, keys, width, bias_shape):
    torch.manual_seed(0)
    make = dict(dtype=torch.float64, requires_grad=True)
    q = torch.randn(2, 3, queries, width, **make)
    k, v = (torch.randn(2, 3, keys, width, **make) for _ in range(2))
    bias = None if bias_shape is None else torch.randn(bias_shape, **make)
    return q, k, v, bias


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [None, "(1,3,Q,N)", "(2,1,1,N)", "(Q,N)"])
@pytest.mark.parametrize("tile", [1, 2 * 6 * 7 * 8, 2**21])  # a head, two heads, everything at once
def test_values_and_gradients(size, shape, tile, monkeypatch):
    monkeypatch.setattr("mmvit.core.plain_attention.TILE", tile)
    queries, keys, width = SIZES[size]
    known = {"(1,3,Q,N)": (1, 3, queries, keys), "(2,1,1,N)": (2, 1, 1, keys), "(Q,N)": (queries, keys)}
    q, k, v, bias = operands(queries, keys, width, known.get(shape))
    scores = 0.3 * q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    out = PlainAttention.apply(q, k, v, bias, 0.3)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    assert torch.autograd.gradcheck(lambda *inputs: PlainAttention.apply(*inputs, 0.3), (q, k, v, bias))


def test_what_is_kept_for_the_backward_pass():
    """With many keys the probabilities are not among it."""
    kept = []
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t)
    for size, largest in (("kept", 2 * 3 * 5 * 4), ("made anew", 2 * 3 * 7 * 2)):
        kept.clear()
        with pack:
            PlainAttention.apply(*operands(*SIZES[size], None), 0.3)
        assert max(kept) == largest, size
