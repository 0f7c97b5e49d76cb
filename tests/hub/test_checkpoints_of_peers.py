"""Official `.pth` files of DeiT, CaiT, MAE, BEiT, iBOT and DINOv2: written from peers with random weights.

Outputs equal the peers' to 1e-5; the usual difference is 1e-7.
"""

import argparse

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mmvit import hub
from mmvit.hub.convert.families import FAMILIES, family_of
from mmvit.hub.convert.files.read import read_weights
from mmvit.models.config import ClassifierConfig

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5}
State = dict[str, Tensor]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            value.data += 1
        if "gamma" in name or "lambda" in name:
            value.data += 0.5
    return model.eval()


def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "too flat to tell anything"
    assert (ours - theirs).abs().max() < 1e-5


def features(peer: nn.Module) -> Tensor:
    return peer.forward_head(peer.forward_features(pixels()), pre_logits=True)


def renamed(state: State, **changes: str) -> State:
    """`state` with parts of names replaced: `ls1_gamma="gamma_1"` stands for ls1.gamma -> gamma_1."""
    out = {}
    for name, value in state.items():
        for old, new in changes.items():
            name = name.replace(old.replace("__", "."), new)
        out[name] = value
    return out


def vit(**more) -> nn.Module:
    return randomise(timm.models.VisionTransformer(**TINY | more))


