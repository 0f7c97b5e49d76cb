"""recipes/classify.py end to end on drawn motions and tones: it learns, options do what they say."""

import json
import math

import pytest
import torch

from mmvit.data.clip import ClipPreprocess
from mmvit.errors import UserError
from mmvit.hub import folder
from mmvit.models.classifier import Classifier
from mmvit.models.presets import create_model
from mmvit.tasks.classify import ClassifyTask
from tests.recipes.labelled import options, write
from tests.recipes.run_folders import rows

LEARN = {
    "--train.batch-size": 12,
    "--train.log-every": 10,
    "--optim.lr": 3e-3,
    "--data.no-augment": True,
    "--data.views": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def classify(data, tmp_path, recipe):
    """classify(modality, changes, name) -> folder of a run of three steps with these changes."""

    def run(modality="video", changes=(), name="run"):
        recipe("classify", *options(data, tmp_path / name, modality, {"--train.steps": 3, **dict(changes)}))
        return tmp_path / name

    return run


@pytest.fixture
def batches(monkeypatch):
    """The batches whose loss is computed from now on."""
    seen, inner = [], ClassifyTask.loss
    monkeypatch.setattr(ClassifyTask, "loss", lambda self, e, b: (seen.append(b), inner(self, e, b))[1])
    return seen


def weights(path):
    return folder.load(path).model.state_dict()


def last(out):
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def test_motions_are_learned_and_the_model_says_what_its_classes_are(classify, data):
    out = classify(
        "video",
        LEARN
        | {
            "--train.steps": 120,
            "--data.val": data / "val" / "clips",
            "--data.crops": 3,
            "--loss.smoothing": 0.1,
        },
    )
    found = rows(out)
    assert found[0]["train/loss"] == pytest.approx(math.log(3), abs=0.15), "the head starts at zero"
    assert last(out)["eval/acc1"] >= 0.75
    assert last(out)["eval/chance_acc1"] == pytest.approx(1 / 3)
    saved = folder.load(out / "model")
    assert isinstance(saved.model, Classifier)
    assert saved.config["kind"] == "video_classifier"
    card = saved.config["card"]
    assert (card["classes"], card["label"], card["multi"]) == (["left", "right", "still"], "motion", False)
    assert isinstance(saved.preprocess, ClipPreprocess)
    assert saved.preprocess.video.frames == 4
    said = (out / "log.txt").read_text()
    assert "3 classes, one a sample" in said


def test_a_list_of_labels_makes_it_multi_label(classify, data):
    out = classify("audio", LEARN | {"--train.steps": 60, "--data.val": data / "val" / "sounds"})
    assert rows(out)[0]["train/loss"] < 2 * math.log(2) + 0.2
    assert last(out)["eval/map"] > 0.95 > last(out)["eval/chance_map"]
    saved = folder.load(out / "model")
    assert saved.config["kind"] == "audio_classifier"
    assert saved.config["card"]["multi"]
    assert "2 classes, any number a sample" in (out / "log.txt").read_text()


def test_a_probe_leaves_the_tower_as_it_was(classify, data):
    out = classify("video", {"--model.learn": "head", "--loss.dropout": 0.5})
    before, after = weights(data / "video"), weights(out / "model")
    assert all(torch.equal(after[f"tower.{name}"], value) for name, value in before.items())
    assert after["head.weight"].abs().max() > 0
    with pytest.raises(UserError, match="--model.learn head needs a trained tower; vatt_tiny starts from"):
        classify("video", {"--model.learn": "head", "--model.tower": "vatt_tiny"}, "scratch")


def test_the_head_is_spared_by_the_clipping(classify, data):
    base = {
        "--train.steps": 1,
        "--optim.name": "sgd",
        "--optim.lr": 1.0,
        "--optim.weight-decay": 0,
        "--schedule.name": "constant",
    }
    base |= {"--schedule.warmup": 0, "--optim.beta1": 0, "--data.no-augment": True, "--model.learn": "head"}
    moved = {}
    for name, more in {
        "free": {"--train.clip-norm": 0},
        "cut": {"--train.clip-norm": 1e-4},
        "spared": {"--train.clip-norm": 1e-4, "--train.clip-spares": r"model\.head\.weight"},
    }.items():
        state = weights(classify("video", base | more, name) / "model")
        moved[name] = (float(state["head.weight"].norm()), float(state["head.bias"].norm()))
    assert math.hypot(*moved["cut"]) == pytest.approx(1e-4 * 1.0, rel=0.01)
    assert moved["spared"][0] == pytest.approx(moved["free"][0], rel=1e-4)
    assert moved["spared"][1] == pytest.approx(1e-4, rel=0.01), "what is spared is not counted either"
    with pytest.raises(
        UserError, match="'model.hat' of --train.clip-spares matches no parameter that learns"
    ):
        classify("video", {"--train.clip-spares": "model.hat"}, "wrong")


@pytest.mark.parametrize("kind", ["vatt_tiny", "vatt_tiny_ma", "saved vatt", "classifier"])
def test_where_towers_come_from(classify, data, tmp_path, kind):
    tiny = {"--data.size": 32, "--train.steps": 1, "--train.batch-size": 2}
    if kind.startswith("vatt"):
        out = classify("video", {"--model.tower": kind, **tiny})
        assert folder.load(out / "model").preprocess.video.size == (32, 32)
    elif kind == "classifier":
        first = classify("video", {"--train.steps": 2, "--optim.lr": 1e-2}, "first")
        again = {"--model.tower": first / "model", "--optim.lr": 1e-12, "--train.steps": 1}
        kept = weights(classify("video", again, "again") / "model")
        assert torch.allclose(kept["head.weight"], weights(first / "model")["head.weight"])
        (tmp_path / "other.txt").write_text("right\nleft\nstill\n")
        new = classify("video", again | {"--data.classes": tmp_path / "other.txt"}, "new")
        assert weights(new / "model")["head.weight"].abs().max() < 1e-6, "other classes: a new head"
        assert folder.load(new / "model").config["card"]["classes"] == ["right", "left", "still"]
    else:
        pytest.importorskip("mmvit.data.text_words")
        from mmvit.data.audio import AudioPreprocess
        from mmvit.data.text_words import WordTokenizer
        from mmvit.data.video import VideoPreprocess

        torch.manual_seed(1)
        model = create_model("vatt_tiny_ma")
        words = WordTokenizer(["a", "fox"], context_length=model.config.text.context_length)
        fed = ClipPreprocess(
            video=VideoPreprocess(size=(112, 112), frames=16, fps=8), audio=AudioPreprocess(samples=32_000)
        )
        folder.save(model, tmp_path / "vatt", preprocess=fed, tokenizer=words)
        for modality, side in (("video", model.video), ("audio", model.audio)):
            change = {"--model.tower": tmp_path / "vatt", "--optim.lr": 1e-12, "--train.steps": 1}
            more = {"--data.size": 32} if modality == "video" else {"--data.seconds": 0.064}
            out = classify(modality, change | more | {"--train.batch-size": 2}, modality)
            found = weights(out / "model")
            for name, value in side.state_dict().items():
                assert torch.allclose(found[f"tower.{name}"], value, atol=1e-6), name


def test_pictures_on_an_image_tower_and_on_a_video_tower(corpus, recipe, tmp_path, data, batches):
    for name, tower in (("image", corpus / "tower"), ("video", data / "video")):
        words = options(data, tmp_path / name, "video", {"--train.steps": 2, "--data.flip": 0.5})
        words += ["--data.modality", "image", "--data.label", "label", "--model.tower", str(tower)]
        words += ["--data.train", str(corpus / "train"), "--data.val", str(corpus / "val")]
        words += ["--data.classes", str(tmp_path / "classes.txt")]
        colours = [f"{c} {s}" for c in ("red", "green", "blue", "black") for s in ("circle", "square", "bar")]
        (tmp_path / "classes.txt").write_text("\n".join(colours))
        recipe("classify", *words)
        assert "eval/acc1" in last(tmp_path / name)
        assert folder.load(tmp_path / name / "model").config["card"]["classes"] == colours
    assert {tuple(b.image.shape[1:]) for b in batches} == {(3, 16, 16)}


def test_how_it_is_fed_can_be_changed(classify, batches):
    out = classify("video", {"--data.size": 24, "--data.frames": 2, "--data.fps": 4, "--train.steps": 1})
    assert batches[-1].video.shape == (8, 3, 2, 24, 24)
    fed = folder.load(out / "model").preprocess.video
    assert (fed.size, fed.frames, fed.fps) == ((24, 24), 2, 4)
    classify("audio", {"--data.sample-rate": 2000, "--data.seconds": 0.256, "--train.steps": 1}, "audio")
    assert batches[-1].audio.shape == (8, 512)


def test_training_options(classify, data, losses):
    plain = losses(classify("video"))
    assert losses(classify("video", {"--model.checkpointing": True}, "checkpointing")) == plain
    micro = losses(classify("video", {"--train.micro-batch": 3}, "micro"))
    assert micro == pytest.approx(plain, rel=2e-5)
    mixed = {"--loss.mixup": 5.0, "--loss.balance": "batch"}
    assert losses(classify("audio", mixed, "mixed")) != losses(classify("audio", name="sounds"))
    two = {"--data.train": f"{data / 'train' / 'clips'}::{data / 'more' / 'clips'}"}
    classify("video", two | {"--data.weights": (0.3, 0.7), "--train.per-example-clip": 1.0}, "two")


@pytest.mark.parametrize("preset", ["corpus", "probe", "video", "audio", "image"])
def test_every_preset_runs(classify, corpus, preset):
    """Everything as it is there, but small."""
    modality = {"audio": "audio"}.get(preset, "video")
    small = {"--preset": preset, "--train.steps": 1, "--train.batch-size": 2, "--schedule.warmup": 0}
    small |= {"--data.workers": 0, "--train.log-every": 1}
    if preset == "video":
        small |= {"--data.size": 32, "--data.frames": 4}
    if preset == "audio":
        small |= {"--data.seconds": 0.064}
    if preset == "image":
        small |= {"--data.modality": "image", "--data.size": 32, "--data.label": "label"}
        small |= {"--data.train": corpus / "train"}
    assert rows(classify(modality, small))[0]["train/grad_norm"] > 0


MISTAKES = [
    ({"--data.train": ""}, "--data.train is missing: a shard pattern in quotes, or a folder of shards"),
    ({"--data.train": "/nowhere/*.tar"}, "no shard matches"),
    ({"--data.label": "notion"}, "'notion' is in none of 36 JSON objects; --data.label names the field"),
    ({"--data.classes": "/nowhere.txt"}, "cannot read the class list /nowhere.txt"),
    ({"--data.modality": "audio"}, "has no audio tower of ours that a classifier could stand on"),
    ({"--data.modality": "smell"}, "invalid choice 'smell'"),
    ({"--data.crops": 0, "--data.val": "VAL"}, "views=1 and crops=0 must be at least 1"),
    ({"--data.val": "ODD"}, "--data.val .*: none of the 1 samples has a label among the 3 classes"),
    ({"--model.tower": ""}, "--model.tower is missing: the folder of a trained tower, or a preset's name"),
    ({"--model.tower": "/nowhere"}, "no folder or preset '/nowhere'"),
    ({"--model.tower": "vit_tiny"}, "no folder or preset 'vit_tiny': did you mean"),
    ({"--model.tower": "TEXT"}, "has no video tower of ours"),
    ({"--data.size": 20}, r"clip_size is \(4, 20, 20\), expected multiples of patch_size=\(2, 8, 8\)"),
    ({"--data.frames": 3}, r"clip_size is \(3, 16, 16\), expected multiples"),
    ({"--model.frozen": "model.tour.*"}, "--model.frozen model.tour.* matches no parameter"),
    ({"--model.frozen": ".*"}, "nothing is trainable"),
    ({"--loss.smoothing": 1.0}, "smoothing=1.0 must lie in 0..1"),
    ({"--loss.dropout": 1.0}, "dropout=1.0 must lie in 0..1"),
    ({"--loss.mixup": 1.0, "--train.micro-batch": 2}, "does not go with --loss.mixup"),
    ({"--loss.mixup": 1.0, "--train.per-example-clip": 1}, "the mean of the examples' own losses"),
    ({"--train.batch-size": 0}, "global batch"),
    ({"--loss.kind": "hinge"}, "invalid choice 'hinge'"),
    ({"--preset": "tinny"}, "did you mean tiny"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_say_what_to_do_in_one_line(classify, corpus, data, changes, said):
    wrong = {"TEXT": corpus / "text", "VAL": data / "val" / "clips", "ODD": data / "odd" / "clips"}
    with pytest.raises(UserError, match=said) as caught:
        classify("video", {name: wrong.get(value, value) for name, value in changes.items()})
    assert "\n" not in str(caught.value)
