"""transformers' CLAP, every class of it: equal outputs, nothing forgotten, what cannot be read is refused."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from mmvit.core import swin
from mmvit.hub import from_transformers
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.keymap import strip_prefix, translate
from mmvit.hub.convert.transformers import clap
from mmvit.models.presets import build_model, preset
from tests.parity.case import randomise

AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_embeds_hidden_size": 8,
    "depths": (2, 3),
    "num_attention_heads": (2, 4),
    "window_size": 4,
    "hidden_size": 16,
    "projection_dim": 12,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 14,
    "projection_dim": 12,
}
SOUNDS = torch.randn(3, 250, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(12) < torch.tensor([[12], [5], [2]])
IDS = torch.where(MASK, torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(1)), 1)


def audio(kind: str = "ClapAudioModelWithProjection", **fields) -> nn.Module:
    return randomise(getattr(transformers, kind)(transformers.ClapAudioConfig(**AUDIO | fields)))


def text(kind: str = "ClapTextModelWithProjection", **fields) -> nn.Module:
    return randomise(getattr(transformers, kind)(transformers.ClapTextConfig(**TEXT | fields)))


def pair() -> nn.Module:
    config = transformers.ClapConfig(text_config=TEXT, audio_config=AUDIO, projection_dim=12)
    return randomise(transformers.ClapModel(config))


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert b.std() > 0.01
    assert (a - b).abs().max() < limit


@pytest.mark.parametrize("kind", ["ClapAudioModel", "ClapAudioModelWithProjection"])
@torch.no_grad()
def test_the_audio_tower_in_memory_and_in_files(kind, tmp_path):
    peer = audio(kind)
    peer.save_pretrained(tmp_path)
    theirs = peer(SOUNDS[:, None])
    for source in (peer, tmp_path):
        tower = from_transformers(source)
        close(tower(SOUNDS), theirs.audio_embeds if tower.config.embed_dim else theirs.pooler_output)
        tokens = tower.forward_tokens(SOUNDS)
        assert tokens.grid == (8, 8)
        # transformers puts the four pieces of time beside each other again.
        square = tokens.values.reshape(3, 4, 2, 8, 16).permute(0, 4, 2, 1, 3)
        close(square.flatten(3), theirs.last_hidden_state)
    assert set(tower.report.left_out.values()) == {
        "a counter; stored statistics are never renewed",
        "derived from the window",
    }


@pytest.mark.parametrize("frames", [256, 255, 90, 1])
@torch.no_grad()
def test_sounds_of_every_length(frames):
    peer = audio()
    x = torch.randn(2, frames, 16)
    close(from_transformers(peer)(x), peer(x[:, None]).audio_embeds)


@pytest.mark.parametrize("kind", ["ClapTextModel", "ClapTextModelWithProjection"])
@torch.no_grad()
def test_the_text_tower_with_padding(kind, tmp_path):
    peer = text(kind)
    peer.save_pretrained(tmp_path)
    theirs = peer(IDS, attention_mask=MASK.long())
    for source in (peer, tmp_path):
        tower = from_transformers(source)
        assert tower.config.context_length == 12
        close(tower(IDS, MASK), theirs.text_embeds if tower.config.embed_dim else theirs.pooler_output)
        close(tower.forward_tokens(IDS, MASK).values[MASK], theirs.last_hidden_state[MASK])


@torch.no_grad()
def test_the_pair(tmp_path):
    peer = pair()
    peer.save_pretrained(tmp_path)
    theirs = peer(input_ids=IDS, input_features=SOUNDS[:, None], attention_mask=MASK.long())
    for source in (peer, tmp_path):
        ours = from_transformers(source)
        z_sound, z_text = ours.encode_image(SOUNDS), ours.encode_text(IDS, MASK)
        close(z_sound, theirs.audio_embeds)
        close(z_text, theirs.text_embeds)
        close(ours.logit_scale.exp() * z_sound @ z_text.T, theirs.logits_per_audio)
    assert "factor of a text's scores" in ours.report.left_out["logit_scale_t"]


@torch.no_grad()
def test_training_renews_no_statistics_and_depends_on_no_batch():
    tower = from_transformers(audio()).train()
    state = {n: v.clone() for n, v in tower.state_dict().items()}
    close(tower(SOUNDS)[:1], tower(SOUNDS[:1]))
    assert all(torch.equal(v, state[n]) for n, v in tower.state_dict().items())


BLOCK = "core.blocks.{i}."


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (BLOCK + "attn.qkv.*#0", BLOCK + "attn.qkv.*#2"),
        (BLOCK + "norm1.*", BLOCK + "norm2.*"),
        ("patch_embed.norm.weight", "patch_embed.norm.running_var"),
        ("patch_embed.norm.bias", "patch_embed.norm.running_mean"),
    ],
)
@torch.no_grad()
def test_a_table_with_two_targets_exchanged_would_be_seen(old, new):
    peer, names = audio(), {old: new, new: old}
    wrong = [(line[0], names.get(line[1], line[1]), *line[2:]) for line in clap.AUDIO]
    state = clap.prepare_audio(strip_prefix(peer.state_dict(), ("audio_model.",)))
    config = clap.describe_audio(peer.config, state)
    theirs = peer(SOUNDS[:, None]).audio_embeds
    for table, fits in ((clap.AUDIO, True), (wrong, False)):
        tower = assemble(config, *translate(state, table, source="test"), source="test")
        assert ((tower(SOUNDS) - theirs).abs().max() < 1e-5) == fits


@torch.no_grad()
def test_wrong_computation_would_be_seen(monkeypatch):
    peer = audio()
    tower, theirs = from_transformers(peer), peer(SOUNDS[:, None]).audio_embeds

    def error() -> float:
        return (tower(SOUNDS) - theirs).abs().max().item()

    assert error() < 1e-5
    with monkeypatch.context() as m:
        m.setattr(swin, "seams", lambda *_: None)
        assert error() > 1e-3, "no seams between what the shift brought together"
    for block in tower.core.blocks:
        block.shifted = not block.shifted
    assert error() > 1e-3, "the other blocks shift"
    tower = from_transformers(peer)
    tower.patch_embed.proj.weight.copy_(tower.patch_embed.proj.weight.clone().transpose(-1, -2))
    assert error() > 1e-3, "a kernel whose axes are exchanged"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enable_fusion": True}, "enable_fusion is True"),
        ({"patch_stride": (2, 2)}, "expected square ones side by side"),
        ({"enable_patch_layer_norm": False}, "a norm on the patches"),
        ({"layer_norm_eps": 1e-6}, "expected a size that is a multiple of the mel bands, 1e-5"),
        ({"projection_hidden_act": "gelu"}, "expected 'relu'"),
        ({"hidden_act": "relu6"}, "hidden_act is 'relu6'"),
    ],
)
def test_other_audio_models_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_transformers(audio(**fields))
    assert "\n" not in str(caught.value)


def test_other_text_models_are_refused():
    with pytest.raises(ValueError, match="pad_token_id is 0, expected 1"):
        from_transformers(text(pad_token_id=0))


def test_a_tensor_without_a_place_is_an_error():
    peer = audio()
    peer.audio_model.audio_encoder.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"1 tensors have no place in our model: audio_encoder\.extra"):
        from_transformers(peer)


def test_the_published_sizes():
    """27,534,488 parameters of the encoder, 153,492,890 of the pair with both of its scales."""
    with torch.device("meta"):
        tower, both = build_model(preset("htsat_tiny", embed_dim=None)), build_model(preset("clap_tiny"))
    assert sum(p.numel() for p in tower.parameters()) == 27_534_488
    theirs = 153_492_890
    unused = 2 * 768 + 768 + 1  # positions of no token, the token type that is added to positions, a scale
    assert sum(p.numel() for p in both.parameters()) == theirs - unused


def test_a_head_is_normalised_by_nobody():
    """CLAP's embeddings leave the towers as they are; the pair gives them unit length."""
    ours = from_transformers(pair())
    assert not torch.allclose(ours.image(SOUNDS).norm(dim=-1), torch.ones(3))
    z = ours.encode_image(SOUNDS)
    torch.testing.assert_close(z, F.normalize(ours.image(SOUNDS), dim=-1))
