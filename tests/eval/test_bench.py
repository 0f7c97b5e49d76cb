"""scripts/bench.py: every comparison runs and prints whole rows; how fast anything was is not looked at."""

import json
import re
import subprocess
import sys

import pytest

PEERS = {  # comparison -> a peer that must stand in its table, as it is run by --small
    "attention": "torch scaled_dot_product_attention",
    "vit": "timm",
    "text": "transformers BertModel",
    "pairs": "open_clip",
    "micro": "the same batch at once",
    "pictures": "",  # its peer needs packages that --small does not fetch
    "videos": "PyAV, sought and stopped by hand",
    "loss": "open_clip ClipLoss",
    "search": "",
    "processes": "1 process, 2 threads",
    "startup": "import torch",
    "owl": "transformers",
    "vatt": "transformers VideoMAEModel",
}
QUICK = ("attention",)


@pytest.fixture
def bench(root, monkeypatch):
    """bench() -> the program as a module."""
    import importlib

    monkeypatch.syspath_prepend(str(root / "scripts"))
    return lambda: importlib.import_module("bench")


def table(root, name):
    """Rows of `bench.py --small --only name` as lists of cells."""
    command = [sys.executable, "scripts/bench.py", "--small", "--rounds", "1", "--only", name]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("| work | ours | peer | unit |")
    assert set(lines[1]) <= set("|- ")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def check(rows, peer):
    assert rows
    for row in rows:
        work, ours, other, unit, ratio, aim, name = row
        assert work
        assert unit
        assert name
        if ours != "–":
            value = float(ours.replace(",", ""))
            assert value > 0 or (value == 0 and unit in ("page faults", "system ms"))  # none at all is best
        assert re.fullmatch(r"–|\d+\.\d+x", ratio)
        assert (ratio == "–") or (ours != "–" and other != "–"), row
        assert re.fullmatch(r"|[\d.]+x", aim)
    assert any(peer in row[6] for row in rows)


@pytest.mark.parametrize("name", QUICK)
def test_quick_comparison_prints_rows(root, name):
    check(table(root, name), PEERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PEERS) - set(QUICK)))
def test_comparison_prints_rows(root, name):
    check(table(root, name), PEERS[name])


def test_every_comparison_has_a_test_and_a_module(bench, root):
    benches = bench().BENCHES
    assert set(benches) == set(PEERS)
    for module, function in benches.values():
        source = (root / "scripts" / "benchmarks" / f"{module}.py").read_text()
        assert f"\ndef {function}(options: Options)" in source


def test_in_turn_alternates_and_takes_the_median_ratio(bench):
    bench()
    from benchmarks.timing import in_turn

    said = []

    def side(name, values):
        turns = iter(values)
        return lambda: said.append(name) or next(turns)

    numbers = {"ours": (1.0, 2.0, 4.0), "peer": (3.0, 4.0, 40.0)}
    row = in_turn("w", *(side(n, v) for n, v in numbers.items()), 3, unit="ms", peer_name="p")
    assert said == ["ours", "peer"] * 3
    assert (row.ours, row.peer, row.ratio) == (2.0, 4.0, 3.0)  # ratios 3, 2, 10
    sides = (side(n, v) for n, v in numbers.items())
    assert in_turn("w", *sides, 3, unit="/s", peer_name="p", better="larger").ratio == pytest.approx(1 / 3)


def test_row_shows_what_did_not_run(bench):
    bench()
    from benchmarks.timing import Row

    row = Row(work="w", ours=1234.5, peer=None, unit="ms", ratio=None, peer_name="none", note="why")
    assert str(row) == "| w | 1,234.5 | – | ms | – |  | none; why |"


def test_served_process_answers_each_call_and_reports_its_failure(bench, root):
    bench()
    from benchmarks.timing import Served

    from mmvit.errors import UserError

    place = {"PYTHONPATH": str(root / "scripts")}
    code = (
        "import json, sys; from benchmarks.timing import serve; n = [0]\n"
        "def call():\n"
        "    n[0] += 1; print('noise')\n"
        "    if n[0] > 3: raise ValueError('the fourth call')\n"
        "serve(call, {'told': json.loads(sys.argv[1])})"
    )
    with Served(code, [1, "two"], environment=place) as served:
        assert served.facts["told"] == [1, "two"]
        assert served.facts["warm_up_s"] > 0
        assert [served() >= 0, served() >= 0] == [True, True]
        with pytest.raises(UserError, match="the fourth call"):
            served()
    with pytest.raises(UserError, match="never ready"):
        Served("raise SystemExit('never ready')")


def test_drawn_photographs_are_whole_and_near_a_photographs_size(bench, tmp_path):
    bench()
    from benchmarks.photos import write_photos

    from mmvit.data.loader import read_all

    size = write_photos(tmp_path / "photos", ["one", "two", "three"])
    assert 40_000 < size < 160_000
    assert len(json.loads((tmp_path / "photos" / "index.json").read_text())["shards"]) == 2
    (batch,) = read_all(str(tmp_path / "photos"), batch_size=4)
    assert batch.captions == ["one", "two", "three"]
    assert batch.image.float().std() > 20


def test_forward_cost_falls_at_least_as_fast_as_published(bench):
    bench()
    from benchmarks.vatt import costs

    falls = [row for row in costs("vatt_mbs") if row.unit == "times"]
    assert [row.aim for row in falls] == [1.0] * 3
    for row in falls:
        assert row.ours >= row.peer, row.work


def test_counted_operations_of_a_core_are_those_of_its_products(bench):
    bench()
    from benchmarks.vatt_sides import forward_cost

    N, D, M, depth = 196 + 1, 256, 1024, 6  # vatt_tiny's clips: 4 x 7 x 7 tubelets and AGG
    whole = depth - 1  # the last block computes all keys and values, and the rest for AGG alone
    products = whole * N * (4 * D * D + 2 * D * M) + N * 2 * D * D + 2 * D * D + 2 * D * M
    attention = 2 * D * N * (whole * N + 1)
    stem = 196 * 3 * 4 * 16 * 16 * D
    assert forward_cost("vatt_tiny", 1.0)["video"] == 2 * (products + attention + stem)


def test_one_core_has_a_third_of_the_cores_parameters(bench):
    bench()
    from benchmarks.vatt_sides import parameters

    one, three = parameters("vatt_tiny_ma", True), parameters("vatt_tiny_ma", False)
    D, M, depth = 256, 1024, 6
    block = 4 * D * D + 4 * D + 2 * D * M + M + D + 4 * D
    assert three - one == 2 * (depth * block + 2 * D)


def test_hand_written_readers_read_what_ours_reads(bench):
    bench()
    from benchmarks.drawn_clips import clip
    from benchmarks.video_reading import every_frame, ours, up_to_the_end
    from benchmarks.videos import _check

    from mmvit.data.audio import AudioPreprocess
    from mmvit.data.clip import ClipPreprocess
    from mmvit.data.video import VideoPreprocess
    from mmvit.errors import UserError

    sound = AudioPreprocess(sample_rate=16_000, samples=8000)
    preprocess = ClipPreprocess(video=VideoPreprocess(size=(32, 32), frames=5), audio=sound)
    data = clip(0, 2.0, (48, 64))
    mine = ours(preprocess, True)(data, 0.73)
    whole, sought = (make(preprocess, True)(data, 0.73) for make in (every_frame, up_to_the_end))
    for peer in (whole, sought):
        _check("w", mine, peer)
    assert whole[2] == 50
    assert mine[2] < 50
    with pytest.raises(UserError, match="5 frames differ"):
        _check("w", mine, every_frame(preprocess, True)(data, 0.2))
