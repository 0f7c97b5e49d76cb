"""recipes/owl.py end to end on drawn shapes: it learns, its model can be used, options do what they say."""

import json
import shutil

import pytest
import torch
from PIL import Image

import mmvit
from mmvit.data.image import ImagePreprocess
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.evaluators.detection import evaluate
from mmvit.evaluators.detection_split import detect_split
from mmvit.hub import folder
from mmvit.models.owl import OwlDetector
from mmvit.tasks.detection import DetectionTask
from tests.recipes.owl_options import options
from tests.recipes.run_folders import rows

STILL = {"--train.steps": 1, "--optim.lr": 1e-12}  # weights stay as they begin


LEARNED = {
    "--train.steps": 40,
    "--train.batch-size": 8,
    "--train.save-every": 20,
    "--train.eval-every": 30,
    "--train.average": 0.8,
}


@pytest.fixture(scope="module")
def learned(scenes, tmp_path_factory, recipe_module):
    """Folder of a run of 40 steps with evaluations of the running mean."""
    out = tmp_path_factory.mktemp("learned") / "run"
    recipe_module("owl", *options(scenes, out, LEARNED | {"--data.val": scenes / "val"}))
    return out


@pytest.fixture
def owl(scenes, tmp_path, recipe):
    """owl(changes, name) -> folder of a run of three steps with these changes."""

    def run(changes=(), name="run"):
        recipe("owl", *options(scenes, tmp_path / name, {"--train.steps": 3, **dict(changes)}))
        return tmp_path / name

    return run


@pytest.fixture
def batches(monkeypatch):
    """The batches whose loss is computed from now on."""
    seen, inner = [], DetectionTask.loss
    monkeypatch.setattr(DetectionTask, "loss", lambda self, e, b: (seen.append(b), inner(self, e, b))[1])
    return seen


def weights(path):
    return folder.load(path).model.state_dict()


def test_it_starts_at_the_prior_learns_and_writes_what_every_recipe_writes(learned, losses):
    found = losses(learned)
    assert len(found) == 40
    assert sum(found[-5:]) / 5 < 0.7 * sum(found[:5]) / 5
    lines = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    # Every query has a probability of 0.01 at every token, give or take a cosine of random directions: a
    # positive costs 0.3 * 0.99^2 * ln 100 = 1.354, all negatives together less than 0.05 of that.
    assert 1.25 < first["train/loss_class"] < 1.5
    assert 0.1 < first["train/loss_box"] < 0.6, "L1 of a patch's corner and a box, summed over four corners"
    assert 0.5 < first["train/loss_giou"] < 1.5
    parts = [first[f"train/loss_{part}"] for part in ("class", "box", "giou")]
    assert first["train/loss"] == pytest.approx(sum(parts), rel=1e-6)
    assert first["samples_seen"] == 8
    wanted = {"perf/samples_per_s", "perf/data_wait", "train/grad_norm", "train/lr", "train/boxes"}
    assert wanted | {"train/match_iou", "train/match_top1"} <= set(first)
    assert 1 <= first["train/boxes"] <= 3
    last = [row for row in lines if "train/loss" in row][-1]
    assert min(last["data/image-unreadable"], last["data/box-outside"]) >= 2, "in each of the epochs"
    assert last["train/match_iou"] > first["train/match_iou"]
    for name in ("config.yaml", "env.json", "log.txt", "checkpoints/step-00000040/manifest.json"):
        assert (learned / name).exists(), name
    assert sorted(p.name for p in (learned / "checkpoints").iterdir()) == ["step-00000020", "step-00000040"]
    said = (learned / "log.txt").read_text()
    assert "model.class_head.dense" in said, "what learns is printed"
    assert "lr=3e-05" in said, "the text tower learns a hundred times slower"


