"""recipes/vatt.py end to end on drawn clips, tones and pictures: losses, mixtures, options, errors."""

import pytest
import torch

import mmvit
from mmvit.errors import UserError
from mmvit.hub import folder
from mmvit.tasks.vatt import VattTask
from tests.recipes.run_folders import rows
from tests.recipes.vatt_options import THREE, options
from tests.recipes.vatt_shards import build


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return build(tmp_path_factory.mktemp("media"))


@pytest.fixture
def vatt(media, tmp_path, recipe):
    """vatt(changes, name, sources) -> folder of a run of three steps with these changes."""

    def run(changes=(), name="run", **more):
        recipe("vatt", *options(media, tmp_path / name, {"--train.steps": 3, **dict(changes)}, **more))
        return tmp_path / name

    return run


@pytest.fixture
def batches(monkeypatch):
    """The batches whose loss is computed from now on."""
    seen, inner = [], VattTask.loss
    monkeypatch.setattr(VattTask, "loss", lambda self, e, b: (seen.append(b), inner(self, e, b))[1])
    return seen


def trained(out):
    """The rows of a run's training steps."""
    return [row for row in rows(out) if "train/loss" in row]


@pytest.mark.parametrize("shared", [True, False])
def test_a_mixture_of_everything_trains_both_variants(shared, vatt, batches):
    out = vatt({"--train.batch-size": 16, **({} if shared else THREE)})
    found = trained(out)
    assert [row["step"] for row in found] == [1, 2, 3]
    for row in found:
        assert row["train/loss"] == pytest.approx((row["train/loss_va"] + row["train/loss_vt"]) / 2, abs=1e-6)
        assert 0 < row["train/rows_audio"] < 1
        assert 0 < row["train/rows_text"] < 1
        assert 0 < row["train/rows_video"] < 1
    for batch in batches:
        kinds = [key.rstrip("0123456789") for key in batch.keys]
        assert batch.video_mask.tolist() == [k in ("clips", "silent", "unnamed") for k in kinds]
        assert batch.audio_mask.tolist() == [k in ("clips", "unnamed", "sounds") for k in kinds]
        assert batch.image_mask.tolist() == [k == "stills" for k in kinds]
        assert batch.candidate_mask.any(1).tolist() == [k != "unnamed" for k in kinds]
    saved = folder.load(out / "model")
    assert saved.config["kind"] == "vatt"
    assert saved.model.config.shared == shared
    cores = {id(tower.core) for tower in (saved.model.video, saved.model.audio, saved.model.text)}
    assert len(cores) == (1 if shared else 3)
    assert mmvit.load(out / "model") is not None


def test_it_begins_near_chance_and_learns(vatt, losses):
    changes = {"--train.steps": 16, "--train.batch-size": 12, "--train.save-every": 0, "--optim.lr": 2e-3}
    out = vatt(changes, sources=("clips",))
    found = losses(out)
    assert sum(found[-4:]) < sum(found[:4])
    assert found[0] < 2 * 3.2  # ln 24 = 3.18 is chance at 12 rows
    assert min(found) > 0.69  # ln 2


def test_runs_are_repeatable_and_seeds_matter(vatt, losses):
    first, again, other = vatt(name="a"), vatt(name="b"), vatt({"--train.seed": 1}, name="c")
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


def test_dropping_is_on_by_default_and_can_be_off(vatt, monkeypatch, losses):
    kept, inner = [], VattTask._keep

    def keep(self, *args):
        found = inner(self, *args)
        kept.append((args[0], None if found is None else found.shape[1]))
        return found

    monkeypatch.setattr(VattTask, "_keep", keep)
    default = vatt(name="half", sources=("clips",))
    assert set(kept) == {("video", 4), ("audio", 50)}
    kept.clear()
    off = vatt({"--loss.keep-rate": 1, "--loss.audio-keep-rate": 1}, name="all", sources=("clips",))
    assert set(kept) == {("video", None), ("audio", None)}
    assert losses(default) != losses(off)


