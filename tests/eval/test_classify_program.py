"""eval/classify.py against plain arithmetic on the views; two ranks; mistakes are one line."""

import json

import pytest
import torch

from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import read_all
from mmvit.hub import folder
from mmvit.models.classifier import Classifier
from mmvit.models.config import ClassifierConfig, CoreConfig, ImageTowerConfig
from tests.recipes.labelled import MOTIONS, VIDEO, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder corpus/test_toy with clips and sounds, and classifiers of both in runs/NAME/model."""
    return write(tmp_path_factory.mktemp("corpus"))


def classifier(path, config, preprocess, card):
    torch.manual_seed(2)
    model = Classifier(config)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    folder.save(model, path, preprocess=preprocess, card=card)
    return model.eval()


@pytest.fixture(scope="module")
def motions(data):
    fed = folder.load(data / "video").preprocess
    card = {"classes": list(MOTIONS), "label": "motion", "multi": False, "modality": "video"}
    path = data / "runs" / "motions" / "model"
    return path, classifier(path, ClassifierConfig(tower=VIDEO, num_classes=3), fed, card), fed


def test_scores_are_the_mean_over_windows_and_crops(program, data, motions, tmp_path):
    path, model, fed = motions
    shards, out = data / "val" / "clips", tmp_path / "found.json"
    found = {}
    for views, crops, agg in ((1, 1, "logits"), (2, 3, "logits"), (2, 3, "probs")):
        words = ["--model", path, "--data", shards, "--out", out, "--views", views, "--crops", crops]
        code, said, error = program("eval/classify.py", *words, "--agg", agg, "--batch-size", 5)
        assert code == 0, error
        assert "video by motion: 12 samples, 3 classes" in said
        result = json.loads(out.read_text())
        hits, batches = (
            0.0,
            read_all(str(shards), batch_size=4, fields=("video", "meta"), clip=fed, views=views, crops=crops),
        )
        for batch in batches:
            clips = batch.video if views > 1 else batch.video[:, None]
            with torch.no_grad():
                logits = torch.stack([model(clips[:, v]) for v in range(clips.shape[1])], 1)
            scores = (logits if agg == "logits" else logits.softmax(2)).mean(1)
            labels = torch.tensor([MOTIONS.index(meta["motion"]) for meta in batch.meta])
            hits += float((scores.argmax(1) == labels).sum())
        assert result["metrics"]["acc1"] == pytest.approx(hits / 12)
        assert (result["task"], result["n"], result["label"]) == ("classification", 12, "motion")
        assert result["protocol"] == {"views": views, "crops": crops, "agg": agg}
        assert sum(row["n"] for row in result["per_class"].values()) == 12
        found[views, agg] = result["metrics"]
    assert found[1, "logits"]["chance_acc1"] == pytest.approx(1 / 3)


def test_pictures_have_one_view_and_another_label_may_be_asked(program, shards, tmp_path):
    core = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
    tower = ImageTowerConfig(core=core, image_size=(16, 16), patch_size=8)
    card = {"classes": ["bar", "disc", "square"], "label": "nothing", "modality": "image"}
    path = tmp_path / "runs" / "shapes" / "model"
    config = ClassifierConfig(tower=tower, num_classes=3)
    classifier(path, config, ImagePreprocess(size=(16, 16)), card)
    words = ["--model", path, "--data", shards, "--out", tmp_path / "a.json", "--views", 4]
    code, said, error = program("eval/classify.py", *words, "--label", "label")
    assert code == 0, error
    assert "image by label: 36 samples, 3 classes" in said
    code, _, error = program("eval/classify.py", *words)
    assert code == 2
    assert "none of the 36 samples has a label among the 3 classes" in error


def test_mistakes_are_one_line(program, data, motions, model, tmp_path):
    path, _, fed = motions
    nameless = tmp_path / "nameless"
    classifier(nameless, ClassifierConfig(tower=VIDEO, num_classes=3), fed, {})
    clips = data / "val" / "clips"
    for words, said in (
        (("--model", nameless, "--data", clips), "does not name its classes: the card in its config.json"),
        (("--model", model, "--data", clips), "holds a dual_encoder: this needs a classifier"),
        (("--model", "/nowhere", "--data", clips), "no model folder at '/nowhere'"),
        (("--model", path, "--data", data / "val" / "sounds"), "has no video"),
        (("--model", path, "--data", clips, "--label", "mood"), "has a label among the 3 classes"),
        (("--model", path, "--data", clips, "--crops", 0), "views=1 and crops=0 must be at least 1"),
        (("--model", path, "--data", clips, "--agg", "max"), "invalid choice 'max'"),
    ):
        code, _, error = program("eval/classify.py", *words, "--out", tmp_path / "x.json")
        assert code == 2, words
        assert said in error, words
        assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
        assert error.strip().splitlines()[-1].startswith("error: ")
