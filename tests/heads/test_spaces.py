"""VATT's spaces and their norm: torch's batch norm on one process, few rows, large means, formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvit.heads.batch_norm import GlobalBatchNorm
from mmvit.heads.spaces import FineCoarse, Joint


def pair(channels=5):
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm(channels).double(), nn.BatchNorm1d(channels).double()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(p)
        q.data.copy_(p)
    return ours, theirs


def test_it_is_torchs_batch_norm():
    ours, theirs = pair()
    for _ in range(3):
        x = (torch.randn(7, 5, dtype=torch.float64) * 3 + 2).requires_grad_()
        y = x.detach().clone().requires_grad_()
        weights = torch.randn(7, 5, dtype=torch.float64)
        out, wanted = ours(x), theirs(y)
        (out * weights).sum().backward()
        (wanted * weights).sum().backward()
        assert (out - wanted).abs().max() < 1e-12
        assert (x.grad - y.grad).abs().max() < 1e-12
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() < 1e-12
        for name in ("running_mean", "running_var"):
            assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-12
    x = torch.randn(4, 5, dtype=torch.float64)
    assert (ours.eval()(x) - theirs.eval()(x)).abs().max() < 1e-12


def test_large_means_lose_no_digits():
    norm, x = GlobalBatchNorm(1), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert (norm(x + 1e6) - norm(x)).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_leave_the_statistics_alone(rows):
    norm = GlobalBatchNorm(3)
    out = norm(torch.full((rows, 3), 5.0))
    assert out.shape == (rows, 3)
    assert torch.isfinite(out).all()
    assert (norm.running_mean == 0).all()
    assert (norm.running_var == 1).all()


def test_half_types_are_normed_in_float32():
    norm, x = GlobalBatchNorm(4), torch.randn(8, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
    with pytest.raises(ValueError, match=r"rows are \(8, 3\), expected \(b,4\)"):
        norm(torch.randn(8, 3))


def normed(x):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


def test_fine_and_coarse_by_hand():
    torch.manual_seed(0)
    heads = FineCoarse((6, 7, 8), 5, 4).double()
    v, a, t = (torch.randn(9, width, dtype=torch.float64) for width in (6, 7, 8))
    video, audio, text = heads.video(v), heads.audio(a), heads.text(t)
    hidden = F.relu(normed(v @ heads.video_hidden.weight.T))
    fine = normed(hidden @ heads.video_va.weight.T)
    assert (video["va"] - fine).abs().max() < 1e-12
    assert (video["vt"] - normed(F.relu(fine) @ heads.va_vt.weight.T)).abs().max() < 1e-12
    heard = a @ heads.audio_va.weight.T + heads.audio_va.bias
    assert (audio["va"] - heard).abs().max() < 1e-12
    long = F.normalize(heard, dim=-1) * 5**0.5
    assert (audio["vt"] - normed(F.relu(long) @ heads.va_vt.weight.T)).abs().max() < 1e-12
    assert (text["vt"] - (t @ heads.text_vt.weight.T + heads.text_vt.bias)).abs().max() < 1e-12
    assert set(text) == {"vt"}
    names = {n for n, p in heads.named_parameters() if p.ndim == 1}
    norms = {f"{n}_norm.{part}" for n in ("video_hidden", "video_va", "va_vt") for part in ("weight", "bias")}
    assert names == norms | {"audio_va.bias", "text_vt.bias"}


def test_only_the_direction_of_audio_in_the_fine_space_reaches_the_coarse_one():
    heads = FineCoarse((6, 6, 6), 5, 4)
    for _ in range(20):
        heads.video(torch.randn(32, 6)), heads.audio(torch.randn(32, 6))
    heads.eval()
    x = torch.randn(3, 6)
    nn.init.zeros_(heads.audio_va.bias)
    torch.testing.assert_close(heads.audio(x)["vt"], heads.audio(40 * x)["vt"])


def test_audio_does_not_touch_videos_statistics():
    heads = FineCoarse((6, 6, 6), 5, 4)
    heads.video(torch.randn(8, 6))
    before = {n: b.clone() for n, b in heads.named_buffers()}
    heads.audio(torch.randn(8, 6))
    changed = {n for n, b in heads.named_buffers() if not torch.equal(b, before[n])}
    assert changed == {"audio_vt_norm.running_mean", "audio_vt_norm.running_var"}


def test_joint_by_hand():
    heads = Joint((6, 7, 8), 4)
    v = torch.randn(9, 6)
    out = heads.video(v)
    torch.testing.assert_close(out["vt"], normed(F.relu(v) @ heads.maps["video"].weight.T), atol=1e-5, rtol=0)
    assert out["va"] is out["vt"]
    assert heads.audio(torch.randn(2, 7))["va"].shape == (2, 4)
    assert set(heads.text(torch.randn(2, 8))) == {"vt"}
