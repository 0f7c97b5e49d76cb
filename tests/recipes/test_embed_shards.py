"""Cached features: the right numbers at the right place, views fixed by key, resumable shard by shard."""

import json

import numpy as np
import pytest
import torch

from mmvit.data.cache import read_cache
from mmvit.data.embedding import read_views
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError
from mmvit.hub import folder


def flags(corpus, out, *more):
    base = ("--preset", "tiny", "--model", corpus / "tower", "--data", corpus / "train", "--out", out)
    return (*base, "--precision", "fp32", "--threads", 1, *more)


def test_features_texts_and_order_are_the_sources(corpus, tmp_path, recipe, capsys):
    recipe("embed_shards", *flags(corpus, tmp_path, "--dtype", "float32", "--batch-size", 7))
    assert "without a picture: image-unreadable 1" in capsys.readouterr().out
    source, twin = ShardIndex.open(str(corpus / "train")), ShardIndex.open(str(tmp_path))
    assert [s.samples for s in twin.shards] == [s.samples for s in source.shards] == [25, 25, 20]
    loaded = folder.load(corpus / "tower")
    seen = []
    for i in range(source.samples):
        raw, cached = source.read(i), twin.read(i)
        assert cached["__key__"] == raw["__key__"]
        assert (cached["txt"], cached["json"]) == (raw["txt"], raw["json"])
        if raw["png"] == b"broken":
            assert "npy" not in cached
            continue
        with torch.no_grad():
            want = loaded.model.features(loaded.preprocess(raw["png"])[None])[0].numpy()
        seen.append(read_views(cached["npy"])[0])
        np.testing.assert_allclose(seen[-1], want, atol=2e-5)
    cache = read_cache(str(tmp_path))
    assert cache.dim == 32
    np.testing.assert_allclose(cache.mean.numpy(), np.mean(seen, 0), atol=1e-6)
    pair = read_cache(f"{tmp_path}::{tmp_path}")
    torch.testing.assert_close(pair.mean, cache.mean)
    assert read_cache(str(corpus / "train")) is None
    with pytest.raises(UserError, match="cache all sources or none"):
        read_cache(f"{tmp_path}::{corpus / 'train'}")


def test_views_are_a_function_of_key_and_view(corpus, tmp_path, recipe):
    more = ("--views", 3, "--dtype", "float32", "--flip", 0.5)
    recipe("embed_shards", *flags(corpus, tmp_path / "a", *more))
    recipe("embed_shards", *flags(corpus, tmp_path / "b", *more, "--workers", 1, "--batch-size", 16))
    one, two = (ShardIndex.open(str(tmp_path / name)) for name in "ab")
    import random

    loaded = folder.load(corpus / "tower")
    for i in (0, 30):
        views, again = read_views(one.read(i)["npy"]), read_views(two.read(i)["npy"])
        assert views.shape == (3, 32)
        np.testing.assert_allclose(views, again, atol=2e-5)
        assert abs(views[1] - views[2]).max() > 1e-3
        png = ShardIndex.open(str(corpus / "train")).read(i)["png"]
        rng = random.Random(f"0:{one.key(i)}:2")
        pixels = ImageAugment(flip=0.5)(png, ImagePreprocess(size=(16, 16)), rng)
        with torch.no_grad():
            want = loaded.model.features(pixels[None])[0].numpy()
        np.testing.assert_allclose(views[2], want, atol=2e-5)


def test_goes_on_where_it_was_interrupted(corpus, tmp_path, recipe, capsys):
    recipe("embed_shards", *flags(corpus, tmp_path))
    whole = {p.name: p.read_bytes() for p in tmp_path.glob("*.tar")}
    index = (tmp_path / "index.json").read_text()
    (tmp_path / "shapes-000001.tar").unlink()
    (tmp_path / ".shapes-000002.stats.json").unlink()
    (tmp_path / "index.json").unlink()
    untouched = (tmp_path / "shapes-000000.tar").stat().st_mtime_ns
    capsys.readouterr()
    recipe("embed_shards", *flags(corpus, tmp_path))
    assert "3 shards, 1 done; 45 samples to embed" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.tar")} == whole
    assert json.loads((tmp_path / "index.json").read_text()) == json.loads(index)
    assert (tmp_path / "shapes-000000.tar").stat().st_mtime_ns == untouched
    with pytest.raises(UserError, match="another views"):
        recipe("embed_shards", *flags(corpus, tmp_path, "--views", 2))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--model", "/nowhere"), "/nowhere"),
        (("--model", "TEXT"), "text_tower"),
        (("--data", "/nowhere"), "/nowhere"),
        (("--views", 0), "at least 1"),
        (("--out", "SAME"), "where the shards are"),
        (("--veiws", 2), "did you mean --views"),
    ],
)
def test_mistakes(corpus, tmp_path, recipe, more, words):
    places = {"TEXT": corpus / "text", "SAME": corpus / "train"}
    with pytest.raises(UserError, match=words):
        recipe("embed_shards", *flags(corpus, tmp_path), *(places.get(word, word) for word in more))
