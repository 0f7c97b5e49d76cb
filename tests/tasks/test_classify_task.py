"""The classification task: what it reads, dropout and mixtures in training only, still pictures, metrics."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmvit.data.classes import ClassList
from mmvit.models.classifier import Classifier
from mmvit.models.config import (
    ClassifierConfig,
    ImageTowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets import create_model
from mmvit.tasks.classify import ClassifyTask
from mmvit.train.freeze import freeze
from mmvit.types import Batch

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
TOWERS = {
    "image": ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8),
    "video": VideoTowerConfig(core=CORE, clip_size=(4, 16, 16), patch_size=(2, 8, 8)),
    "audio": WaveformTowerConfig(core=CORE, samples=64, patch_size=16),
}
ONE = ClassList(("cat", "dog", "fox"))
MANY = ClassList(("cat", "dog", "fox"), multi=True)


def inputs(modality, size, g):
    shape = {"image": (3, 16, 16), "video": (3, 4, 16, 16)}.get(modality)
    if shape is None:
        return torch.randn(size, 64, generator=g)
    return torch.randint(0, 256, (size, *shape), generator=g, dtype=torch.uint8)


def batch(modality="video", labels=("cat", "dog", "fox", "dog"), position=0):
    g = torch.Generator().manual_seed(1)
    metas = [{} if label is None else {"label": label} for label in labels]
    keys = [f"k{i}" for i in range(len(labels))]
    fields = {modality: inputs(modality, len(labels), g)}
    return Batch(keys=keys, meta=metas, position=position, **fields)


def task(modality="video", tower=None, classes=ONE, **options):
    torch.manual_seed(0)
    config = ClassifierConfig(tower=tower or TOWERS[modality], num_classes=3)
    model = Classifier(config)
    torch.nn.init.normal_(model.head.weight)
    return ClassifyTask(
        model, classes.targets, modality, "sigmoid" if classes.multi else "softmax", **options
    )


@pytest.mark.parametrize("modality", TOWERS)
def test_every_modality_has_the_loss_of_its_logits(modality):
    made, given = task(modality), batch(modality)
    (logits,) = made.embed(given)
    out = made.loss((logits,), given)
    labels = torch.tensor([0, 1, 2, 1])
    assert torch.allclose(out["loss"], F.cross_entropy(logits, labels))
    assert float(out["top1"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    out["loss"].backward()
    assert made.model.tower.patch_embed.proj.weight.grad.abs().max() > 0


def test_pictures_stand_still_before_a_video_tower():
    made = task("image", TOWERS["video"])
    given = batch("image")
    clips = Batch(keys=given.keys, video=given.image[:, :, None].repeat(1, 1, 2, 1, 1), meta=given.meta)
    made.modality = "video"
    want = made.embed(clips)[0]
    made.modality = "image"
    assert torch.equal(made.embed(given)[0], want)


def test_samples_without_a_label_count_for_nothing():
    made = task()
    out = made(batch(labels=("cat", None, "fox", "wolf")))
    (logits,) = made.embed(batch())
    want = F.cross_entropy(logits[[0, 2]], torch.tensor([0, 2]), reduction="sum") / 4
    assert torch.allclose(out["loss"], want)
    assert float(out["labelled"]) == 0.5
    assert float(out["top1"]) == float((logits[[0, 2]].argmax(1) == torch.tensor([0, 2])).float().mean())


def test_several_labels_a_sample():
    made = task(classes=MANY)
    given = batch(labels=(["cat", "dog"], [], ["fox", "wolf"], ["dog"]))
    (logits,) = made.embed(given)
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])
    want = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()
    out = made.loss((logits,), given)
    assert torch.allclose(out["loss"], want)
    assert float(out["labelled"]) == 1
    hits = [logits[0].argmax() < 2, False, logits[2].argmax() == 2, logits[3].argmax() == 1]
    assert float(out["top1"]) == pytest.approx(sum(map(bool, hits)) / 4)


@pytest.mark.parametrize("modality", TOWERS)
def test_a_mixture_is_of_normalised_inputs_and_of_labels_by_step_and_key(modality):
    made, given = task(modality, mixup=5.0, smoothing=0.1), batch(modality)
    shares = made._shares(given)
    (mixed,) = made.embed(given)
    x = made._floating(getattr(given, modality))
    parts = [(i, (i - 1) % 4) for i in range(4)]
    wanted = torch.stack([x[i] * shares[i] + x[j] * (1 - shares[i]) for i, j in parts])
    assert torch.allclose(mixed, made.model(wanted), atol=1e-6)
    labels = F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    soft = torch.stack([labels[i] * shares[i] + labels[j] * (1 - shares[i]) for i, j in parts])
    want = F.cross_entropy(mixed, soft, label_smoothing=0.1)
    assert torch.allclose(made.loss((mixed,), given)["loss"], want)
    assert torch.equal(made.embed(given)[0], mixed), "the same step draws the same mixture"
    assert not torch.equal(made.embed(batch(modality, position=4))[0], mixed)
    made.eval()
    assert torch.allclose(made.embed(given)[0], made.model(x), atol=1e-4)


def test_dropout_is_on_the_features_and_in_training_only():
    made, given = task(dropout=0.5), batch()
    assert not torch.equal(made.embed(given)[0], made.embed(given)[0])
    assert torch.equal(made.eval().embed(given)[0], made.model(given.video))


def test_a_locked_tower_gets_no_gradient_and_no_dropout():
    tower = TOWERS["video"]
    made = task(dropout=0.0, tower=tower)
    freeze(made, [(r"model\.tower\..*", None), (".*", 1.0)])
    made.train()
    made(batch())["loss"].backward()
    assert made.model.head.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in made.model.tower.parameters())
    assert not made.model.tower.training


def test_chance_and_whether_rows_can_be_clipped_one_by_one():
    assert task().chance(8) == pytest.approx(math.log(3))
    assert task(classes=MANY).chance(8) is None
    assert task(balance="own").chance(8) is None
    assert task().separable
    assert task(balance="own").separable
    assert not task(mixup=1.0).separable
    assert not task(balance="batch").separable


def test_wrong_uses_are_named():
    with pytest.raises(ValueError, match="dropout=1.0 must lie in 0..1"):
        task(dropout=1.0)
    with pytest.raises(ValueError, match="the batch has no audio: read it with fields="):
        task("audio").embed(batch("video"))
    given = batch()
    given.meta = None
    with pytest.raises(ValueError, match="'meta' among the loader's fields"):
        task()(given)
    two = create_model("deit_tiny_distilled_patch16_224", image_size=16, num_classes=3)
    with pytest.raises(ValueError, match="two heads"):
        ClassifyTask(two, ONE.targets, "image", dropout=0.5)
