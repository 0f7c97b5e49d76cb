"""big_vision's and vision_transformer's files: every dialect bit by bit, and the maths of flax written out.

The differences to the slow maths in float64 are about 1e-6 where values are of size 1; the limit is 1e-5.
"""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from mmvit import hub
from mmvit.hub.convert.npz import names
from mmvit.models import presets
from mmvit.models.config import ClassifierConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig, MixerConfig
from tests.hub import flax_files as flax

CORE = CoreConfig(width=16, depth=2, num_heads=4, mlp_dim=24, activation="gelu_tanh")
IMAGE = ImageTowerConfig(
    core=CORE, image_size=(12, 12), patch_size=4, position_resample="bilinear_align_corners"
)
TEXT = TextTowerConfig(core=CORE, vocab_size=20, context_length=5, pool="last", pad_mask=False, embed_dim=16)


def pictures(size: int = 12) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)


@torch.no_grad()
def randomised(config) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = presets.build_model(config)
    for value in model.parameters():
        value.copy_(torch.randn(value.shape, generator=generator))
    return model


def same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def close(ours: torch.Tensor, theirs: list[np.ndarray]) -> None:
    expected = torch.from_numpy(np.stack(theirs))
    assert ours.shape == expected.shape
    assert expected.std() > 0.3, "too flat to tell anything"
    assert (ours.double() - expected).abs().max() < 1e-5


DIALECTS = {
    "new": lambda tree: tree,
    "under params": lambda tree: flax.under(tree, "params/"),
    "under opt/target": lambda tree: flax.under(tree, "opt/target/"),
    "numbered through": flax.numbered_through,
    "stacked": flax.stacked,
    "stacked under params": lambda tree: flax.under(flax.stacked(tree), "params/"),
    "biases with four axes": flax.biases_with_four_axes,
    "positions in the encoder": lambda tree: flax.positions_at(tree, "Transformer/pos_embedding"),
    "positions in a module": lambda tree: flax.positions_at(
        flax.numbered_through(tree), "Transformer/posembed_input/pos_embedding"
    ),
}