def write(content, tmp_path, name: str = "w.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@torch.no_grad()
def test_deit(tmp_path) -> None:
    peer = vit()
    args = argparse.Namespace(lr=5e-4, output_dir="out")
    path = write({"model": peer.state_dict(), "epoch": 299, "args": args}, tmp_path)
    model = hub.from_checkpoint(path, "deit", num_heads=2)
    assert isinstance(model.config, ClassifierConfig)
    assert model.config.tower.mean == (0.485, 0.456, 0.406)
    assert not model.training
    close(model(pixels()), peer(pixels()))
    tower = hub.from_checkpoint(path, "deit", head=False, num_heads=2)
    close(tower(pixels()), features(peer))
    assert set(tower.report.left_out) == {"head.weight", "head.bias"}


@torch.no_grad()
def test_deit_distilled(tmp_path) -> None:
    peer = randomise(timm.models.deit.VisionTransformerDistilled(**TINY))
    path = write({"model": peer.state_dict()}, tmp_path)
    model = hub.from_checkpoint(path, "deit_distilled", num_heads=2)
    assert model.config.tower.distill_token
    close(model(pixels()), peer(pixels()))


@torch.no_grad()
def test_deit3_in_its_own_names(tmp_path) -> None:
    peer = vit(no_embed_class=True, init_values=0.1)
    state = renamed(peer.state_dict(), ls1__gamma="gamma_1", ls2__gamma="gamma_2")
    assert "blocks.0.gamma_1" in state
    model = hub.from_checkpoint(write({"model": state}, tmp_path), "deit3", num_heads=2)
    assert not model.config.tower.class_position
    close(model(pixels()), peer(pixels()))
    assert model.report.loaded["tower.core.blocks.0.ls1.gamma"] == ["blocks.0.gamma_1"]
    # as DeiT it would lack a row of positions
    with pytest.raises(ValueError, match="as family 'deit': has 16 positions.*another family"):
        hub.from_checkpoint(tmp_path / "w.pth", "deit", num_heads=2)


@torch.no_grad()
def test_cait(tmp_path) -> None:
    peer = randomise(
        timm.models.cait.Cait(img_size=32, patch_size=8, embed_dim=96, depth=2, num_heads=2, num_classes=5)
    )
    state = {f"module.{name}": value for name, value in peer.state_dict().items()}
    model = hub.from_checkpoint(write({"model": state}, tmp_path), "cait")
    assert model.config.tower.core.num_heads == 2, "heads are 48 wide"
    close(model(pixels()), peer(pixels()))


@torch.no_grad()
def test_mae_without_its_decoder(tmp_path) -> None:
    peer = vit(num_classes=0)
    beside = {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_blocks.0.norm1.weight": torch.zeros(32),
        "decoder_pred.bias": torch.zeros(192),
    }
    path = write({"model": peer.state_dict() | beside}, tmp_path)
    tower = hub.from_checkpoint(path, "mae", num_heads=2)
    close(tower(pixels()), features(peer))
    assert set(tower.report.left_out) == set(beside)
    tuned = vit(global_pool="avg")
    model = hub.from_checkpoint(write({"model": tuned.state_dict()}, tmp_path), "mae", num_heads=2)
    assert model.config.tower.pool == "mean_norm"
    close(model(pixels()), tuned(pixels()))


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_beit(shared: bool, tmp_path) -> None:
    peer = randomise(
        timm.models.beit.Beit(
            **TINY, use_abs_pos_emb=False, use_shared_rel_pos_bias=shared, use_rel_pos_bias=not shared,
            init_values=0.1,
        )
    )  # fmt: skip
    state = dict(peer.state_dict())
    where = "rel_pos_bias" if shared else "blocks.0.attn"
    assert state[f"{where}.relative_position_bias_table"].shape == (52, 2)
    state |= {f"{where}.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
    state |= {"mask_token": torch.zeros(1, 1, 64)}
    state = {name: v for name, v in state.items() if "k_bias" not in name}
    model = hub.from_checkpoint(write({"module": state}, tmp_path), "beit", num_heads=2)
    assert model.config.tower.core.relative == ("shared" if shared else "block")
    assert model.config.tower.core.layer_scale
    assert model.config.tower.mean == (0.485, 0.456, 0.406)
    close(model(pixels()), peer(pixels()))
    assert set(model.report.left_out) == {f"{where}.relative_position_index", "mask_token"}
    of_22k = hub.from_checkpoint(tmp_path / "w.pth", "beit_in22k", num_heads=2)
    assert of_22k.config.tower.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_ibot_teacher_student_and_backbone_alone(tmp_path) -> None:
    teacher, student = vit(num_classes=0), randomise(vit(num_classes=0), seed=1)
    projection = {"head.mlp.0.weight": torch.zeros(4, 64), "head.last_layer.weight_g": torch.ones(4, 1)}
    content = {
        "teacher": {f"backbone.{n}": v for n, v in teacher.state_dict().items()} | projection,
        "student": {f"module.backbone.{n}": v for n, v in student.state_dict().items()}
        | {"module.backbone.masked_embed": torch.zeros(1, 64)},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
    }
    path = write(content, tmp_path)
    tower = hub.from_checkpoint(path, "ibot", num_heads=2)
    close(tower(pixels()), features(teacher))
    assert set(tower.report.left_out) == {"head.mlp.0.weight", "head.last_layer.weight_g"}
    tower = hub.from_checkpoint(path, "ibot", branch="student", num_heads=2)
    close(tower(pixels()), features(student))
    alone = write({"state_dict": teacher.state_dict()}, tmp_path, "alone.pth")
    close(hub.from_checkpoint(alone, "ibot", num_heads=2)(pixels()), features(teacher))


def dinov2_names(files: State, chunked: bool) -> State:
    """DINOv2 of transformers in the official files' names: fused projections, perhaps blocks in chunks."""
    out: State = {}
    fused: dict[str, list[Tensor]] = {}
    for name, value in files.items():
        new = name.removeprefix("embeddings.").replace(
            "encoder.layer.", "blocks.0." if chunked else "blocks."
        )
        for old, official in (
            ("patch_embeddings.projection", "patch_embed.proj"),
            ("position_embeddings", "pos_embed"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("layernorm.", "norm."),
            ("attention.output.dense", "attn.proj"),
        ):
            new = new.replace(old, official)
        if ".attention.attention." in new:
            block, _, rest = new.partition(".attention.attention.")
            which, _, part = rest.partition(".")
            places = fused.setdefault(f"{block}.attn.qkv.{part}", [value] * 3)
            places[("query", "key", "value").index(which)] = value
        else:
            out[new] = value
    out |= {name: torch.cat(parts) for name, parts in fused.items()}
    return out | {"mask_token": out["mask_token"].reshape(1, -1)}


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2(registers: int, chunked: bool, tmp_path) -> None:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    sizes |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        peer = randomise(transformers.Dinov2WithRegistersModel(config))
    else:
        peer = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))
    peer.save_pretrained(tmp_path)
    state = dinov2_names(read_weights(tmp_path), chunked)
    assert ("blocks.0.1.attn.qkv.weight" in state) == chunked
    save_file(state, tmp_path / "w.safetensors")
    tower = hub.from_checkpoint(tmp_path / "w.safetensors", "dinov2")
    assert tower.config.core.num_heads == 2
    assert tower.config.registers == registers
    assert tower.config.position_resample == ("bicubic_antialias" if registers else "bicubic")
    close(tower(pixels()), peer(pixels()).last_hidden_state[:, 0])


def test_what_is_not_known_is_said(tmp_path) -> None:
    path = write({"model": vit().state_dict()}, tmp_path)
    with pytest.raises(ValueError, match="'dino' are known: did you mean dinov2"):
        hub.from_checkpoint(path, "dino")
    peer = timm.models.VisionTransformer(**TINY | {"embed_dim": 48, "num_heads": 2})
    odd = write({"model": peer.state_dict()}, tmp_path, "odd.pth")
    with pytest.raises(ValueError, match="no published model is 48 wide: pass num_heads"):
        hub.from_checkpoint(odd, "deit")
    assert hub.from_checkpoint(odd, "deit", num_heads=2).config.tower.core.num_heads == 2
    state = vit().state_dict()
    gated = state | {"blocks.0.mlp.w12.weight": torch.zeros(8, 64)}
    with pytest.raises(ValueError, match="MLPs are gated"):
        hub.from_checkpoint(write({"model": gated}, tmp_path), "dinov2")
    with pytest.raises(ValueError, match="1 tensors have no place in our model: relation.weight"):
        hub.from_checkpoint(
            write({"model": state | {"relation.weight": torch.zeros(2)}}, tmp_path), "deit", num_heads=2
        )
    del state["blocks.0.norm1.weight"]
    with pytest.raises(ValueError, match="lacks 'blocks.0.norm1.weight': it is no vision transformer"):
        hub.from_checkpoint(write({"model": state}, tmp_path), "deit")


def test_old_files_with_flat_patches(tmp_path) -> None:
    state = vit().state_dict()
    flat = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    model = hub.from_checkpoint(write(flat, tmp_path), "deit", num_heads=2)
    assert torch.equal(model.tower.patch_embed.proj.weight, state["patch_embed.proj.weight"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_of_the_families_makes_a_config(name: str) -> None:
    from mmvit.models.config import ImageTowerConfig
    from mmvit.models.core_config import CoreConfig
    from mmvit.tokens.positions import RESAMPLE

    row = family_of(name)
    core = CoreConfig(width=8, depth=1, num_heads=2, mlp_dim=8, **row.core_fields)
    config = ImageTowerConfig(core=core, **row.tower_fields)
    assert (config.mean, config.std) == (row.mean_std["mean"], row.mean_std["std"])
    assert row.position_resample in RESAMPLE


def test_the_families_constants() -> None:
    assert family_of("transformers_clip").norm_eps == 1e-5
    assert family_of("big_vision").norm_eps == family_of("mae").norm_eps == 1e-6
    assert family_of("siglip").activation == family_of("augreg").activation == "gelu_tanh"
    assert family_of("deit").activation == "gelu"
    assert not family_of("deit3").class_position
    assert family_of("bert").norm == "post"
    assert family_of("deit").num_heads(384) == 6
    assert family_of("mae").num_heads(1280) == 16
    assert family_of("dinov2").num_heads(1536) == 24
    assert family_of("cait").num_heads(288) == 6
    with pytest.raises(ValueError, match="unknown family 'diet': did you mean"):
        family_of("diet")