def test_evaluations_are_those_of_the_evaluation_program(scenes, learned):
    found = {row["step"]: row for row in rows(learned) if "eval/AP" in row}
    assert sorted(found) == [30, 40]
    saved = folder.load(learned / "model")
    searched = detect_split(
        saved.model, saved.tokenizer, str(scenes / "val"), preprocess=saved.preprocess, templates="plain"
    )
    want = evaluate(searched.predictions, searched.truths, searched.categories).metrics
    for name in ("AP", "AP50", "AP75", "AR100"):
        assert found[40][f"eval/{name}"] == pytest.approx(want[name], abs=1e-6), name
    assert found[40]["eval/AR100"] > 0, "otherwise the equality would say little"


def test_the_model_is_one_that_is_loaded_and_detects(scenes, learned):
    loaded = mmvit.load(learned / "model")
    assert loaded.encode(text=["red circle", "blue bar"]).shape == (2, 32)
    detector = mmvit.Detector(learned / "model")
    found = detector.detect([Image.new("RGB", (60, 30), "white")], ["red circle", "blue bar"], threshold=0.0)
    assert len(found[0].boxes) > 0
    assert (found[0].boxes >= 0).all()
    assert (found[0].boxes <= torch.tensor([60.0, 30.0, 60.0, 30.0])).all()
    assert set(found[0].labels.tolist()) == {0, 1}
    saved = folder.load(learned / "model")
    assert saved.preprocess == ImagePreprocess(size=(48, 48), resize="pad_corner", background=(128,) * 3)
    card = saved.config["card"]
    assert (card["steps"], card["batch_size"], card["base_models"]) == (40, 8, ["pair"])
    trained, start = saved.model.state_dict(), weights(scenes / "pair")
    for name in ("image.patch_embed.proj.weight", "image.core.norm.weight", "text.head.weight"):
        moved = (trained[name] - start[name]).abs().max()
        assert 0 < moved < 0.5, "towers begin as the pair's, and learn"


def test_a_finished_run_is_left_alone_and_one_without_its_model_gets_it(
    scenes, learned, tmp_path, recipe, capsys
):
    out = shutil.copytree(learned, tmp_path / "run")
    words = options(scenes, out, LEARNED)
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    recipe("owl", *words)
    assert "is finished: 40 steps" in capsys.readouterr().out
    assert before == sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    want = folder.load(out / "model").fingerprint
    shutil.rmtree(out / "model")
    recipe("owl", *words)
    assert folder.load(out / "model").fingerprint == want


def test_a_detector_learns_on(learned, owl, losses):
    kept = owl({"--model.pair": learned / "model", **STILL}, "kept")
    before, after = weights(learned / "model"), weights(kept / "model")
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], value, atol=1e-9) for name, value in before.items())
    on = owl({"--model.pair": learned / "model", "--train.batch-size": 8}, "on")
    assert losses(on)[0] < 0.8 * losses(learned)[0], "its heads are not begun anew"
    with pytest.raises(UserError, match="is a detector for 48 x 48 pixels and stays one: image size 96"):
        owl({"--model.pair": learned / "model", "--model.image-size": 96}, "resized")


def test_from_the_pair_or_at_random(scenes, owl):
    pair = weights(scenes / "pair")
    start = weights(owl(STILL, "pair") / "model")
    again, other = (
        weights(owl({"--model.weights": "random", "--train.seed": seed, **STILL}, f"random{seed}") / "model")
        for seed in (0, 1)
    )
    towers = [name for name in start if name.split(".")[0] in ("image", "text")]
    assert all(torch.allclose(start[name], pair[name], atol=1e-9) for name in towers)
    assert start.keys() == again.keys() == other.keys()
    drawn = [name for name in towers if name.endswith("weight") and "norm" not in name]
    assert len(drawn) > 10
    assert not any(torch.allclose(again[name], pair[name], atol=1e-3) for name in drawn)
    assert not any(torch.allclose(again[name], other[name], atol=1e-3) for name in drawn)
    card = folder.load(owl({"--model.weights": "random", **STILL}) / "model").config["card"]
    assert card["base_models"] == []