@pytest.mark.parametrize("class_position", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_weights_bit_by_bit(dialect: str, class_position: bool, tmp_path) -> None:
    config = replace(IMAGE, class_position=class_position)
    tower = randomised(config)
    tree = DIALECTS[dialect](flax.write_image(tower))
    loaded = hub.from_big_vision(flax.save(tree, tmp_path / "w.npz"))
    assert loaded.config == config
    assert not loaded.training
    same(tower, loaded)
    used = {name.partition("[")[0] for names in loaded.report.loaded.values() for name in names}
    assert used == set(tree), "the report names what the file holds"


@torch.no_grad()
@pytest.mark.parametrize("form", ["tok", "gap", "map", "map inlined", "map, class token"])
def test_image_features_are_those_of_flax(form: str, tmp_path) -> None:
    pool = "map" if "map" in form else form
    tree = flax.random_vit(np.random.default_rng(0), cls=form in ("tok", "map, class token"), pool=pool)
    written = flax.inlined(tree) if form == "map inlined" else tree
    tower = hub.from_big_vision(flax.save(written, tmp_path / "w.npz"))
    assert tower.config.core.num_heads == 4
    assert tower.config.pool == {"tok": "cls", "gap": "mean", "map": "map"}[pool]
    x = pictures()
    close(tower.features(torch.from_numpy(x).permute(0, 3, 1, 2)), [flax.vit(tree, one) for one in x])


@torch.no_grad()
def test_classifiers_give_flaxs_logits_and_towers_leave_them_out(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tree = flax.random_vit(rng) | flax.random_dense(rng, "head", 16, 7)
    file, x = flax.save(tree, tmp_path / "w.npz"), pictures()
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
    model = hub.from_big_vision(file)
    assert isinstance(model.config, ClassifierConfig)
    features = [flax.vit(tree, one) for one in x]
    close(model(pixels), [flax.dense(tree, "head", f) for f in features])
    tower = hub.from_big_vision(file, head=False)
    close(tower(pixels), features)
    assert set(tower.report.left_out) == {"head/kernel", "head/bias"}


def pair(rng, sigmoid: bool = True, **image) -> dict[str, np.ndarray]:
    tree = flax.under(flax.random_vit(rng, **image), "img/") | flax.under(flax.random_text(rng), "txt/")
    tree["t"] = np.array([2.5], np.float32)
    return tree | ({"b": np.array([-9.5], np.float32)} if sigmoid else {})


@torch.no_grad()
@pytest.mark.parametrize("root", ["", "params/"])
def test_pairs(root: str, tmp_path, monkeypatch) -> None:
    tree = pair(np.random.default_rng(0), cls=False, pool="map")
    model = hub.from_big_vision(flax.save(flax.under(tree, root), tmp_path / "w.npz"))
    assert isinstance(model.config, DualEncoderConfig)
    assert model.config.activation == "sigmoid"
    assert (float(model.logit_scale), float(model.logit_bias)) == (2.5, -9.5)
    x, ids = pictures(), [[3, 4, 1, 1, 1], [7, 19, 0, 2, 1]]
    close(
        model.image.features(torch.from_numpy(x).permute(0, 3, 1, 2)),
        [flax.vit({k[4:]: v for k, v in tree.items() if k.startswith("img/")}, one) for one in x],
    )
    words = {k[4:]: v for k, v in tree.items() if k.startswith("txt/")}
    close(model.text(torch.tensor(ids)), [flax.text(words, one) for one in ids])
    assert model.report.loaded["text.tok_embed.weight"] == [f"{root}txt/Embed_0/embedding"]
    as_preset = replace(model.config, image=replace(model.config.image, position_resample="bicubic"))
    monkeypatch.setitem(presets._PRESETS, "pair_mu", lambda: as_preset)
    assert hub.from_big_vision(tmp_path / "w.npz", "pair_mu").config == as_preset
    more = replace(as_preset, text=replace(as_preset.text, vocab_size=21))
    monkeypatch.setitem(presets._PRESETS, "pair_mu", lambda: more)
    with pytest.raises(ValueError, match="has vocab_size=20, and 'pair_mu' has vocab_size=21"):
        hub.from_big_vision(tmp_path / "w.npz", "pair_mu")


@torch.no_grad()
def test_a_lit_pair_with_a_head_on_the_picture_and_two_tables_of_text_positions(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tree = pair(rng, sigmoid=False, rows=10) | flax.random_dense(rng, "img/head", 16, 16)
    extra = flax.draw(rng, 1, 5, 12)
    file = flax.save(tree | {"txt/Encoder_0/pos_embedding": extra}, tmp_path / "w.npz")
    model = hub.from_big_vision(file)
    assert model.config.image.embed_dim == 16
    assert model.config.image.class_position
    assert model.logit_bias is None
    words = {k[4:]: v for k, v in tree.items() if k.startswith("txt/")}
    words["pos_embedding"] = words["pos_embedding"] + extra
    close(model.text(torch.tensor([[3, 4, 1, 1, 1]])), [flax.text(words, [3, 4, 1, 1, 1])])
    assert set(model.report.loaded["text.pos_embed"]) == {"txt/pos_embedding", "txt/Encoder_0/pos_embedding"}
    # a class token with a position: the sum that newer files store
    tower = {k[4:]: v for k, v in tree.items() if k.startswith("img/")}
    tower["cls"] = tower["cls"] + tower["pos_embedding"][:, :1]
    tower["pos_embedding"] = tower["pos_embedding"][:, 1:]
    x = pictures()
    expected = [flax.dense(tower, "head", flax.vit(tower, one)) for one in x]
    close(model.image(torch.from_numpy(x).permute(0, 3, 1, 2)), expected)


def test_a_text_tower_alone_bit_by_bit(tmp_path) -> None:
    tower = randomised(TEXT)
    loaded = hub.from_big_vision(flax.save(flax.stacked(flax.write_text(tower)), tmp_path / "w.npz"))
    assert loaded.config == TEXT
    same(tower, loaded)


@torch.no_grad()
@pytest.mark.parametrize("dialect", ["new", "first release"])
def test_mixers(dialect: str, tmp_path) -> None:
    tree = flax.random_mixer(np.random.default_rng(0))
    file = flax.save(tree if dialect == "new" else flax.phases(tree), tmp_path / "w.npz")
    model, x = hub.from_big_vision(file), pictures()
    core = model.config.tower.core
    assert isinstance(core, MixerConfig)
    assert (core.tokens, core.token_dim, core.mlp_dim, core.activation) == (9, 7, 24, "gelu_tanh")
    close(model(torch.from_numpy(x).permute(0, 3, 1, 2)), [flax.mixer(tree, one) for one in x])


@torch.no_grad()
def test_bfloat16_and_float64_arrays(tmp_path) -> None:
    tree = flax.random_vit(np.random.default_rng(0))
    rounded = {n: torch.from_numpy(v).bfloat16() for n, v in tree.items()}
    raw = {n: v.view(torch.int16).numpy().view("V2") for n, v in rounded.items()}
    tower = hub.from_big_vision(flax.save(raw, tmp_path / "half.npz"))
    expected = hub.from_big_vision(
        flax.save({n: v.double().numpy() for n, v in rounded.items()}, tmp_path / "double.npz")
    )
    same(tower, expected)
    assert tower.cls_token.dtype == torch.float32
    columns = {name: np.asfortranarray(value.float().numpy()) for name, value in rounded.items()}
    same(tower, hub.from_big_vision(flax.save(columns, tmp_path / "columns.npz")))


@torch.no_grad()
def test_positions_follow_another_size_as_each_family_does(tmp_path) -> None:
    tree = flax.random_vit(np.random.default_rng(0))
    file, x = flax.save(tree, tmp_path / "w.npz"), pictures(20)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2)

    def expected(**how) -> list[np.ndarray]:
        grid = torch.from_numpy(tree["pos_embedding"]).reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, (5, 5), mode="bilinear", **how)
        table = grid.flatten(2).transpose(1, 2).numpy()
        return [flax.vit(tree | {"pos_embedding": table}, one) for one in x]

    close(hub.from_big_vision(file, image_size=20).features(pixels), expected(align_corners=True))
    close(hub.from_big_vision(file, family="flexivit").features(pixels), expected(antialias=True))
    flexible = hub.from_big_vision(file, family="flexivit", patch_size=8, image_size=48)
    assert flexible.report.resized["patch_embed.proj.weight"] == ((16, 3, 4, 4), (16, 3, 8, 8))
    tower = hub.from_big_vision(file, image_size=20)
    assert tower.report.resized == {"pos_embed": ((1, 9, 16), (1, 25, 16))}
    assert not tower.config.class_position
    wide = dict(tree, pos_embedding=flax.draw(np.random.default_rng(2), 1, 8, 16))
    with pytest.raises(ValueError, match="8 positions, no square.*image_size=\\(height, width\\)"):
        hub.from_big_vision(flax.save(wide, tmp_path / "wide.npz"))
    assert hub.from_big_vision(tmp_path / "wide.npz", image_size=(8, 16)).grid == (2, 4)


@torch.no_grad()
def test_fixed_positions_are_computed(tmp_path) -> None:
    tree = flax.random_vit(np.random.default_rng(0), cls=False)
    del tree["pos_embedding"]
    tower = hub.from_big_vision(flax.save(tree, tmp_path / "w.npz"), image_size=12)
    assert tower.config.position == "sincos2d"
    x = pictures()
    table = tower.pos_embed.numpy()
    expected = [flax.vit(tree | {"pos_embedding": table}, one) for one in x]
    close(tower.features(torch.from_numpy(x).permute(0, 3, 1, 2)), expected)


def test_a_preset_is_checked_and_tells_what_the_file_does_not(tmp_path) -> None:
    small = presets.preset("vit_mu_patch16_224")
    tower = randomised(small)
    file = flax.save(flax.write_image(tower), tmp_path / "w.npz")
    assert hub.from_big_vision(file, "vit_mu_patch16_224").config.image_size == (224, 224)
    with pytest.raises(ValueError, match="has width=32, and 'vit_tiny_patch16_224' has width=192"):
        hub.from_big_vision(file, "vit_tiny_patch16_224")
    with pytest.raises(
        ValueError, match="class_token=True, and 'vit_mu_patch16_224_gap' has class_token=False"
    ):
        hub.from_big_vision(file, "vit_mu_patch16_224_gap")
    with pytest.raises(ValueError, match="is of kind ImageTower, and 'text_mu' of kind TextTower"):
        hub.from_big_vision(file, "text_mu")
    with pytest.raises(ValueError, match="did you mean vit_mu_patch16_224"):
        hub.from_big_vision(file, "vit_mu_patch16")


def test_a_preset_for_many_patch_sizes_leaves_the_kernel_as_it_is_stored(tmp_path, monkeypatch) -> None:
    config = replace(
        IMAGE,
        class_position=False,
        image_size=(240, 240),
        patch_size=16,
        patch_resample="pi",
        position_resample="bilinear_antialias",
    )
    monkeypatch.setitem(presets._PRESETS, "flexivit_mu", lambda: config)
    tree = flax.random_vit(np.random.default_rng(0))
    tower = hub.from_big_vision(flax.save(tree, tmp_path / "w.npz"), "flexivit_mu")
    assert tower.config == replace(config, image_size=(12, 12), patch_size=4)
    assert not tower.report.resized


def test_training_state_is_left_out_and_named(tmp_path) -> None:
    tree = flax.random_vit(np.random.default_rng(0))
    beside = {"opt/state/step": np.array(3), "opt/state/cls/grad_ema": tree["cls"], "extra/step": np.array(3)}
    file = flax.save(flax.under(tree, "opt/target/") | beside, tmp_path / "w.npz")
    assert set(hub.from_big_vision(file).report.left_out) == set(beside)


BROKEN = {
    "a missing kernel": (
        lambda t: t.pop("Transformer/encoderblock_1/MlpBlock_0/Dense_1/kernel"),
        "1 tensors missing: core.blocks.1.mlp.fc2.weight",
    ),
    "a missing key": (
        lambda t: t.pop("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel"),
        "'core.blocks.0.attn.qkv.weight' is joined from several tensors and one is missing",
    ),
    "a block too few": (
        lambda t: [t.pop(n) for n in list(t) if "encoderblock_0" in n],
        r"has blocks \[1\], expected 0..0 without gaps",
    ),
    "a stranger": (lambda t: t.update(extra_gate=t["cls"]), "no place in our model: extra_gate"),
    "fused heads": (
        lambda t: t.update({n: v.reshape(16, 16) for n, v in t.items() if n.endswith("query/kernel")}),
        r"query/kernel' is \(16, 16\), expected 3 axes",
    ),
    "no blocks at all": (
        lambda t: [t.pop(n) for n in list(t) if "Transformer" in n],
        "is no tower of big_vision's that is known|lacks",
    ),
    "BERT": (lambda t: t.update({"BertEncoder_0/x": t["cls"]}), "a BERT text tower in flaxformer's names"),
    "tanh layer": (
        lambda t: t.update({"pre_logits/kernel": t["cls"][0], "pre_logits/bias": t["cls"][0, 0]}),
        "a tanh layer between features and classifier.*head=False",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_do_not_fit(case: str, tmp_path) -> None:
    change, message = BROKEN[case]
    tree = flax.random_vit(np.random.default_rng(0))
    change(tree)
    with pytest.raises(ValueError, match=message) as caught:
        hub.from_big_vision(flax.save(tree, tmp_path / "w.npz"))
    assert "w.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def mutated(table, old: str, new: str | None = None, change=None):
    """The table with a line's target or transform replaced."""
    found = [line for line in table if line[0] == old]
    assert found, old
    target, was = found[0][1], found[0][2]
    return [line if line[0] != old else (old, new or target, change or was) for line in table]


BLOCK = "Transformer/encoderblock_{i}/"
QKV = "core.blocks.{i}.attn.qkv"
ATTENTION = f"{BLOCK}MultiHeadDotProductAttention_0"


@torch.no_grad()
@pytest.mark.parametrize("mutation", ["q and k swapped", "output not turned", "norms swapped", "heads mixed"])
def test_the_slow_maths_see_a_wrong_converter(mutation: str, tmp_path, monkeypatch) -> None:
    table = names.VIT
    if mutation == "q and k swapped":
        table = mutated(table, f"{ATTENTION}/query/kernel", f"{QKV}.weight#1")
        table = mutated(table, f"{ATTENTION}/key/kernel", f"{QKV}.weight#0")
    elif mutation == "output not turned":
        table = mutated(table, f"{ATTENTION}/out/kernel", change=lambda x: x.flatten(0, 1))
    elif mutation == "heads mixed":
        table = mutated(table, f"{ATTENTION}/value/kernel", change=lambda x: x.transpose(1, 2).flatten(1).t())
    else:
        table = mutated(table, f"{BLOCK}LayerNorm_0/scale", "core.blocks.{i}.norm2.weight")
        table = mutated(table, f"{BLOCK}LayerNorm_1/scale", "core.blocks.{i}.norm1.weight")
    monkeypatch.setattr(names, "VIT", table)
    tree, x = flax.random_vit(np.random.default_rng(0)), pictures()
    tower = hub.from_big_vision(flax.save(tree, tmp_path / "w.npz"))
    with pytest.raises(AssertionError):
        close(tower.features(torch.from_numpy(x).permute(0, 3, 1, 2)), [flax.vit(tree, one) for one in x])


@torch.no_grad()
@pytest.mark.parametrize("dialect", ["new", "positions in a module", "under params", "stacked"])
@pytest.mark.parametrize("form", ["class token with a position", "map"])
def test_timm_reads_the_same_files_as_the_same_model(form: str, dialect: str, tmp_path) -> None:
    kind = {"class_token": False, "global_pool": "map"} if form == "map" else {}
    rng = np.random.default_rng(0)
    tree = flax.random_vit(rng, cls=not kind, pool="map" if kind else "tok", rows=9 if kind else 10)
    file = flax.save(DIALECTS[dialect](tree), tmp_path / "w.npz")
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    peer = timm.models.VisionTransformer(**sizes, num_classes=0, act_layer="gelu_tanh", **kind).eval()
    peer.load_pretrained(str(file))
    pixels = torch.from_numpy(pictures()).permute(0, 3, 1, 2)
    assert (hub.from_big_vision(file).features(pixels) - peer(pixels)).abs().max() < 1e-5
