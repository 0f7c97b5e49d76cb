"""Official files of VideoMAE, AST and AudioMAE, written here under their own names, give their models."""

import pytest
import torch
import torch.nn.functional as F

import mmvit
from mmvit.hub import from_checkpoint
from tests.parity.case import randomise

CLIPS = {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96, "clip_size": (4, 32, 32)}
SOUNDS = {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 96}


def renamed(state: dict, names: dict[str, str], skip: tuple[str, ...] = ()) -> dict:
    """Our tensors under other names: the first beginning that fits is replaced."""
    out = {}
    for key, value in state.items():
        new = next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key)
        if key not in skip:
            out[new] = value.clone()
    return out


@torch.no_grad()
def test_videomae_before_and_after_fine_tuning(tmp_path):
    clips = torch.randn(2, 3, 4, 32, 32)
    names = {"core.": "encoder.", "patch_embed.": "encoder.patch_embed."}
    encoder = mmvit.create_model("videomae_small_patch16_224", norm_last=True, pool="mean", **CLIPS)
    randomise(encoder)
    rest = {"mask_token": torch.zeros(1, 1, 8), "encoder_to_decoder.weight": torch.zeros(8, 64)}
    rest |= {"decoder.norm.weight": torch.zeros(8)}
    torch.save({"model": renamed(encoder.state_dict(), names, ("pos_embed",)) | rest}, tmp_path / "p.pth")
    found = from_checkpoint(tmp_path / "p.pth", "videomae", clip_size=(4, 32, 32))
    assert torch.equal(found(clips), encoder(clips))
    assert set(found.report.left_out) == set(rest)
    tuned = mmvit.create_model("videomae_small_patch16_224", num_classes=3, **CLIPS)
    randomise(tuned)
    names = {"tower.core.": "", "tower.pool.norm.": "fc_norm.", "tower.": ""}
    torch.save({"module": renamed(tuned.state_dict(), names, ("tower.pos_embed",))}, tmp_path / "t.pth")
    found = from_checkpoint(tmp_path / "t.pth", "videomae", clip_size=(4, 32, 32))
    assert torch.equal(found(clips), tuned(clips))
    tower = from_checkpoint(tmp_path / "t.pth", "videomae", head=False, clip_size=(4, 32, 32))
    assert torch.equal(tower(clips), tuned.features(clips))
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="family 'videomae': lacks 'patch_embed.proj.weight'"):
        from_checkpoint(tmp_path / "x.pth", "videomae")


@pytest.mark.parametrize("frames", [1024, 512, 128])
@torch.no_grad()
def test_ast_of_every_released_length(frames, tmp_path):
    model = mmvit.create_model("ast_base_patch16", num_classes=3, spectrogram_size=(frames, 128), **SOUNDS)
    randomise(model)
    names = {"tower.core.": "v.", "tower.pool.norm.": "mlp_head.0.", "tower.": "v.", "head.": "mlp_head.1."}
    state = renamed(model.state_dict(), names) | {"v.head.weight": torch.zeros(5, 64)}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pth")
    found = from_checkpoint(tmp_path / "a.pth", "ast")
    x = torch.randn(1, frames, 128)
    assert found.config == model.config
    assert torch.equal(found(x), model(x))
    assert set(found.report.left_out) == {"v.head.weight"}


@torch.no_grad()
def test_audiomae_is_turned_to_frequency_by_time(tmp_path):
    """Against the maths of its own code: time-major patches of a (B,1,T,F) input, positions in that order."""
    torch.manual_seed(0)
    fields = {"distill_token": False, "pool": "cls", "patch_stride": (16, 16), "pool_eps": None}
    model = mmvit.create_model("ast_base_patch16", spectrogram_size=(64, 128), **SOUNDS | fields)
    randomise(model)
    kernel, table = torch.randn(64, 1, 16, 16), torch.randn(1, 1 + 4 * 8, 64)
    state = renamed(model.state_dict(), {"core.": ""})
    state |= {"patch_embed.proj.weight": kernel, "pos_embed": table}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
    torch.save({"model": state}, tmp_path / "m.pth")
    found = from_checkpoint(tmp_path / "m.pth", "audiomae")
    x = torch.randn(2, 64, 128)
    theirs = F.conv2d(x[:, None], kernel, state["patch_embed.proj.bias"], stride=16)  # (B,D,t=4,f=8)
    theirs = theirs.flatten(2).transpose(1, 2) + table[:, 1:]
    mine = found.tokens(x).values[:, 1:].reshape(2, 8, 4, 64).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert found.grid == (8, 4)
    assert torch.equal(found.tokens(x).values[0, 0], (found.cls_token + table[:, :1])[0, 0])
    assert set(found.report.left_out) == {"mask_token", "decoder_embed.weight"}
