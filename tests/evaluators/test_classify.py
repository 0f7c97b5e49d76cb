"""Classifiers whose right answer is known: views are averaged, never counted; labels of both kinds."""

import pytest
import torch
from torch import nn

from mmvit.data.classes import ClassList
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.evaluators.classify import classification_metrics, classify_samples, classify_split
from mmvit.models.classifier import Classifier
from mmvit.types import Batch
from tests.eval.media_case import PREPROCESS, tone

ONE = ClassList(("cat", "dog", "fox"))
MANY = ClassList(("cat", "dog", "fox"), multi=True)


class Told(Classifier):
    """Its logits are the first three samples of every waveform."""

    def __init__(self):
        nn.Module.__init__(self)
        self.head = nn.Linear(1, 1)
        self.config = type("Config", (), {"num_classes": 3, "tower": None})()
        self.sizes = []

    def forward(self, x):
        assert not self.training
        self.sizes.append(len(x))
        return x[:, :3]


def batches(views, labels, size=2):
    """Batches of waveforms (n,V,4) that say `views` (N,V,3)."""
    views = torch.tensor(views)
    waves = torch.cat([views, torch.zeros(*views.shape[:2], 1)], 2)
    for start in range(0, len(views), size):
        rows = range(start, min(start + size, len(views)))
        metas = [{"__index__": i} | ({} if labels[i] is None else {"label": labels[i]}) for i in rows]
        audio = waves[start : start + size]
        yield Batch(
            keys=[f"k{i}" for i in rows], audio=audio if views.shape[1] > 1 else audio[:, 0], meta=metas
        )


# Sample 0: two views say dog weakly, one says cat loudly; sample 1 the other way round in sigmoids.
VIEWS = [[[9.0, 0, 0], [0, 1, 0], [0, 1, 0]], [[0, 0, 3.0], [0, 0, 3], [0, 4, 0]], [[1.0, 0, 0]] * 3]


def test_logits_of_views_are_averaged_before_the_softmax():
    model = Told().train()
    found = classify_samples(model, batches(VIEWS, ["cat", "fox", "cat"]), "audio", ONE, views=3)
    assert torch.allclose(found.scores, torch.tensor(VIEWS).mean(1))
    assert found.labels.tolist() == [0, 2, 0]
    metrics = classification_metrics(found.scores, found.labels, ONE.names)
    assert metrics["acc1"] == 1
    assert metrics["n"] == 3, "a sample counts once"
    assert metrics["chance_acc1"] == pytest.approx(1 / 3)
    assert model.training, "the model has its mode back"


def test_probabilities_are_another_answer():
    found = classify_samples(
        Told(), batches(VIEWS, ["dog", "fox", "cat"]), "audio", ONE, views=3, agg="probs"
    )
    assert torch.allclose(found.scores, torch.tensor(VIEWS).softmax(2).mean(1))
    assert found.scores.argmax(1).tolist() == [0, 2, 0]
    weak = [[[1.2, 0, 0], [0, 1, 0], [0, 1, 0]]] * 2
    told = {}
    for agg in ("logits", "probs"):
        scores = classify_samples(Told(), batches(weak, ["dog"] * 2), "audio", ONE, views=3, agg=agg).scores
        told[agg] = scores[0]
    assert torch.allclose(told["logits"], torch.tensor([0.4, 2 / 3, 0]))
    assert torch.allclose(told["probs"].sum(), torch.tensor(1.0))


def test_several_labels_have_sigmoids_and_average_precision():
    labels = [["cat", "dog"], ["fox"], []]
    views = [[[2.0, 1, -3]] * 2, [[-2.0, -1, 4]] * 2, [[-1.0, 0, 1]] * 2]
    for agg in ("logits", "probs"):
        found = classify_samples(Told(), batches(views, labels), "audio", MANY, views=2, agg=agg)
        want = torch.tensor(views).mean(1)
        assert torch.allclose(found.scores, want if agg == "logits" else want.sigmoid())
        assert found.labels.tolist() == [[True, True, False], [False, False, True], [False] * 3]
        metrics = classification_metrics(found.scores, found.labels, MANY.names)
        assert metrics["map"] == 1
        assert metrics["auc"] == 1
        assert metrics["without_label"] == 1


def test_one_view_needs_no_stack_and_towers_get_no_more_at_once_than_asked():
    model = Told()
    one = [[[0.0, 1, 0]], [[0.0, 0, 1]], [[1.0, 0, 0]]]
    found = classify_samples(model, batches(one, ["dog", None, "owl"], size=3), "audio", ONE, at_once=2)
    assert model.sizes == [2, 1]
    assert found.labels.tolist() == [1, -1, -1]
    metrics = classification_metrics(found.scores, found.labels, ONE.names)
    assert (metrics["acc1"], metrics["n"], metrics["without_label"]) == (1, 1, 2)
    steps = []
    classify_samples(model, batches(VIEWS, ["cat"] * 3), "audio", ONE, views=3, progress=steps.append)
    assert steps == [2, 1]


def test_what_lacks_the_modality_is_left_out():
    (batch,) = batches(VIEWS, ["cat", "fox", "cat"], size=3)
    batch.audio_mask = torch.tensor([True, False, True])
    found = classify_samples(Told(), [batch], "audio", ONE, views=3)
    assert found.labels.tolist() == [0, 0]
    assert found.found.keys == ["k0", "k2"], "in the order of the rows"
    assert torch.allclose(found.scores, torch.tensor(VIEWS).mean(1)[[0, 2]])
    batch.audio_mask = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(UserError, match="none of the 3 samples has audio"):
        classify_samples(Told(), [batch], "audio", ONE, views=3)


def test_bad_samples_are_counted_whatever_the_batches(tmp_path):
    writer = ShardWriter(tmp_path / "sounds", samples_per_shard=9)
    for name, sound in (("a", tone(300)), ("b", b"RIFFno"), ("c", tone(500)), ("d", b"")):
        writer.write(name, {"wav": sound, "json": {"label": "cat"}})
    writer.finish()
    for at_once in (1, 4):
        found = classify_split(Told(), str(tmp_path), PREPROCESS, "audio", ONE, at_once=at_once).found
        assert found.keys == ["a", "c"]
        assert sum(found.skipped.values()) == 2


def test_the_classes_must_be_the_models():
    with pytest.raises(ValueError, match="2 class names for 3 logits"):
        classify_samples(Told(), [], "audio", ClassList(("cat", "dog")))
