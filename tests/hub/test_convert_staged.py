"""Converters of MViT and ConvNeXt V2 weights: authors' files, inflation to clips, what they refuse."""

from dataclasses import replace

import pytest
import torch

from mmvit import hub
from mmvit.hub.convert.inflate import inflate, inflate_kernel
from mmvit.hub.convert.pth.convnext_v2 import offsets_last
from mmvit.models.config import ConvStemConfig, VideoTowerConfig
from mmvit.models.presets import create_model

STAGES = {"widths": (8, 12, 16, 24), "depths": (1, 2, 3, 1)}


def published(classes: int = 0) -> tuple[torch.nn.Module, dict]:
    """A small tower of ours, and the same weights by the authors' names."""
    torch.manual_seed(0)
    model = create_model("convnextv2_atto", num_classes=classes, **STAGES).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    places = [(s, b) for s, depth in enumerate(STAGES["depths"]) for b in range(depth)]
    parts = {"conv": "dwconv", "norm": "norm", "fc1": "pwconv1", "fc2": "pwconv2"}
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("tower.")
        if name.startswith("core.blocks."):
            _, _, number, part, leaf = name.split(".")
            stage, block = places[int(number)]
            if part == "response":
                part, leaf, value = "grn", {"weight": "gamma", "bias": "beta"}[leaf], value[None, None, None]
            name = f"stages.{stage}.{block}.{parts.get(part, part)}.{leaf}"
        elif name.startswith("core.downsamples."):
            _, _, number, part, leaf = name.split(".")
            name = f"downsample_layers.{int(number) + 1}.{['norm', 'conv'].index(part)}.{leaf}"
        else:
            for ours, theirs in (
                ("patch_embed.proj", "downsample_layers.0.0"),
                ("core.norm_pre", "downsample_layers.0.1"),
                ("pool.norm", "norm"),
            ):
                name = name.replace(ours, theirs)
        state[name] = value
    return model, state


def sparse(state: dict) -> dict:
    """The encoder of a pre-training file: kernels by offset, x before y; inner modules' names; a decoder."""
    out = {"mask_token": torch.zeros(1, 4, 1, 1), "pred.weight": torch.zeros(3, 4, 1, 1)}
    for name, value in state.items():
        first, stage, block, *rest = name.split(".")[:3] + name.split(".")[3:]
        inside = name.startswith("stages.") or (first == "downsample_layers" and stage != "0")
        if not inside:
            out[f"encoder.{name}"] = value
            continue
        part, leaf = (rest[0], rest[1]) if first == "stages" else (block, rest[0])
        stem = name.removesuffix(f".{leaf}")
        if value.ndim == 4 and leaf == "weight":
            kernel = value.transpose(2, 3).flatten(2).permute(2, 1, 0)
            name, value = f"{stem}.kernel", kernel[:, 0] if part == "dwconv" else kernel
        elif part in ("dwconv", "1"):
            value = value[None]
        elif part == "grn":
            value = value.reshape(1, -1)
        else:
            name = f"{stem}.{'linear' if 'pwconv' in part else 'ln'}.{leaf}"
        out[f"encoder.{name}"] = value
    return out


def as_file(state, folder, **options):
    torch.save({"model": state}, folder / "weights.pth")
    return hub.from_checkpoint(folder / "weights.pth", "convnextv2", **options)


def test_the_authors_dense_names(tmp_path):
    model, state = published(classes=5)
    found = as_file(state, tmp_path)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found(x), model(x))
    tower = as_file(state, tmp_path, head=False)
    assert torch.equal(tower(x), model.tower(x))
    assert set(tower.report.left_out) == {"head.weight", "head.bias"}
    assert tower.config.core.depths == STAGES["depths"]


def test_the_authors_sparse_encoder(tmp_path):
    model, state = published()
    without = {n: v for n, v in state.items() if not n.startswith("norm.")}
    found = as_file(sparse(without), tmp_path, drop_path=0.1)
    x = torch.randn(2, 3, 64, 48)
    assert torch.equal(found.forward_tokens(x).values, model.forward_tokens(x).values)
    assert (found.config.pool, found.config.core.drop_path) == ("mean", 0.1)
    assert set(found.report.left_out) == {"mask_token", "pred.weight"}