def test_a_locked_text_tower_keeps_its_bits(scenes, owl):
    out = owl({"--model.frozen": ("model.text.*", r"model\.image\.patch_embed\..*")})
    before, after = weights(scenes / "pair"), weights(out / "model")
    same = {name for name, value in after.items() if name in before and torch.equal(value, before[name])}
    locked = {name for name in after if name.startswith(("text.", "image.patch_embed."))}
    assert len(locked) > 20
    assert {name for name in same if name.startswith(("text.", "image."))} == locked
    manifest = json.loads((out / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    assert set(manifest["locked"]) == {"model.text", "model.image.patch_embed"}
    table = (out / "log.txt").read_text()
    assert "locked" in next(line for line in table.splitlines() if line.startswith("model.text.core"))


@pytest.fixture
def other_pair(scenes, tmp_path):
    """Folder of the pair with other text weights."""
    other = folder.load(scenes / "pair")
    with torch.no_grad():
        other.model.text.pos_embed.add_(1.0)
    folder.save(other.model, tmp_path / "other", preprocess=other.preprocess, tokenizer=other.tokenizer)
    return tmp_path / "other"


def test_a_checkpoint_goes_on_with_locked_weights_of_its_own_only(scenes, other_pair, owl):
    locked = {"--model.frozen": "model.text.*"}
    owl({**locked, "--train.steps": 1})
    said = f"'model.text' are not those that .*then from '{scenes / 'pair'}'.*now from '{other_pair}'"
    with pytest.raises(UserError, match=said):
        owl({**locked, "--model.pair": other_pair})
    with pytest.raises(UserError, match=r"trained with \['model.text'\] locked, this run locks nothing"):
        owl()


def test_what_learns_comes_from_the_checkpoint_whatever_the_pair(other_pair, owl):
    for name in ("same", "other"):
        owl({"--train.steps": 1}, name)
    assert rows(owl({"--model.pair": other_pair}, "other")) == rows(owl(name="same"))


def test_forbidden_names_are_never_trained_on(scenes, tmp_path, owl, batches):
    names = ("red circle", "black bar", "blue square")
    (tmp_path / "names.txt").write_text("Red Circle\n\nblack_bar\nBlue  square\n")
    for forbid, wanted in (("", set(names)), (tmp_path / "names.txt", set())):
        batches.clear()
        owl({"--data.forbid": forbid, "--train.steps": 6}, f"run{bool(forbid)}")
        labels = {label for batch in batches for meta in batch.meta for label in meta["labels"]}
        assert labels & set(names) == wanted
        assert {"green circle", "red square"} <= labels
        asked = {prompt for batch in batches for meta in batch.meta for prompt in meta["queries"]}
        assert any(name in prompt for prompt in asked for name in names) == bool(wanted)
        assert any("red square" in prompt and prompt != "red square" for prompt in asked), "templates"


def test_data_options_reach_the_batches(scenes, owl, batches):
    tiles = []
    for mosaics in ((1.0,), (0.0, 1.0), (0.4, 0.3, 0.3)):
        batches.clear()
        owl({"--data.mosaics": mosaics, "--data.num-queries": 4}, f"{len(mosaics)}")
        tiles.append({len(meta["tiles"]) for batch in batches for meta in batch.meta})
        assert all(batch.image.shape == (4, 3, 48, 48) for batch in batches)
        assert all(0 < batch.query_mask.sum(1).max() <= 4 for batch in batches)
    assert tiles == [{1}, {4}, {1, 4, 9}]
    batches.clear()
    sources = {"--data.train": f"{scenes / 'train'}::{scenes / 'more'}", "--data.weights": (0.2, 0.8)}
    owl({**sources, "--data.templates": "plain", "--train.steps": 10}, "two")
    from_more = [key.startswith("more") for batch in batches for key in batch.keys]
    assert 24 < sum(from_more) < 40
    assert all(meta["labels"] == meta["queries"] for batch in batches for meta in batch.meta)


MODELS = {
    "objectness": ({"--model.objectness": True}, lambda m: m.objectness_head is not None),
    "image_size": ({"--model.image-size": 96}, lambda m: m.config.image.image_size == (96, 96)),
    "merge": ({"--model.merge": "drop"}, lambda m: m.config.merge == "drop"),
    "box_bias": ({"--model.box-bias": "center"}, lambda m: m.config.box_bias == "center"),
    "hide_padding": ({"--model.hide-padding": True}, lambda m: m.config.hide_padding),
    "drop_path": ({"--model.drop-path": (0.3, 0.2)}, lambda m: m.config.image.core.drop_path == 0.3),
    "class_init": (
        {"--model.class-init": "projection"},
        lambda m: m.class_head.dense.weight.abs().max() > 1e-3,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_options(owl, losses, name):
    changes, holds = MODELS[name]
    more = {"--model.query-length": 6, "--model.pad": 0}
    out = owl({**changes, **(STILL if name == "class_init" else {}), **more})
    saved = folder.load(out / "model")
    assert isinstance(saved.model, OwlDetector)
    assert holds(saved.model)
    assert saved.preprocess.size == saved.model.config.image.image_size
    assert saved.preprocess.background == (0, 0, 0)
    assert saved.tokenizer.context_length == 6
    assert ("train/loss_objectness" in rows(out)[0]) == (name == "objectness")


@pytest.mark.parametrize("preset", ["corpus", "clip", "lit"])
def test_every_preset_runs(owl, preset):
    """Everything as it is there, but small."""
    small = {"--model.image-size": 48, "--train.steps": 1, "--train.batch-size": 2, "--schedule.warmup": 0}
    found = rows(owl({"--preset": preset, "--data.workers": 0, "--train.log-every": 1, **small}))
    assert found[0]["train/grad_norm"] > 0
    if preset != "corpus":
        assert found[0]["train/grad_norm"] <= 1 + 1e-6, "each example's gradient is cut to norm 1"


def test_memory_savers_have_the_same_losses(owl, losses):
    plain = losses(owl())
    assert losses(owl({"--model.checkpointing": True}, "checkpointing")) == plain
    assert losses(owl({"--train.micro-batch": 3}, "micro")) == pytest.approx(plain, rel=2e-5)


def test_gradients_are_clipped_by_example(owl, losses):
    clipped = {"--loss.normalization": "per_example", "--train.clip-norm": 0}
    found = {
        limit: rows(owl({**clipped, "--train.per-example-clip": limit}, f"{limit}")) for limit in (1e9, 1.0)
    }
    plain = rows(owl(clipped, "plain"))
    for row, want in zip(found[1e9], plain, strict=True):
        assert row["train/loss"] == pytest.approx(want["train/loss"], rel=2e-5)
        assert row["train/grad_norm"] == pytest.approx(want["train/grad_norm"], rel=1e-3)
    assert all(row["train/grad_norm"] <= 1 + 1e-6 for row in found[1.0])
    assert plain[0]["train/grad_norm"] > 1


@pytest.fixture(scope="module")
def wrong(corpus, scenes, tmp_path_factory):
    """Name -> something that cannot be used."""
    out = tmp_path_factory.mktemp("wrong")
    with ShardWriter(out / "captions" / "a") as writer:
        writer.write("a", {"png": b"not looked at", "txt": "a red circle"})
    (out / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    found = {"CAPTIONS": out / "captions", "NO_BOXES": corpus / "train", "BYTES": out / "bytes.txt"}
    return {**found, "TEXT": corpus / "text", "IMAGE": corpus / "tower"}


MISTAKES = [
    ({"--data.train": ""}, "--data.train is missing: a shard pattern in quotes, or a folder of shards with"),
    ({"--data.train": "/nowhere/*.tar"}, "no shard matches"),
    (
        {"--data.train": "CAPTIONS"},
        "captions has no boxes: they stand in KEY.json, these shards hold png, txt",
    ),
    ({"--data.train": "NO_BOXES"}, "100 samples of train in a row cannot be used.*boxes-missing"),
    ({"--data.val": "NO_BOXES"}, "train holds no boxes: a sample's JSON lists them under objects"),
    ({"--data.weights": (1, 2)}, "2 data weights for 1 sources"),
    (
        {"--data.mosaics": (0.5, 0, 0, 0, 0.5)},
        "48 x 48 pixels cannot be a mosaic of 5 x 5 tiles: choose a size",
    ),
    ({"--data.mosaics": (-1, 1)}, "must be pairs"),
    ({"--data.templates": "clip8"}, "unknown template set 'clip8': did you mean"),
    ({"--data.num-queries": 0}, "num_queries=0 must be at least 1"),
    ({"--data.crop": 2}, "crop_scale"),
    ({"--data.forbid": "/nowhere.txt"}, "--data.forbid /nowhere.txt: "),
    ({"--data.forbid": "BYTES"}, "--data.forbid .*bytes.txt: "),
    ({"--model.pair": ""}, "--model.pair is missing: the folder of an image-text pair, or of a detector"),
    ({"--model.pair": "/nowhere"}, "no model folder at '/nowhere'"),
    ({"--model.pair": "TEXT"}, "text holds a text_tower, expected a pair of towers or a detector"),
    ({"--model.pair": "IMAGE"}, "holds a image_tower, expected a pair of towers or a detector"),
    ({"--model.image-size": 50}, r"image_size is \(50, 50\), expected multiples of patch_size=8"),
    ({"--model.pad": 300}, r"background=\(300, 300, 300\) must be three integers 0..255"),
    ({"--model.drop-path": (2, 0)}, "drop_path is 2.0, expected 0 <= drop_path < 1"),
    ({"--model.query-length": 0}, "context_length=0 must be at least 2"),
    ({"--model.frozen": "model.txt.*"}, "--model.frozen model.txt.* matches no parameter"),
    ({"--model.frozen": "(model"}, "is not a regular expression"),
    ({"--model.frozen": ".*"}, "nothing is trainable"),
    ({"--optim.lr-multipliers": "model.txt.*=0.1"}, "of --optim.*-multipliers matches no parameter"),
    ({"--train.per-example-clip": 1}, "needs a loss that is the mean of the examples' own losses"),
    (
        {"--train.per-example-clip": 1, "--loss.normalization": "per_example", "--train.micro-batch": 2},
        "leave out --train.micro-batch 2",
    ),
    ({"--train.batch-size": 0}, "global batch"),
    ({"--train.world-size": 2}, "--train.world-size 2 asked for, but 1 process"),
    ({"--resume": "/nowhere"}, "no such folder"),
    ({"--preset": "tinny"}, "did you mean tiny"),
    ({"--loss.kind": "softmax"}, "unknown option '--loss.kind': did you mean"),
    ({"--loss.normalization": "batch"}, "invalid choice 'batch'"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_say_what_to_do_in_one_line(wrong, owl, changes, said):
    changes = {name: wrong.get(value, value) for name, value in changes.items()}
    with pytest.raises(UserError, match=said) as caught:
        owl(changes)
    assert "\n" not in str(caught.value)


def test_validation_shards_are_looked_at_before_the_training(wrong, owl, losses, tmp_path):
    with pytest.raises(UserError, match="holds no boxes"):
        owl({"--data.val": wrong["NO_BOXES"]})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_command_says_it_in_one_line_and_has_help(scenes, tmp_path, forked):
    status, said = forked(options(scenes, tmp_path / "run", {"--model.frozen": "model.txt.*"}), recipe="owl")
    assert status == [2]
    error = said.splitlines()[1]
    assert error.startswith("error: --model.frozen model.txt.* matches no parameter")
    assert said.splitlines()[2:] == []
    status, said = forked(["--help"], recipe="owl")
    assert status == [0]
    for name in ("--data.train", "--data.forbid", "--model.pair", "--loss.normalization", "--train.steps"):
        assert name in said
    assert "python recipes/owl.py --preset tiny" in said
    assert "a grid of 1x1, 2x2, 3x3" in said
