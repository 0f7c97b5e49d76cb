"""The tower of Whisper's encoder: shorter sounds, silence behind them, what its presets count."""

import pytest
import torch
import transformers

import mmvit
from mmvit.models.audio import AudioTower
from mmvit.models.presets import build_model, preset
from mmvit.tokens.positions import sincos_1d_halves

SMALL = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "spectrogram_size": (100, 20)}


def tower(**overrides) -> AudioTower:
    torch.manual_seed(0)
    model = mmvit.create_model("whisper_tiny", **SMALL | overrides)
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.2, mean=float("norm" in name and name.endswith("weight")))
    return model.eval()


def test_one_token_for_two_frames_and_fixed_positions():
    model = tower()
    assert isinstance(model, AudioTower)
    assert model.grid == (50,)
    assert torch.equal(model.pos_embed, sincos_1d_halves(50, 32))
    assert not any(name.startswith("pos_embed") for name, _ in model.named_parameters())
    assert model.features(torch.randn(2, 100, 20)).shape == (2, 32)


def test_the_positions_are_those_of_transformers():
    config = transformers.WhisperConfig(d_model=64, encoder_attention_heads=2, encoder_layers=1)
    peer = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    table = peer.embed_positions.weight
    torch.testing.assert_close(sincos_1d_halves(1500, 64)[0], table, rtol=0, atol=2e-4)  # theirs in float32


@torch.no_grad()
def test_shorter_sounds_use_the_first_positions_and_longer_ones_are_refused():
    model = tower()
    found = model.tokens(torch.zeros(1, 61, 20)).values - model.patch_embed(torch.zeros(1, 61, 20)).values
    torch.testing.assert_close(found, model.pos_embed[:, :31], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"grid \(51,\) is larger than the stored \(50,\)"):
        model(torch.zeros(1, 102, 20))


@torch.no_grad()
def test_silence_behind_a_sound_changes_nothing_where_it_is_skipped():
    sound, floor = torch.randn(1, 37, 20), -0.5
    longer = [torch.cat([sound, torch.full((1, n, 20), floor)], 1) for n in (10, 40, 63)]
    model = tower(skip_silence=True)
    heard = [model.features(x) for x in longer]
    for features in heard[1:]:
        torch.testing.assert_close(features, heard[0], rtol=0, atol=1e-5)
    both = model.features(torch.cat([longer[2], torch.randn(1, 100, 20)]))
    torch.testing.assert_close(both[:1], heard[0], rtol=0, atol=1e-5)
    plain = tower()
    assert (plain.features(longer[0]) - plain.features(longer[2])).abs().max() > 1e-2
    silent = model.features(torch.full((1, 100, 20), floor))
    torch.testing.assert_close(silent, plain.features(torch.full((1, 100, 20), floor)), rtol=0, atol=1e-5)


def test_a_gradient_everywhere():
    model = tower()
    model(torch.randn(2, 100, 20)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# Of transformers' encoders, less the table of positions, which is no parameter here.
@pytest.mark.parametrize("name", ["whisper_tiny", "whisper_base", "whisper_small", "whisper_large_v3"])
def test_parameters_are_those_of_the_peer(name):
    config = preset(name)
    core = config.core
    described = transformers.WhisperConfig(
        d_model=core.width,
        encoder_layers=core.depth,
        encoder_attention_heads=core.num_heads,
        encoder_ffn_dim=core.mlp_dim,
        num_mel_bins=config.spectrogram_size[1],
    )
    with torch.device("meta"):
        peer = transformers.models.whisper.modeling_whisper.WhisperEncoder(described)
        ours = sum(p.numel() for p in build_model(config).parameters())
    assert ours == sum(p.numel() for p in peer.parameters()) - 1500 * core.width
