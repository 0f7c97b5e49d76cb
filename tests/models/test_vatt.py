"""VATT assembled: one core or three, what each loss touches, sizes, DropToken, stills, mistakes."""

import copy
import dataclasses

import pytest
import torch

import mmvit
from mmvit.models.audio import WaveformTower
from mmvit.models.build import build_tower
from mmvit.models.config import (
    AudioTowerConfig,
    TextTowerConfig,
    VattConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets import build_model, preset
from mmvit.models.stem_config import PatchStemConfig
from mmvit.models.vatt import Vatt
from mmvit.models.video import VideoTower

CORE = CoreConfig(width=64, depth=2, num_heads=2, mlp_dim=128)
FIELDS = {"class_position": False, "class_std": 0.1, "position": "axes", "position_norm": True}
VIDEO = {"clip_size": (8, 32, 32), "patch_size": (2, 16, 16)}


def config(shared=True, **fields):
    adapters = {"pre_projection": True, "post_projection": 64} if shared else {}
    return VattConfig(
        video=VideoTowerConfig(core=CORE, **VIDEO, **FIELDS, **adapters),
        audio=WaveformTowerConfig(core=CORE, samples=1280, **FIELDS, **adapters),
        text=WordTowerConfig(core=CORE, vocab_size=100, post_projection=64 if shared else None),
        va_dim=32,
        vt_dim=16,
        shared=shared,
        **fields,
    )


def small(shared=True, **fields):
    torch.manual_seed(0)
    return Vatt(config(shared, **fields))


def inputs(B=3):
    generator = torch.Generator().manual_seed(1)
    return {
        "video": torch.randint(0, 256, (B, 3, 8, 32, 32), dtype=torch.uint8, generator=generator),
        "audio": torch.randn(B, 1280, generator=generator) * 0.3,
        "text": torch.randint(1, 100, (B, 5), generator=generator),
    }


def encode(model, modality, x, **kw):
    return getattr(model, f"encode_{modality}")(x[modality], **kw)


@pytest.mark.parametrize("shared", [True, False])
def test_everything_lands_in_its_spaces(shared):
    model, x = small(shared).eval(), inputs()
    for modality in ("video", "audio", "text"):
        out = encode(model, modality, x)
        wanted = {"vt": (3, 16)} if modality == "text" else {"va": (3, 32), "vt": (3, 16)}
        assert {name: tuple(z.shape) for name, z in out.items()} == wanted
        for z in out.values():
            torch.testing.assert_close(z.norm(dim=-1), torch.ones(3))
    assert model.embed_dim == 16


def test_the_shared_core_is_one_object():
    model = small()
    towers = (model.video, model.audio, model.text)
    assert all(tower.core is model.core for tower in towers)
    ids = [[id(p) for p in tower.core.parameters()] for tower in towers]
    assert ids[0] == ids[1] == ids[2]
    apart = small(False)
    owned = [{id(p) for p in getattr(apart, name).core.parameters()} for name in ("video", "audio", "text")]
    assert len(set.union(*owned)) == sum(len(each) for each in owned)


@pytest.mark.parametrize("modality", ["video", "audio", "text"])
def test_each_modality_reaches_the_core_and_no_other_adapter(modality):
    model = small()
    encode(model, modality, inputs())["vt"].square().cumsum(-1).sum().backward()
    for name, p in model.core.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0 or name.endswith("qkv.bias"), name
    for other in {"video", "audio", "text"} - {modality}:
        tower = getattr(model, other)
        shared = {id(p) for p in model.core.parameters()}
        assert all(p.grad is None for p in tower.parameters() if id(p) not in shared), other
    own = [p for n, p in getattr(model, modality).named_parameters() if not n.startswith("core.")]
    assert all(p.grad is not None for p in own)


def test_the_shared_core_is_saved_once_and_comes_back_shared():
    model, other = small(), small()
    for p in other.parameters():
        torch.nn.init.normal_(p, std=0.1)
    state = {name: value.clone() for name, value in other.state_dict().items()}
    assert any(n.startswith("core.") for n in state)
    assert not any(f"{tower}.core." in n for n in state for tower in ("video", "audio", "text"))
    assert sum(v.numel() for v in state.values()) == sum(p.numel() for p in other.parameters()) + sum(
        b.numel() for b in other.buffers()
    )
    before = dict(state)
    model.load_state_dict(state)
    assert state.keys() == before.keys(), "the dictionary that was given is as it was"
    x = inputs()
    for modality in ("video", "audio", "text"):
        assert torch.equal(encode(model.eval(), modality, x)["vt"], encode(other.eval(), modality, x)["vt"])
    assert model.audio.core is model.core
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({n: v for n, v in state.items() if n != "core.norm.weight"})
    wrapped = torch.nn.ModuleDict({"model": small()})
    wrapped.load_state_dict({f"model.{n}": v for n, v in state.items()})
    assert wrapped.state_dict().keys() == {f"model.{n}" for n in state}


def test_copies_share_among_themselves_only():
    model = small()
    twin = copy.deepcopy(model)
    assert twin.video.core is twin.audio.core is twin.text.core is twin.core
    assert twin.core is not model.core
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_the_rules_of_freezing_see_the_core_once():
    from mmvit.train.freeze import freeze

    model = small()
    frozen = freeze(model, [(r"core\..*", None), (r".*tok_embed.*", None), (".*", 1.0)])
    assert not any(p.requires_grad for p in model.core.parameters())
    assert frozen.is_locked("video.core.norm.weight")
    assert "core" in frozen.locked
    assert model.train().audio.core.training is False
    names = [n for n, _ in model.named_parameters()]
    assert len(names) == len({id(p) for p in model.parameters()})


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_order_of_tokens_does_not_matter_and_dropping_does(modality):
    model, x = small().eval(), inputs()
    N = {"video": 16, "audio": 10}[modality]
    whole = encode(model, modality, x)["va"]
    shuffled = torch.stack([torch.randperm(N) for _ in range(3)])
    torch.testing.assert_close(encode(model, modality, x, keep=shuffled)["va"], whole, rtol=0, atol=1e-5)
    assert (encode(model, modality, x, keep=shuffled[:, : N // 2])["va"] - whole).abs().max() > 1e-3


def test_evaluation_drops_nothing_and_draws_nothing():
    model = small(False)
    for tower in (model.video, model.audio, model.text):
        tower.dropout.p = 0.5
    model.eval()
    x = inputs()
    for modality in ("video", "audio", "text"):
        assert torch.equal(encode(model, modality, x)["vt"], encode(model, modality, x)["vt"])


def test_clips_and_sounds_of_other_lengths():
    model = small().eval()
    assert model.encode_video(torch.rand(1, 3, 4, 48, 64))["vt"].shape == (1, 16)
    assert model.encode_audio(torch.randn(1, 2560))["vt"].shape == (1, 16)
    with pytest.raises(ValueError, match="clip is 3x32x32"):
        model.encode_video(torch.rand(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="L at most context_length=16"):
        model.encode_text(torch.ones(1, 17, dtype=torch.int64))


def test_pictures_stand_still_for_one_tubelet():
    model = small().eval()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    clip = pictures[:, :, None].repeat(1, 1, 2, 1, 1)
    assert torch.equal(model.encode_image(pictures)["vt"], model.encode_video(clip)["vt"])
    assert model.video.tokens(model.still(pictures)).grid == (1, 2, 2)


def test_given_towers_are_used_and_described():
    torch.manual_seed(0)
    seen = VideoTower(
        VideoTowerConfig(
            core=CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=32),
            class_token=False,
            pool="mean",
            **VIDEO,
        )
    )
    text = preset("text_mu", vocab_size=100)
    model = Vatt(dataclasses.replace(config(False), text=text), video=seen)
    assert model.video is seen
    assert model.config.video == seen.config
    assert model.encode_video(inputs()["video"])["va"].shape == (3, 32)
    assert model.eval().encode_text(torch.ones(2, 4, dtype=torch.int64))["vt"].shape == (2, 16)
    with pytest.raises(ValueError, match="core configs differ: make them equal"):
        Vatt(config(), video=seen)


def test_given_towers_may_share_a_core():
    one = small()
    again = Vatt(config(), video=one.video, audio=one.audio)
    assert again.core is one.core
    assert again.text.core is one.core
    with pytest.raises(ValueError, match="the given towers have a core each"):
        Vatt(config(), video=one.video, audio=WaveformTower(config().audio))


def test_subwords_share_the_core_too():
    model = Vatt(dataclasses.replace(config(), text=TextTowerConfig(core=CORE, vocab_size=50)))
    assert model.text.core is model.core


def test_a_joint_space_is_one():
    model = small(spaces="joint").eval()
    out = model.encode_audio(inputs()["audio"])
    assert torch.equal(out["va"], out["vt"])
    assert model.embed_dim == 32


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_paper():
    """The stacks; the model of one core in full; the paper's sizes, which count a head of 600 classes."""
    with torch.device("meta"):
        models = {
            name: build_model(preset(name)) for name in ("vatt_bbs", "vatt_mbs", "vatt_lbs", "vatt_ma_medium")
        }
    stacks = {"vatt_bbs": 85_056_000, "vatt_mbs": 151_156_736, "vatt_lbs": 302_311_424}
    for (name, stack), paper in zip(stacks.items(), (87.9, 155.0, 306.1), strict=True):
        model = models[name]
        assert count(model.video.core) == stack
        assert count(model.audio.core) == 85_056_000
        assert round((count(model.video) + 600 * (model.video.width + 1)) / 1e6, 1) == paper
        assert (model.video.grid, model.audio.grid) == ((8, 14, 14), (1200,))
    agnostic = models["vatt_ma_medium"]
    words = count(agnostic.text.tok_embed)
    assert words == 19_660_800
    assert count(agnostic) - words == 162_990_336
    assert count(agnostic.core) == 151_156_736
    with torch.device("meta"):
        small_core = build_model(
            WordTowerConfig(core=CoreConfig(width=512, depth=6, num_heads=8, mlp_dim=2048), vocab_size=2)
        ).core
    assert count(small_core) == 18_915_328
    assert (
        count(models["vatt_bbs"].text.core) == 18_915_328 - 6 * (4 * 512 + 2048 + 512 + 2 * 512) - 512 + 256
    )


def test_the_spectrogram_variant_has_144_tokens():
    with torch.device("meta"):
        assert build_model(preset("vatt_bbs_mel")).audio.grid == (9, 16)
        assert build_model(preset("vatt_tiny_ma_mel")).audio.grid == (8, 12)


def test_options_of_a_shared_core_are_set_once_for_all():
    found = preset("vatt_tiny_ma", depth=3, vocab_size=50)
    assert found.video.core.depth == found.audio.core.depth == found.text.core.depth == 3
    assert found.text.vocab_size == 50
    assert mmvit.create_model("vatt_tiny_ma", depth=1, vocab_size=50).core.depth == 1
    with pytest.raises(ValueError, match="could mean video.core.depth or audio.core.depth"):
        preset("vatt_tiny", depth=3)
    with pytest.raises(ValueError, match="core configs differ"):
        mmvit.create_model("vatt_tiny_ma", **{"video.depth": 1})
    with pytest.raises(ValueError, match="did you mean samples"):
        preset("vatt_tiny", sampels=3)
    with pytest.raises(ValueError, match="unknown model 'vatt_bs': did you mean vatt_"):
        preset("vatt_bs")


def test_positions_of_a_shorter_sound_may_be_the_first_ones():
    tower = dataclasses.replace(config(False).audio, position_resample="crop")
    model = WaveformTower(tower).eval()
    x = torch.randn(1, 1280)
    short, whole = model.tokens(x[:, :640]).values, model.tokens(x).values
    torch.testing.assert_close(short, whole[:, : 1 + 5])


WAVE = config(False).audio
MEL = AudioTowerConfig(core=CORE, spectrogram_size=(150, 80), stem=PatchStemConfig(patch=(0, 5)))


@pytest.mark.parametrize(
    ("described", "change", "message"),
    [
        (WAVE, {"samples": 1000}, "samples is 1000, expected a multiple of patch_size=128"),
        (WAVE, {"patch_size": 0}, "samples is 1280, expected a multiple of patch_size=0, both at least 1"),
        (MEL, {}, r"150 frames x 80 mel bands, expected multiples of the patch \(0, 5\)"),
        (config().video, {"patch_size": (0, 16, 16)}, r"expected multiples of patch_size=\(0, 16, 16\)"),
        (WAVE, {"position": "none"}, "position_norm is True and position is 'none'"),
        (WAVE, {"post_projection": 32, "pool": "map"}, "post_projection is 32 and pool is 'map'"),
    ],
)
def test_towers_that_cannot_be(described, change, message):
    with pytest.raises(ValueError, match=message):
        build_tower(dataclasses.replace(described, **change))


def test_the_norm_of_positions_is_on_the_special_tokens_position_too():
    made = WaveformTower(dataclasses.replace(WAVE, class_position=True))
    torch.nn.init.normal_(made.cls_token)
    wanted = made.cls_token[0, 0] + made.pos_norm(made.pos_embed[0, 0])
    torch.testing.assert_close(made.tokens(torch.randn(2, 1280)).values[1, 0], wanted)