def test_sparse_kernels_count_x_before_y():
    kernel = torch.arange(9.0).reshape(9, 1)  # offset n is x = n // 3, y = n % 3
    assert torch.equal(offsets_last(kernel)[0, 0], torch.arange(9.0).reshape(3, 3).T)
    assert offsets_last(torch.zeros(4, 5, 7)).shape == (7, 5, 2, 2)


def test_other_files_are_refused(tmp_path):
    _, state = published()
    with pytest.raises(ValueError, match="not a ConvNeXt V2 checkpoint"):
        as_file({"blocks.0.attn.qkv.weight": torch.zeros(3, 1)}, tmp_path)
    with pytest.raises(
        ValueError, match="1 tensors have no place in our model: stages.0.0.gamma|blocks.0.gamma"
    ):
        as_file({**state, "stages.0.0.gamma": torch.zeros(8)}, tmp_path)
    del state["stages.1.0.pwconv2.bias"]
    with pytest.raises(ValueError, match="1 tensors missing: core.blocks.1.fc2.bias"):
        as_file(state, tmp_path)


@pytest.mark.parametrize("stem", ["middle", "spread"])
def test_a_still_clip_gives_the_pictures_tokens_at_every_time(stem):
    torch.manual_seed(0)
    image = create_model("mvitv2_small", image_size=64, width=8, depths=(1, 1, 2)).eval()
    for p in image.parameters():
        torch.nn.init.normal_(p, std=0.3)
    core = replace(image.config.core, grid=(4, 56, 56), q_stride=(1, 2, 2), kv_stride=(1, 4, 4))
    config = VideoTowerConfig(
        core=core,
        clip_size=(4, 64, 64),
        patch_size=(1, 4, 4),
        stem=ConvStemConfig(kernel=(3, 7, 7), stride=(1, 4, 4), padding=(1, 3, 3), bias=True, max_pool=False),
        class_token=False,
        class_position=False,
        position="none",
        pool="mean",
    )
    video = inflate(image, config, stem=stem).eval()
    picture = torch.randn(2, 3, 64, 64)
    clip = picture[:, :, None].repeat(1, 1, 4, 1, 1)
    if stem == "spread":  # exact inside, the ends see padding
        tokens = video.tokens(clip).values.unflatten(1, (4, -1))
        wanted = image.tokens(picture).values
        torch.testing.assert_close(tokens[:, 1], wanted, rtol=0, atol=1e-4)
        assert (tokens[:, 0] - wanted).abs().max() > 1e-2
        return
    times = video.forward_tokens(clip).values.unflatten(1, (4, -1))
    wanted = image.forward_tokens(picture).values
    for t in range(4):
        torch.testing.assert_close(times[:, t], wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(video(clip), image(picture), rtol=0, atol=1e-4)


def test_inflated_kernels_sum_to_the_flat_one():
    kernel = torch.randn(4, 3, 7, 7)
    for spread in (True, False):
        torch.testing.assert_close(inflate_kernel(kernel, 3, spread=spread).sum(2), kernel)
    assert torch.equal(inflate_kernel(kernel, 3, spread=False)[:, :, 1], kernel)


def test_timm_variants_that_are_not_ours_are_refused():
    timm = pytest.importorskip("timm")
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    small = {"depths": (1, 1), "embed_dim": (8, 16), "num_heads": (1, 2), "stride_q": ((1, 1), (2, 2))}
    with pytest.raises(ValueError, match="absolute positions or another pooling"):
        hub.from_timm(MultiScaleVit(MultiScaleVitCfg(**small, use_abs_pos=True)))
    with pytest.raises(
        ValueError, match=r"block 1 pools by \(2, 2\) and \(4, 4\), expected \(2, 2\) and \(2, 2\)"
    ):
        hub.from_timm(MultiScaleVit(MultiScaleVitCfg(**small, stride_kv=((4, 4), (4, 4)))))
    for fields in ({}, {"use_grn": True}):  # the first version; layer scale beside response normalisation
        model = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), **fields)
        with pytest.raises(ValueError, match="expected a convnextv2_"):
            hub.from_timm(model, head=False)


