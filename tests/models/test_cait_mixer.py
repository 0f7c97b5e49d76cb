"""CaiT and MLP-Mixer as towers and classifiers: counts, invariances, what they refuse, timm's variants."""

import pytest
import torch

import mmvit
from mmvit import hub
from mmvit.hub.convert.keymap import translate
from mmvit.hub.convert.timm.cait import CAIT
from mmvit.hub.plain import from_plain, kind_of, to_plain
from mmvit.models.presets import list_models, preset
from tests.parity.case import randomise

# preset: millions of parameters with 1000 classes, tokens along a side
PUBLISHED = {
    "cait_xxs24_224": (11.96, 14),
    "cait_xxs36_224": (17.30, 14),
    "cait_xs24_384": (26.67, 24),
    "cait_s24_224": (46.92, 14),
    "cait_s36_384": (68.37, 24),
    "cait_m36_384": (271.2, 24),
    "cait_m48_448": (356.5, 28),
    "mixer_s32_224": (19.1, 7),
    "mixer_s16_224": (18.5, 14),
    "mixer_b32_224": (60.3, 7),
    "mixer_b16_224": (59.9, 14),
    "mixer_l32_224": (206.9, 7),
    "mixer_l16_224": (208.2, 14),
    "mixer_h14_224": (432.4, 16),
}
CAIT_TINY = {"depth": 2, "width": 32, "num_heads": 2, "mlp_dim": 64, "image_size": 64}
MIXER_TINY = {"depth": 2, "width": 32, "tokens": 16, "token_dim": 8, "mlp_dim": 64, "image_size": 64}


def randomised(model):
    randomise(model)
    for name, p in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.normal_(p)
    return model


def make(family: str, **fields):
    torch.manual_seed(0)
    name, tiny = ("cait_xxs24_224", CAIT_TINY) if family == "cait" else ("mixer_s16_224", MIXER_TINY)
    return randomised(mmvit.create_model(name, num_classes=5, **{**tiny, **fields}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_tokens(name):
    millions, side = PUBLISHED[name]
    with torch.device("meta"):
        model = mmvit.create_model(name, num_classes=1000)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, len(str(millions).split(".")[1])) == millions
    assert model.tower.grid == (side, side)


def test_counts_of_tensors_and_without_a_head():
    with torch.device("meta"):
        assert len(mmvit.create_model("cait_s24_224", num_classes=1000).state_dict()) == 476
        assert len(mmvit.create_model("mixer_b16_224", num_classes=1000).state_dict()) == 150
        huge = mmvit.create_model("mixer_h14_224")
    assert round(sum(p.numel() for p in huge.parameters()) / 1e6) == 431  # the paper counts no head


def test_positions_of_cait_start_as_published():
    tower = mmvit.create_model("cait_xxs24_224", **{**CAIT_TINY, "image_size": 224})
    assert tower.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


def test_configs_survive_being_written():
    for name in [*list_models("cait_*"), *list_models("mixer_*"), *list_models("cct_*")]:
        config = preset(name, num_classes=3)
        assert from_plain(kind_of(config), to_plain(config), "config.json") == config


def test_order_of_patches_with_their_positions_is_nothing_to_cait():
    model = make("cait").eval()
    x = torch.randn(3, 3, 64, 64)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    encoded = model.forward_tokens(x, keep=order)
    assert (encoded.prefix, encoded.values.shape) == (1, (3, 17, 32))
    logits = model.head(model.tower.pool(encoded))
    torch.testing.assert_close(logits, model(x), rtol=0, atol=1e-5)
    moved = x.view(3, 3, 4, 16, 64).flip(2).reshape(3, 3, 64, 64)  # rows of patches without their positions
    assert (model(moved) - model(x)).abs().max() > 1e-3


def test_order_of_patches_matters_to_mixer():
    model = make("mixer").eval()
    x = torch.randn(3, 3, 64, 64)
    moved = x.view(3, 3, 4, 16, 64).flip(2).reshape(3, 3, 64, 64)
    assert (model(moved) - model(x)).abs().max() > 0.01
    assert model.tower.pos_embed is None


def test_without_gains_cait_sees_no_picture():
    model = make("cait").eval()
    for name, p in model.named_parameters():
        if name.endswith("gamma"):
            p.data.zero_()
    core = model.tower.core
    wanted = model.head(core.norm(core.cls_token)[:, 0])
    for _ in range(2):
        logits = model(torch.randn(2, 3, 64, 64))
        torch.testing.assert_close(logits, wanted.expand(2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["cait", "mixer"])
def test_every_parameter_learns(family):
    model = make(family, drop_path=0.2, dropout=0.1).train()
    x = torch.randn(4, 3, 64, 64)
    results = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).logsumexp(1).sum().backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    still = {n for n, g in results[0].items() if g.abs().max() < 1e-6}
    # These shift all scores of a query alike, which no softmax sees.
    assert all(n.endswith(("attn.k.bias", "attn.proj_l.bias")) for n in still), still


def test_cait_takes_other_sizes_and_mean_pooling():
    model = make("cait").eval()
    assert model(torch.randn(2, 3, 32, 96)).shape == (2, 5)
    mean = make("cait", pool="mean").eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(mean.features(x), mean.forward_tokens(x).values[:, 1:].mean(1))


def test_what_cannot_be_says_so():
    with pytest.raises(ValueError, match="class_token is True, but this core brings its own"):
        make("cait", class_token=True)
    with pytest.raises(ValueError, match="tokens is 196, but the grid is 24x24: set tokens=576 too"):
        mmvit.create_model("mixer_s16_224", image_size=384)
    model = make("mixer")
    with pytest.raises(ValueError, match="there are 64 tokens, expected .* 2x2 times as many"):
        model(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="some tokens are dropped"):
        model.forward_tokens(torch.zeros(1, 3, 64, 64), keep=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="pool is 'map', expected another one"):
        make("mixer", pool="map")


CAIT_SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}


