"""Position tables: resampling against references and the peers' rules, sine tables, special tokens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvit.tokens.positions import RESAMPLE, add_positions, prepend, resample_grid, sincos_2d
from mmvit.types import Tokens


def table(grid, width=6, dtype=torch.float32):
    return torch.randn(1, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(0)).to(dtype)


def linear_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """(new, old) triangle-filter weights at half-pixel centres, written out row by row."""
    scale = old / new
    support = max(scale, 1.0) if antialias else 1.0
    rows = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        if not antialias:
            centre = min(max(centre, 0), old - 1)
        for j in range(old):
            rows[i, j] = max(0.0, 1 - abs(j - centre) / support)
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("new", [(9, 4), (3, 12), (5, 5)])
@pytest.mark.parametrize("antialias", [False, True])
def test_bilinear_is_the_triangle_filter(new, antialias):
    old = (7, 6)
    t = table(old)
    rows, columns = (linear_weights(o, n, antialias) for o, n in zip(old, new, strict=True))
    wanted = np.einsum("ai,bj,ijd->abd", rows, columns, t.view(7, 6, 6).double().numpy())
    got = resample_grid(t, old, new, "bilinear_antialias" if antialias else "bilinear")
    np.testing.assert_allclose(got.view(*new, 6).numpy(), wanted, atol=2e-6)


def test_align_corners_is_big_visions_zoom():
    zoom = pytest.importorskip("scipy.ndimage").zoom
    t = table((7, 7))
    wanted = zoom(t.view(7, 7, 6).numpy(), (10 / 7, 10 / 7, 1), order=1)
    got = resample_grid(t, (7, 7), (10, 10), "bilinear_align_corners")
    np.testing.assert_allclose(got.view(10, 10, 6).numpy(), wanted, atol=3e-6)
    corners = got.view(10, 10, 6)[::9, ::9]
    torch.testing.assert_close(corners, t.view(7, 7, 6)[::6, ::6], rtol=0, atol=1e-6)


def test_bicubic_antialias_is_timms_rule():
    from timm.layers import resample_abs_pos_embed

    t = table((14, 14))
    for new in ((7, 9), (24, 24), (16, 16)):
        wanted = resample_abs_pos_embed(t, list(new), old_size=[14, 14], num_prefix_tokens=0)
        assert (resample_grid(t, (14, 14), new, "bicubic_antialias") - wanted).abs().max() < 1e-6


def test_the_modes_are_different_functions():
    t = table((14, 14))
    results = [resample_grid(t, (14, 14), (9, 9), mode) for mode in RESAMPLE]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert (a - b).abs().max() > 0.05


def test_float32_inside_and_same_dtype_outside():
    t = table((8, 8), dtype=torch.bfloat16)
    got = resample_grid(t, (8, 8), (12, 12), "bicubic")
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, resample_grid(t.float(), (8, 8), (12, 12), "bicubic").bfloat16())
    assert resample_grid(t, (8, 8), (8, 8), "bicubic") is t


def test_mistakes_name_the_option():
    with pytest.raises(ValueError, match="position_resample is 'cubic', expected one of bilinear"):
        resample_grid(table((2, 2)), (2, 2), (3, 3), "cubic")
    with pytest.raises(ValueError, match="4 rows, expected 3x3"):
        resample_grid(table((2, 2)), (3, 3), (2, 2), "bicubic")


def test_sincos_first_values():
    """Written out by hand for D=8: two frequencies, 1 and 1/10000; x (columns) before y (rows)."""
    got = sincos_2d((2, 3), 8)[0]
    assert got.shape == (6, 8)
    for row, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
        w = np.array([1.0, 1e-4])
        wanted = np.concatenate([np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)])
        np.testing.assert_allclose(got[row].numpy(), wanted, atol=1e-7)
    # D=384: the third frequency is 10000^(-2/95), not 10000^(-2/96)
    assert sincos_2d((1, 2), 384)[0, 1, 2].item() == pytest.approx(np.sin(10_000 ** (-2 / 95)), abs=1e-6)
    for wrong in (4, 10):
        with pytest.raises(ValueError, match="multiple of 4"):
            sincos_2d((2, 2), wrong)


def test_special_rows_are_skipped_and_special_tokens_lead():
    t = table((2, 3))
    with_class = torch.cat([torch.full((1, 1, 6), 99.0), t], 1)
    tokens = Tokens(torch.zeros(2, 6, 6), (2, 3), mask=torch.zeros(2, 6, dtype=torch.bool))
    placed = add_positions(tokens, with_class, (2, 3), "bicubic")
    assert torch.equal(placed.values, t.expand(2, -1, -1))
    led = prepend(placed, torch.ones(1, 1, 6), None, torch.full((1, 2, 6), 2.0))
    assert led.prefix == 3
    assert led.values[1, :3, 0].tolist() == [1, 2, 2]
    assert torch.equal(led.values[:, 3:], placed.values)
    assert led.mask.sum(1).tolist() == [3, 3]  # special tokens are real
    assert prepend(placed, None) is placed


def test_gradients_reach_a_resampled_table():
    t = table((4, 4)).requires_grad_()
    tokens = Tokens(torch.zeros(1, 9, 6), (3, 3))
    add_positions(tokens, t, (4, 4), "bicubic_antialias").values.square().sum().backward()
    assert (t.grad.abs().sum(-1) > 0).all()
    assert F.mse_loss(t.grad, torch.zeros_like(t)) > 0
