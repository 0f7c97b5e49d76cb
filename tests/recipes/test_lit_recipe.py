"""The recipe end to end on drawn shapes: locks, cached = live, resume = never stopped, one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvit.errors import UserError
from mmvit.hub import folder

ROOT = Path(__file__).resolve().parents[2]


def options(corpus, out, *more):
    """Tiny options in full precision on one thread."""
    base = {
        "--preset": "tiny",
        "--data.train": corpus / "train",
        "--model.tokenizer": corpus / "tokenizer",
        "--out": out,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": 12,
        "--train.save-every": 4,
        "--optim.lr": 3e-3,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    return [str(word) for pair in base.items() for word in pair]


LOCKED = ("--model.lock", "Lu")


def test_from_scratch_learns_saves_and_knows_when_it_is_done(corpus, tmp_path, recipe, losses, capsys):
    out = tmp_path / "run"
    words = options(corpus, out, "--data.val", corpus / "val", "--train.steps", 30)
    recipe("lit", *words)
    found = losses(out)
    assert len(found) == 30
    assert sum(found[-5:]) / 5 < 0.85 * sum(found[:5]) / 5
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval/acc1"] > 2 * rows[-1]["eval/chance_acc1"]
    assert rows[0]["samples_seen"] == 16
    assert {"perf/samples_per_s", "perf/data_wait", "train/logit_scale", "train/in_batch_top1"} <= set(
        rows[0]
    )
    assert rows[-2]["data/image-unreadable"] >= 1
    for name in ("config.yaml", "env.json", "log.txt", "checkpoints/step-00000030/manifest.json"):
        assert (out / name).exists(), name
    assert "trainable" in (out / "log.txt").read_text()
    loaded = folder.load(out / "model")
    z = loaded.model.encode_text(*_tokens(loaded.tokenizer, ["a red circle", "a blue bar"]))
    assert z.shape == (2, 32)
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    recipe("lit", *words)
    assert "is finished" in capsys.readouterr().out
    assert before == sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))


def _tokens(tokenizer, texts):
    tokens = tokenizer(texts)
    return tokens.ids, tokens.mask


@pytest.fixture(scope="module")
def caches(corpus, tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float16", 2e-3)])
def test_cached_equals_live(corpus, caches, tmp_path, recipe, losses, dtype, tolerance):
    cache = caches / dtype
    flags = ("--model", corpus / "tower", "--data", corpus / "train", "--dtype", dtype, "--precision", "fp32")
    recipe("embed_shards", "--preset", "tiny", *flags, "--out", cache, "--threads", 1)
    tower = ("--model.image", corpus / "tower", *LOCKED, "--model.image-center", cache / "embedding_mean.npy")
    recipe("lit", *options(corpus, tmp_path / "live", *tower))
    recipe("lit", *options(corpus, tmp_path / "cached", *tower, "--data.train", cache))
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert max(abs(a - b) for a, b in zip(live, cached, strict=True)) < tolerance
    assert len(set(live)) == len(live)
    saved = folder.load(tmp_path / "cached" / "model").model
    original = folder.load(corpus / "tower").model
    for name, value in original.state_dict().items():
        assert torch.equal(saved.image.state_dict()[name], value), name
    assert saved.image.head.mean.abs().sum() > 0


def test_a_cache_of_another_tower_or_an_unlocked_one_is_refused(corpus, caches, tmp_path, recipe):
    cache = caches / "again"
    flags = ("--model", corpus / "tower", "--data", corpus / "train", "--out", cache, "--threads", 1)
    recipe("embed_shards", "--preset", "tiny", *flags)
    other = folder.load(corpus / "tower")
    with torch.no_grad():
        other.model.cls_token.add_(1.0)
    folder.save(other.model, tmp_path / "other", preprocess=other.preprocess)
    words = options(corpus, tmp_path / "run", "--data.train", cache, *LOCKED)
    with pytest.raises(UserError, match="embedded by another tower"):
        recipe("lit", *words, "--model.image", tmp_path / "other")
    words = options(corpus, tmp_path / "run2", "--data.train", cache, "--model.lock", "Uu")
    with pytest.raises(UserError, match="need a locked first tower"):
        recipe("lit", *words, "--model.image", corpus / "tower")
    with pytest.raises(UserError, match="another fingerprint"):
        recipe("embed_shards", "--preset", "tiny", *flags, "--model", tmp_path / "other")


@pytest.mark.parametrize("lock", ["LU", "UU", "LL", "Uu", "uU"])
def test_every_lock(corpus, tmp_path, recipe, losses, lock):
    more = ["--model.lock", lock, "--model.embed-dim", 16, "--train.steps", 3, "--train.micro-batch", 5]
    if lock[0] in "LU":
        more += ["--model.image", corpus / "tower"]
    if lock[1] in "LU":
        more += ["--model.text", corpus / "text"]
    recipe("lit", *options(corpus, tmp_path / "run", *more))
    assert len(losses(tmp_path / "run")) == 3
    pair = folder.load(tmp_path / "run" / "model").model
    for side, letter, source in (("image", lock[0], "tower"), ("text", lock[1], "text")):
        if letter == "u":
            continue
        before = {k: v for k, v in folder.load(corpus / source).model.state_dict().items() if "head" not in k}
        after = getattr(pair, side).state_dict()
        kept = [torch.equal(after[name], value) for name, value in before.items()]
        assert all(kept) == (letter == "L"), (side, letter)


def test_sigmoid_duplicates_average_and_trackers(corpus, tmp_path, recipe, losses):
    more = ("--loss.kind", "sigmoid", "--loss.duplicates", "positive", "--train.average", 0.9)
    more += ("--train.trackers", "tensorboard", "--data.augment", "crop", "--optim.name", "adafactor")
    recipe("lit", *options(corpus, tmp_path / "run", *more, "--schedule.name", "rsqrt", "--train.steps", 4))
    assert len(losses(tmp_path / "run")) == 4
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert folder.load(tmp_path / "run" / "model").model.logit_bias.item() < -5


def test_wrong_options_are_one_line_and_exit_code_2(corpus, tmp_path):
    words = options(corpus, tmp_path / "run", "--optim.lrate", 1)
    line, environment = (
        [sys.executable, ROOT / "recipes" / "lit.py", *words],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    said = done.stderr
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: unknown option '--optim.lrate': did you mean --optim.lr")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--train.world-size", 2), "--train.world-size 2 asked for, but 1 process"),
        (("--model.lock", "LX"), "two letters"),
        (("--model.lock", "Lu"), "needs pretrained weights"),
        (("--model.image", "TOWER"), "starts the image tower from scratch"),
        (("--model.image", "vit_tinny"), "no folder or preset 'vit_tinny': did you mean"),
        (("--model.tokenizer", "/nowhere"), "nowhere"),
        (("--data.train", "/nowhere/*.tar"), "no shard matches"),
        (("--data.train", ""), "--data.train is missing"),
        (("--train.batch-size", 0), "global batch"),
        (("--train.precision", "fp16"), "needs a GPU"),
        (("--resume", "/nowhere"), "no such folder"),
        (("--preset", "tinny"), "did you mean tiny"),
        (("--train.steps", "many"), "--train.steps"),
        (("--schedule.warmup", 20), "do not fit"),
        (("--model.image-center", "/nowhere.npy"), "/nowhere.npy"),
    ],
)
def test_mistakes_say_what_to_do(corpus, tmp_path, recipe, more, words):
    if torch.cuda.is_available() and "fp16" in more:
        pytest.skip("a GPU is here")
    more = [corpus / "tower" if word == "TOWER" else word for word in more]
    with pytest.raises(UserError, match=words):
        recipe("lit", *options(corpus, tmp_path / "run", *more))


def test_a_launcher_that_silently_starts_one_process_is_caught(corpus, tmp_path, recipe, monkeypatch):
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("ACCELERATE_USE_CPU", "True")):
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` leaves behind
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="starts only one; use ACCELERATE_USE_CPU=true torchrun"):
        recipe("lit", *options(corpus, tmp_path / "run"))


def test_two_processes_equal_one(corpus, caches, tmp_path, recipe, losses, forked):
    """Embedding, training, evaluation and saving on two gloo ranks."""
    flags = (
        "--preset",
        "tiny",
        "--model",
        corpus / "tower",
        "--data",
        corpus / "train",
        "--precision",
        "fp32",
    )
    recipe("embed_shards", *flags, "--out", tmp_path / "one", "--threads", 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = [*launcher, ROOT / "recipes" / "embed_shards.py", *flags, "--out", tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(map(str, program), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for shard in sorted((tmp_path / "one").glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
    assert (tmp_path / "one" / "index.json").read_text() == (tmp_path / "two" / "index.json").read_text()
    more = ("--data.val", corpus / "val", "--model.image", corpus / "tower", *LOCKED, "--train.eval-every", 6)
    recipe("lit", *options(corpus, tmp_path / "alone", *more, "--data.train", tmp_path / "one"))
    words = options(corpus, tmp_path / "pair", *more, "--data.train", tmp_path / "two")
    status, said = forked([*words, "--train.world-size", "2"], world=2)
    assert status == [0, 0], said
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), abs=2e-5)
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "pair")
    ]
    one, two = ([row for row in run if "eval/rsum" in row] for run in rows)
    assert len(one) == len(two) == 2
    assert two[-1]["eval/acc5"] == pytest.approx(one[-1]["eval/acc5"], abs=0.05)


def test_killed_between_the_last_checkpoint_and_the_model(corpus, tmp_path, recipe):
    import shutil

    words = options(corpus, tmp_path / "run", "--train.steps", 2)
    recipe("lit", *words)
    want = folder.load(tmp_path / "run" / "model").fingerprint
    shutil.rmtree(tmp_path / "run" / "model")
    recipe("lit", *words)
    assert folder.load(tmp_path / "run" / "model").fingerprint == want


def test_frozen_patterns(corpus, tmp_path, recipe):
    words = options(corpus, tmp_path / "run", "--model.text", corpus / "text", "--model.lock", "uU")
    recipe("lit", *words, "--model.frozen", r"model\.text\.core\..*", "--train.steps", 2)
    before, after = (
        folder.load(corpus / "text").model.state_dict(),
        folder.load(tmp_path / "run" / "model").model.text.state_dict(),
    )
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("core.")} <= same
    assert "pos_embed" not in same
    with pytest.raises(UserError, match="matches no parameter"):
        recipe("lit", *words, "--out", tmp_path / "other", "--model.frozen", "model.txt.*")


def test_never_refuses_a_folder_with_checkpoints(corpus, tmp_path, recipe):
    words = options(corpus, tmp_path / "run", "--train.steps", 2)
    recipe("lit", *words)
    with pytest.raises(UserError, match="holds checkpoints of an earlier run"):
        recipe("lit", *words, "--resume", "never", "--train.steps", "3")


@pytest.mark.filterwarnings("ignore:.*events.*")
def test_a_profiled_run_has_the_same_losses(corpus, tmp_path, recipe, losses):
    recipe("lit", *options(corpus, tmp_path / "plain", "--train.steps", 6))
    recipe("lit", *options(corpus, tmp_path / "profiled", "--train.steps", 6, "--train.profile", 2))
    assert losses(tmp_path / "profiled") == losses(tmp_path / "plain")
    folder = tmp_path / "profiled" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"aten::mm", "Optimizer.step#AdamW.step"} <= names
    log = (tmp_path / "profiled" / "log.txt").read_text()
    assert all(line in log for line in (folder / "top.txt").read_text().splitlines())
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_losses(corpus, tmp_path, recipe, losses):
    deep = ("--model.text-options", "depth=2")
    recipe("lit", *options(corpus, tmp_path / "plain", "--train.steps", 6, *deep))
    recipe("lit", *options(corpus, tmp_path / "compiled", "--train.steps", 6, *deep), "--train.compile")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=2e-5)
    assert "blocks will be compiled" in (tmp_path / "compiled" / "log.txt").read_text()
