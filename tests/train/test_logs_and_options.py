"""Rows, lines and options: what a person reads and writes."""

import json
import logging
import os
import signal
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator

from mmvit.errors import UserError
from mmvit.options import option_names, parse
from mmvit.train.log import LOGGER, RunLog, flatten, plain, show
from mmvit.train.meters import Meters
from mmvit.train.setup import choose_precision, has_fast_bf16, set_threads
from mmvit.train.signals import StopRequest


@dataclass(frozen=True)
class Part:
    """Part of it.

    Attributes:
        rate: how fast.
        names: which ones.
    """

    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    preset: str = "a"
    batch_size: int = 4
    on: bool = False
    part: Part = field(default_factory=Part)


PRESETS = {"a": Whole(), "b": Whole(batch_size=8, part=Part(rate=0.5))}


def test_options_override_the_preset():
    assert parse(Whole, PRESETS, []) == PRESETS["a"]
    assert parse(Whole, PRESETS, ["--preset", "b"]).part.rate == 0.5
    got = parse(Whole, PRESETS, ["--part.names", "x", "y=1", "--preset=b", "--batch-size", "2", "--on"])
    assert got == Whole("b", 2, True, Part(0.5, ("x", "y=1")))
    assert option_names(Whole) == [
        "--preset",
        "--batch-size",
        "--on",
        "--no-on",
        "--part.rate",
        "--part.names",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part.ratee", "1"], "unknown option '--part.ratee': did you mean --part.rate"),
        (["--preset", "c"], "unknown preset 'c'"),
        (["--batch-size", "x"], "--batch-size"),
        (["--batch-size"], "--batch-size"),
        (["stray"], "'stray' is not an option"),
    ],
)
def test_wrong_options_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        parse(Whole, PRESETS, words)
    assert "\n" not in str(error.value)


def test_flat_configs_and_plain_values():
    assert flatten(Whole()) == {
        "preset": "a",
        "batch_size": 4,
        "on": False,
        "part.rate": 0.1,
        "part.names": "",
    }
    row = plain({"a": torch.tensor(1.5), "b": float("nan"), "c": (1, None), "d": {2: "x"}})
    assert row == {"a": 1.5, "b": None, "c": [1, None], "d": {"2": "x"}}
    assert show({"train/loss": 1.0, "perf/data_wait": 0.25, "eval/acc1": 0.5}).split() == [
        "loss=1",
        "data_wait=25%",
        "eval/acc1=0.5",
    ]


def test_metrics_rows_survive_a_torn_line_and_a_rewind(tmp_path):
    log = RunLog(tmp_path, Accelerator(cpu=True), 10).open()
    try:
        for step in (1, 2, 3):
            log.metrics(step, step * 4, {"train/loss": 1.0 / step, "train/bad": float("nan")})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "tr')
        log.rewind(2)
        log.metrics(3, 12, {"train/loss": 9.0})
    finally:
        log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["train/loss"]) for r in rows] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert rows[0]["train/bad"] is None
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert "step= 1/10 loss=1" in lines[0]
    assert not LOGGER.handlers


def test_meters_mean_over_the_interval():
    meters = Meters()
    assert list(meters.timed([1, 2])) == [1, 2]
    for loss in (1.0, 2.0):
        meters.add({"loss": loss}, 16)
    meters.total(broken=2, truncated=0)
    row = meters.read()
    assert row["train/loss"] == 1.5
    assert row["data/broken"] == 2
    assert row["perf/samples_per_s"] > 0
    assert 0 <= row["perf/data_wait"] <= 1
    assert row["perf/memory_gib"] > 0.05
    assert "train/loss" not in meters.read()


def test_signals_ask_and_a_second_interrupt_insists():
    stop = StopRequest().install()
    try:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.remove()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_precision_and_threads(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("auto") == ("bf16" if has_fast_bf16() else "fp32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision("auto") == "bf16"
    with pytest.raises(UserError, match="fp64"):
        choose_precision("fp64")
    before = torch.get_num_threads()
    try:
        assert set_threads(2, torch.device("cpu")) == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        assert set_threads(0, torch.device("cpu")) == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
        assert set_threads(0, torch.device("cpu")) == 1
    finally:
        torch.set_num_threads(before)


def test_only_rank_zero_speaks(caplog):
    assert LOGGER.name == "mmvit"
    with caplog.at_level(logging.INFO, "mmvit"):
        LOGGER.info("heard")
    assert "heard" in caplog.text
