"""The feed-forward half: the folded form of CLIP's activation against the plain one."""

import pytest
import torch

from mmvit.core.mlp import Mlp


def plain(mlp, x):
    hidden = mlp.fc1(x)
    return mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))


@pytest.mark.parametrize("shape", [(2, 5, 16), (3, 16), (1, 2, 3, 16)])
def test_folding_quick_gelu_into_the_products_changes_rounding_only(shape):
    mlp = Mlp(16, 48, activation="quick_gelu", out_width=12).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), plain(mlp, x), rtol=0, atol=1e-14)
    torch.testing.assert_close(mlp(x), plain(mlp, x), rtol=0, atol=1e-14)


def test_folding_in_half_precision_is_as_good_as_the_plain_form():
    mlp, x = Mlp(64, 256, activation="quick_gelu").eval(), torch.randn(4, 9, 64)
    with torch.no_grad():
        exact = plain(mlp, x)
        with torch.autocast("cpu", torch.bfloat16):
            folded, unfolded = mlp(x), plain(mlp, x)
    assert folded.dtype == torch.bfloat16
    assert (folded - exact).abs().mean() < 1.2 * (unfolded - exact).abs().mean()


def test_dropout_still_drops_where_it_should():
    mlp = Mlp(16, 48, activation="quick_gelu", dropout=0.5)
    x = torch.ones(8, 16)
    with torch.no_grad():
        assert (mlp.train()(x) == 0).any()
        assert not (mlp.eval()(x) == 0).any()
