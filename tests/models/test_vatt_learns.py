"""Both variants of VATT learn eight triplets by heart: a moving square, a tone of its pitch, two words."""

import math

import pytest
import torch

from mmvit.losses import mil_nce_loss
from mmvit.models.config import VattConfig, VideoTowerConfig, WaveformTowerConfig, WordTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.vatt import Vatt

N = 8


def triplets():
    """Clips (8,3,4,32,32) uint8, sounds (8,1024), words (8,2): row i moves as i % 4, in half i // 4."""
    clips = torch.zeros(N, 3, 4, 32, 32, dtype=torch.uint8)
    for i in range(N):
        way, half = i % 4, i // 4
        for t in range(4):
            along, across = 8 * t if way % 2 == 0 else 24 - 8 * t, 4 + 16 * half
            y, x = (across, along) if way < 2 else (along, across)
            clips[i, :, t, y : y + 8, x : x + 8] = 255
    seconds = torch.arange(1024) / 8000
    pitches = 200.0 * 2 ** (torch.arange(N) / 2)
    sounds = 0.5 * torch.sin(2 * math.pi * pitches[:, None] * seconds)
    words = torch.stack([2 + torch.arange(N) % 4, 6 + torch.arange(N) // 4], 1)
    return clips, sounds, words


def model(shared):
    torch.manual_seed(0)
    core = CoreConfig(width=64, depth=2, num_heads=2, mlp_dim=128)
    fields = {"class_position": False, "class_std": 0.125, "position": "axes", "position_norm": True}
    fields |= {"pre_projection": True, "post_projection": 64} if shared else {}
    return Vatt(
        VattConfig(
            video=VideoTowerConfig(core=core, clip_size=(4, 32, 32), patch_size=(2, 8, 8), **fields),
            audio=WaveformTowerConfig(core=core, samples=1024, patch_size=64, **fields),
            text=WordTowerConfig(core=core, vocab_size=8, post_projection=64 if shared else None),
            va_dim=32,
            vt_dim=16,
            shared=shared,
        )
    )


@pytest.mark.parametrize("shared", [True, False])
def test_eight_triplets_are_learned_by_heart(shared):
    vatt, (clips, sounds, words) = model(shared), triplets()
    optimizer = torch.optim.Adam(vatt.parameters(), lr=1e-3, eps=1e-7)
    losses = []
    for _ in range(60):
        v, a, t = vatt.encode_video(clips), vatt.encode_audio(sounds), vatt.encode_text(words)
        loss = mil_nce_loss(v["va"], a["va"][:, None]) + mil_nce_loss(v["vt"], t["vt"][:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2 * math.log(2 * N) * 0.7, "at the start about as good as equal vectors"
    assert losses[-1] > 2 * math.log(2), "the floor of the asymmetric loss"
    vatt.eval()
    with torch.no_grad():
        v, a, t = vatt.encode_video(clips), vatt.encode_audio(sounds), vatt.encode_text(words)
    own = torch.arange(N)
    for one, other in ((v["va"], a["va"]), (v["vt"], t["vt"])):
        similarity = one @ other.T
        assert torch.equal(similarity.argmax(1), own)
        assert torch.equal(similarity.argmax(0), own)
