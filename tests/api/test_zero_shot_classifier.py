"""The zero-shot classifier: prompts averaged as CLIP does, synonyms, classes that come and go, errors."""

import functools

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from mmvit.api import Prediction, ZeroShotClassifier
from mmvit.evaluators.prompts import class_embeddings, resolve_classes, resolve_templates


class Words:
    """A model whose embeddings are known: each text is the normalised sum of fixed vectors of its words."""

    modalities = ("image", "text")
    embed_dim = 8
    prompts = 0
    calls = 0

    class model:  # noqa: N801 - stands for the network, of which only the config is read
        class config:  # noqa: N801
            activation = "softmax"

    @staticmethod
    @functools.cache
    def word(text: str) -> torch.Tensor:
        seed = int.from_bytes(text.encode()[:7], "little")
        return torch.randn(8, generator=torch.Generator().manual_seed(seed))

    def encode(self, *, image=None, text=None, batch_size=64) -> torch.Tensor:
        inputs = text if image is None else image
        self.prompts += 0 if text is None else len(text)
        self.calls += 1
        return normalize(torch.stack([sum(self.word(w) for w in t.split()) for t in inputs]), dim=-1)

    def logits(self, a, b) -> torch.Tensor:
        return 10 * a @ b.T


def test_each_prompt_is_normalised_then_averaged_then_normalised() -> None:
    def encode(prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[3.0, 0.0] if p == "x a" else [0.0, 1.0] for p in prompts])

    out = class_embeddings(encode, ["a"], ["x {}", "y {}"])
    # Lengths 3 and 1 count the same: the direction is the diagonal.
    assert torch.allclose(out, torch.tensor([[0.5, 0.5]]).sqrt())


def test_synonyms_count_like_more_templates() -> None:
    encode = lambda prompts: Words().encode(text=prompts)  # noqa: E731
    one = class_embeddings(encode, {"cat": ["cat", "kitten"]}, ["a {}", "the {}"])
    all_four = normalize(encode(["a cat", "the cat", "a kitten", "the kitten"]).mean(0, keepdim=True), dim=-1)
    assert torch.allclose(one, all_four, atol=1e-6)


def test_chunks_and_order_of_templates_change_nothing() -> None:
    encode = lambda prompts: Words().encode(text=prompts)  # noqa: E731
    classes = [f"c{i}" for i in range(7)]
    whole = class_embeddings(encode, classes, ["a {}", "the {}"])
    assert torch.allclose(
        class_embeddings(encode, classes, ["the {}", "a {}"], prompts_at_once=3), whole, atol=1e-6
    )


def test_parity_with_open_clip() -> None:
    class Peer:
        def encode_text(self, texts, normalize):
            return Words().encode(text=texts)

    class Texts(list):
        def to(self, device):
            return self

    names = ["fox", "violin", "sea lion"]
    theirs = open_clip.build_zero_shot_classifier(Peer(), Texts, names, open_clip.OPENAI_IMAGENET_TEMPLATES)
    ours = class_embeddings(lambda p: Words().encode(text=p), names, "clip80")
    assert torch.allclose(ours, theirs.T, atol=1e-6)


def test_named_template_sets() -> None:
    assert resolve_templates("plain") == ("{}",)
    assert len(resolve_templates("clip80")) == 80
    assert len(resolve_templates("clip7")) == 7
    assert all("{}" in t for t in resolve_templates("default"))
    for bad, message in (
        ("defualt", "did you mean default"),
        ([], "empty list"),
        (["a photo"], "has no '{}'"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_templates(bad)


def test_class_lists_that_cannot_be_are_refused() -> None:
    for bad, message in (
        ([], "the class list is empty"),
        ({}, "the class list is empty"),
        ("cat", "expected a list of names"),
        (["cat", "dog", "cat"], "'cat' is listed twice"),
        ({"cat": []}, "'cat' needs at least one non-empty name"),
        (["cat", "  "], "needs at least one non-empty name"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_classes(bad)


def test_braces_in_names_are_names() -> None:
    seen: list[str] = []
    class_embeddings(lambda p: (seen.extend(p), Words().encode(text=p))[1], ["{0} {x}"], ["a {}"])
    assert seen == ["a {0} {x}"]


def test_predictions_are_ordered_probabilities() -> None:
    clf = ZeroShotClassifier(Words(), ["fox", "violin", "train"], templates=["{}"])
    rows = clf.predict(["violin", "fox fox"], top_k=2)
    assert [row[0].label for row in rows] == ["violin", "fox"]
    assert all(isinstance(p, Prediction) and 0 <= p.score <= 1 for row in rows for p in row)
    assert all(len(row) == 2 and row[0].score >= row[1].score for row in rows)
    every = clf.predict(["train"], top_k=99)[0]
    assert len(every) == 3
    assert sum(p.score for p in every) == pytest.approx(1)
    assert clf.logits(["fox"]).shape == (1, 3)
    assert clf.predict(["violin"], modality="text", top_k=1)[0][0].label == "violin"


def test_sigmoid_scores_do_not_depend_on_other_classes() -> None:
    model = Words()
    model.model = type("M", (), {"config": type("C", (), {"activation": "sigmoid"})})
    few = ZeroShotClassifier(model, ["fox", "violin"], ["{}"]).predict(["fox"], top_k=1)
    many = ZeroShotClassifier(model, ["fox", "violin", "train"], ["{}"]).predict(["fox"], top_k=1)
    assert few == many


def test_classes_are_embedded_once_and_come_and_go() -> None:
    model = Words()
    clf = ZeroShotClassifier(model, ["fox", "violin"], templates=["a {}", "the {}"])
    assert model.prompts == 4
    clf.predict(["fox"])
    assert model.prompts == 4, "prompts were embedded again"
    clf.add_classes({"train": ["train", "engine"]})
    assert model.prompts == 8
    assert clf.labels == ["fox", "violin", "train"]
    fresh = ZeroShotClassifier(
        Words(), {"fox": ["fox"], "violin": ["violin"], "train": ["train", "engine"]}, ["a {}", "the {}"]
    )
    assert torch.allclose(clf.embeddings, fresh.embeddings, atol=1e-6)
    clf.remove_classes(["violin"])
    assert clf.labels == ["fox", "train"]
    assert torch.allclose(clf.embeddings, fresh.embeddings[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="no class 'violin'"):
        clf.remove_classes(["violin"])
    with pytest.raises(ValueError, match="'fox' is already there"):
        clf.add_classes(["fox"])
    with pytest.raises(ValueError, match="no class would be left"):
        clf.remove_classes(["fox", "train"])
    with pytest.raises(ValueError, match="top_k is 0"):
        clf.predict(["fox"], top_k=0)


def test_embeddings_made_before_can_be_classified() -> None:
    model = Words()
    clf = ZeroShotClassifier(model, ["fox", "violin"], ["{}"])
    z = model.encode(image=["fox", "violin"])
    calls = model.calls
    assert [row[0].label for row in clf.predict(z, top_k=1)] == ["fox", "violin"]
    assert model.calls == calls