@pytest.mark.parametrize("fields", [{"depth_token_only": 3}, {"global_pool": "avg"}, {"mlp_ratio": 2.0}])
def test_variants_of_timms_cait(fields):
    timm = pytest.importorskip("timm")
    if "mlp_ratio" in fields:
        fields = {**fields, "mlp_ratio_token_only": 2.0}
    peer = randomised(timm.models.cait.Cait(num_classes=4, **CAIT_SIZE, **fields)).double()
    model = hub.from_timm(peer, head=True).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), peer(x), rtol=0, atol=1e-12)
    tower = hub.from_timm(peer, depth=2, head=False)
    assert len(tower.core.blocks) == 2
    assert "blocks.2.gamma_1" in tower.report.left_out


def test_layers_of_timms_cait_and_gradients():
    timm = pytest.importorskip("timm")
    peer = randomised(timm.models.cait.Cait(num_classes=4, **CAIT_SIZE))
    model = hub.from_timm(peer, head=True)
    x = torch.randn(2, 3, 32, 32)
    _, theirs = peer.forward_intermediates(x, indices=[0, 2], output_fmt="NLC")
    layers = model.forward_tokens(x, layers=(1, -1)).layers
    for mine, wanted in zip((layers[1], layers[3]), theirs, strict=True):
        torch.testing.assert_close(mine[:, 1:], wanted, rtol=0, atol=1e-5)
    grads = []
    for each in (peer, model):
        each(x).square().mean().backward()
        grads.append({n: p.grad for n, p in each.named_parameters()})
    translated, _ = translate(grads[0], [*CAIT, ("head.*", "head.*")], source="gradients")
    for name, grad in grads[1].items():
        wanted = translated[name.removeprefix("tower.")]
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


def test_timms_relatives_are_refused():
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 8, "num_blocks": 1, "embed_dim": 32}
    mixers = timm.models.mlp_mixer
    for fields in ({"block_layer": mixers.ResBlock, "mlp_ratio": 4.0}, {"stem_norm": True}):
        with pytest.raises(ValueError, match="expected a plain mixer_"):
            hub.from_timm(mixers.MlpMixer(**small, **fields))
    with pytest.raises(ValueError, match="pooling ''"):
        hub.from_timm(timm.models.cait.Cait(global_pool="", num_classes=0, **CAIT_SIZE))
    with pytest.raises(ValueError, match="MLPs of another width"):
        hub.from_timm(timm.models.cait.Cait(mlp_ratio_token_only=2.0, **CAIT_SIZE))