@pytest.mark.parametrize("cls", [False, True])
def test_timms_pictures_as_clips_of_one_time(cls):
    """Poolings by their middle slice, no distance in time: the 3-axis core gives timm's own tokens."""
    pytest.importorskip("timm")
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    torch.manual_seed(0)
    fields = {"depths": (1, 2, 1), "embed_dim": 8, "stride_q": ((1, 1), (2, 2), (2, 2)), "use_cls_token": cls}
    peer = MultiScaleVit(MultiScaleVitCfg(**fields), img_size=(64, 64), num_classes=0).eval()
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    image = hub.from_timm(peer, head=False)
    core = replace(image.config.core, grid=(1, 16, 16), q_stride=(1, 2, 2), kv_stride=(1, 4, 4))
    config = VideoTowerConfig(
        core=core,
        clip_size=(1, 64, 64),
        patch_size=(1, 4, 4),
        stem=ConvStemConfig(kernel=(3, 7, 7), stride=(1, 4, 4), padding=(1, 3, 3), bias=True, max_pool=False),
        class_token=cls,
        class_position=False,
        position="none",
        pool="cls" if cls else "mean",
    )
    video = inflate(image, config, stem="middle").eval()
    x = torch.randn(2, 3, 64, 64)
    found = video.forward_tokens(x[:, :, None]).values
    torch.testing.assert_close(found, peer.forward_features(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_torchvision_settings_that_no_named_model_has(v1, whole, size):
    """Residual pooling of the class token too, pictures that are not square, two stages."""
    mvit = pytest.importorskip("torchvision").models.video.mvit
    torch.manual_seed(0)
    one, two, none = [3, 3, 3], [1, 2, 2], [] if v1 else [1, 1, 1]
    widths = ((8, 16), (16, 16)) if v1 else ((8, 8), (8, 16))
    settings = [
        mvit.MSBlockConfig(1, *widths[0], [] if v1 else one, one, none, [1, 4, 4]),
        mvit.MSBlockConfig(2, *widths[1], one, one, two, two),
    ]
    peer = mvit.MViT(
        size, 4, settings, not v1, whole, rel_pos_embed=not v1, proj_after_attn=not v1, num_classes=5
    ).eval()
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model, x = hub.from_torchvision(peer, head=True), torch.randn(2, 3, 4, *size)
    torch.testing.assert_close(model(x), peer(x), rtol=0, atol=1e-4)
    assert model.config.tower.core.residual_pool_prefix is (whole and not v1)
    for each in (model, peer):
        each(x).square().sum().backward()
    theirs = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        source = model.report.loaded[name][0]
        if source in theirs and p.shape == theirs[source].shape:
            torch.testing.assert_close(p.grad, theirs[source].grad, rtol=1e-3, atol=1e-2)
    settings[0].kernel_kv = [1, 3, 3]
    with pytest.raises(ValueError, match="not cubes"):
        hub.from_torchvision(mvit.MViT(size, 4, settings, whole, whole, not v1, not v1))


def test_torchvision_models_by_name_have_the_cases_tensors():
    """The parity cases build torchvision's class themselves: its named models are two of theirs."""
    video = pytest.importorskip("torchvision").models.video
    from tests.parity.cases_mvit import same_as_torchvision

    assert same_as_torchvision("mvit_v1_base_16x4", video.mvit_v1_b)
    assert same_as_torchvision("mvit_v2_small_16x4", video.mvit_v2_s)


def test_torchvision_vit_keeps_its_classifier():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    peer = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 3, 32, 32)
    model = hub.from_torchvision(peer, head=True)
    torch.testing.assert_close(model(x), peer(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected a VisionTransformer or MViT"):
        hub.from_torchvision(models.squeezenet1_1())