@pytest.mark.parametrize(
    ("weights", "idle", "fields", "sources"),
    [
        ({"--loss.vt": 0}, "text", {"video", "audio", "image"}, ("clips", "sounds", "stills")),
        ({"--loss.va": 0}, "audio", {"video", "image", "candidates"}, ("clips", "stills")),
        (
            {"--loss.va": 0, "--loss.vt": 0, "--loss.at": 1},
            "video",
            {"audio", "candidates"},
            ("clips", "sounds"),
        ),
    ],
)
def test_what_no_term_compares_is_neither_read_nor_trained(weights, idle, fields, sources, vatt, batches):
    out = vatt({**weights, **THREE, "--train.batch-size": 8, "--train.save-every": 0}, sources=sources)
    have = {
        name for name in ("video", "audio", "image", "candidates") if getattr(batches[0], name) is not None
    }
    assert have == fields
    first = vatt({**weights, **THREE, "--train.steps": 1, "--optim.lr": 1e-12}, name="one", sources=sources)
    one, other = (folder.load(o / "model").model.state_dict() for o in (out, first))
    moved = {n.split(".")[0] for n in one if not torch.allclose(one[n], other[n], atol=1e-9)}
    assert idle not in moved
    assert {"video", "audio", "text"} - {idle} <= moved


def test_sources_without_a_modality_at_all(vatt):
    found = trained(vatt(sources=("silent",)))
    assert {row["train/loss_va"] for row in found} == {0.0}
    assert {row["train/rows_audio"] for row in found} == {0.0}
    assert all(row["train/loss_vt"] > 0 for row in found)


def test_micro_batches_give_the_same_losses(vatt, losses):
    changes = {"--train.batch-size": 8, "--train.steps": 3}
    plain, cached = vatt(changes, name="plain"), vatt({**changes, "--train.micro-batch": 3}, name="cached")
    assert losses(cached) == pytest.approx(losses(plain), abs=2e-3)


def test_a_saved_model_goes_on_as_it_is(vatt):
    trained_before = vatt(name="first") / "model"
    first = folder.load(trained_before)
    on = {"--model.name": trained_before, "--model.tokenizer": "", "--optim.lr": 1e-12, "--train.steps": 1}
    for rate, fps in ((0, 4.0), (2, 2.0)):  # 0: the model's own, else what was asked for
        saved = folder.load(vatt({**on, "--data.fps": rate}, name=f"on{rate}") / "model")
        assert saved.preprocess.video.fps == fps
        assert saved.preprocess.audio == first.preprocess.audio
        weights = dict(saved.model.named_parameters())
        for name, value in first.model.named_parameters():
            torch.testing.assert_close(weights[name], value, atol=1e-9, rtol=0)
    with pytest.raises(UserError, match=r"is a saved model: core.width=32 cannot change it"):
        vatt({**on, "--model.options": ("core.width=32",)}, name="wider")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data.train": ""}, "--data.train is missing"),
        ({"--model.tokenizer": ""}, "needs --model.tokenizer"),
        ({"--model.name": "vatt_huge"}, "vatt_huge"),
        ({"--model.frozen": "model.smell.*"}, r"--model.frozen model.smell.\* matches no parameter"),
        ({"--optim.weight-decay": 0.1}, "--optim.weight-decay is 0.1, and adam"),
        ({"--schedule.floor": 2}, "--schedule.floor is a share 0..1 of the peak rate, got 2"),
        ({"--data.use": ("video", "smell")}, "got 'smell'"),
        ({"--train.per-example-clip": 1}, "--train.per-example-clip needs a loss"),
    ],
)
def test_mistakes_are_one_line(changes, message, vatt):
    with pytest.raises(UserError, match=message) as caught:
        vatt(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--loss.keep-rate": 0}, "keep_rate is the share of tokens that stay, above 0 to 1, got 0"),
        ({"--loss.va": 0, "--loss.vt": 0}, "weights are at least 0 and one is above"),
        ({"--loss.duplicates": "positive"}, "invalid choice 'positive' for argument '--loss.duplicates'"),
        ({"--data.candidates": 0}, "num_candidates is at least 1, got 0"),
    ],
)
def test_mistakes_in_the_options_of_the_task_are_one_line(changes, message, vatt):
    with pytest.raises(UserError, match=message) as caught:
        vatt(changes)
    assert "\n" not in str(caught.value)
