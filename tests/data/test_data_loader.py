import itertools
import logging
import os
import pickle
import signal
import time
from collections import Counter

import pytest
import torch

from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.loader import make_loader, read_all
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError

SMALL = ImagePreprocess(size=(6, 6))
UNEVEN = ([60], [7] * 8 + [4], [1, 2, 3, 4, 50], [20, 20, 20])


def run(urls, n, *, batch=12, ranks=1, workers=0, start=0, **options):
    """The batches of every rank: [rank][batch]."""
    out = []
    for rank in range(ranks):
        options = {"fields": ("text",), "preprocess": SMALL, **options}
        with make_loader(
            urls, batch_size=batch, rank=rank, world_size=ranks, workers=workers, start_position=start,
            num_batches=n, **options,
        ) as loader:  # fmt: skip
            out.append(list(loader))
            assert loader.samples_seen == start + n * batch
    return out


def content(ranks) -> list[tuple[list[str], list[str]]]:
    """(keys, captions) of each global batch."""
    return [
        (sum((b.keys for b in parts), []), sum((b.captions for b in parts), []))
        for parts in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Folders with 60 samples each, cut into shards in different ways."""
    folders = []
    for k, sizes in enumerate(UNEVEN):
        folder = tmp_path_factory.mktemp(f"uneven{k}")
        numbers = itertools.count()
        for j, size in enumerate(sizes):
            with ShardWriter(folder / f"p{j}", 1000) as writer:
                for i in itertools.islice(numbers, size):
                    writer.write(f"s{i:05d}", {"txt": f"caption {i}", "json": {"texts": [f"other {i}"]}})
        folders.append(str(folder))
    return folders


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", range(len(UNEVEN)))
def test_every_sample_once_an_epoch_for_any_ranks_and_shards(uneven, layout, ranks):
    batches = content(run(uneven[layout], 15, ranks=ranks))
    for epoch in range(3):
        keys = sum((k for k, _ in batches[5 * epoch : 5 * epoch + 5]), [])
        assert sorted(keys) == [f"s{i:05d}" for i in range(60)]
    assert batches == content(run(uneven[layout], 15)), "ranks only share out the same batches"


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (1, 4)])
def test_workers_change_nothing(uneven, ranks, workers):
    assert content(run(uneven[2], 8, ranks=ranks, workers=workers)) == content(run(uneven[2], 8))


def by_hand(urls, n, *, batch=12, ranks=1, workers=0, start=0, **options):
    """`run` without processes: packet k as worker k mod workers makes it, on a copy of its own.

    That is all a worker is to a map-style dataset: `Workers` gives index k to worker k mod workers and hands
    the answers out in order.
    """
    out = []
    for rank in range(ranks):
        options = {"fields": ("text",), "preprocess": SMALL, **options}
        loader = make_loader(
            urls, batch_size=batch, rank=rank, world_size=ranks, workers=0, start_position=start, **options
        )
        packets = {}
        for worker in reversed(range(max(1, workers))):
            own = pickle.loads(pickle.dumps(loader.dataset))
            packets |= {k: own[k] for k in range(worker, n, max(1, workers))}
        assert all(packets[k].failure is None for k in range(n))
        out.append([packets[k].batch for k in range(n)])
    return out


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", range(len(UNEVEN)))
def test_every_sample_once_for_all_ranks_workers_and_shards(uneven, layout, ranks):
    """20 combinations of ranks and workers for each of 4 layouts; the slow form takes real processes."""
    want = content(run(uneven[layout], 10))
    for workers in range(5):
        batches = content(by_hand(uneven[layout], 10, ranks=ranks, workers=workers))
        assert batches == want
        for epoch in range(2):
            keys = sum((k for k, _ in batches[5 * epoch : 5 * epoch + 5]), [])
            assert sorted(keys) == [f"s{i:05d}" for i in range(60)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", range(len(UNEVEN)))
def test_every_sample_once_with_real_workers(uneven, layout, ranks, workers):
    batches = content(run(uneven[layout], 10, ranks=ranks, workers=workers))
    assert batches == content(run(uneven[layout], 10))
    assert sorted(sum((k for k, _ in batches[:5]), [])) == [f"s{i:05d}" for i in range(60)]


def test_batches_straddle_epochs_without_loss(shards):
    keys = sum((k for k, _ in content(run(shards, 12, batch=25))), [])
    assert len(keys) == 300
    for epoch in range(5):
        assert len(set(keys[60 * epoch : 60 * epoch + 60])) == 60
    assert keys[:60] != keys[60:120]
    other = sum((k for k, _ in content(run(shards, 12, batch=25, seed=1))), [])
    assert other != keys


@pytest.mark.parametrize(("start", "workers", "batch"), [(36, 0, 12), (36, 2, 12), (36, 1, 9), (7, 0, 12)])
def test_resume_equals_never_stopped(shards, start, workers, batch):
    options = {"fields": ("image", "image_embedding", "text"), "augment": ImageAugment(), "caption": "random"}
    (whole,) = run(shards, 120 // 12, batch=12, **options)
    (rest,) = run(shards, 4, batch=batch, start=start, workers=workers, **options)
    flat = [s for b in whole for s in zip(b.keys, b.captions, b.image, b.image_embedding, strict=True)]
    again = [s for b in rest for s in zip(b.keys, b.captions, b.image, b.image_embedding, strict=True)]
    for one, two in zip(flat[start:], again, strict=False):
        assert one[:2] == two[:2]
        assert torch.equal(one[2], two[2])
        assert torch.equal(one[3], two[3])
    assert [b.position for b in rest] == [start + k * batch for k in range(4)]


def test_what_is_random_changes_from_epoch_to_epoch(shards):
    (batches,) = run(shards, 20, fields=("image", "image_embedding", "text"), augment=ImageAugment())
    seen: dict[str, list] = {}
    for batch in batches:
        for key, caption, image, view in zip(
            batch.keys, batch.captions, batch.image, batch.image_embedding, strict=True
        ):
            seen.setdefault(key, []).append((caption, image.float().mean().item(), view[0].item()))
    assert all(len(draws) == 4 for draws in seen.values())
    assert sum(len({d[0] for d in draws}) == 2 for draws in seen.values()) > 40
    assert sum(len({d[1] for d in draws}) > 1 for draws in seen.values()) > 50
    assert sum(len({d[2] for d in draws}) == 2 for draws in seen.values()) > 40


def test_nothing_is_drawn_from_the_programs_generator(shards):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    run(shards, 2)
    assert torch.equal(torch.rand(3), want)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory, write_shards) -> str:
    one = write_shards(tmp_path_factory.mktemp("one") / "a", 40, prefix="a")
    two = write_shards(tmp_path_factory.mktemp("two") / "b", 10, prefix="b")
    return f"{one}::{two}"


def test_sources_without_weights_are_one_epoch(two_sources):
    keys = sum((k for k, _ in content(run(two_sources, 5, batch=10))), [])
    assert len(set(keys)) == 50


def test_sources_with_weights_keep_their_proportions_and_orders(two_sources):
    for ranks, workers in [(1, 0), (2, 0), (1, 2)]:
        keys = sum((k for k, _ in content(run(two_sources, 12, batch=10, ranks=ranks, workers=workers,
                                              weights=(1, 1)))), [])  # fmt: skip
        ones, twos = [[k for k in keys if k[0] == letter] for letter in "ab"]
        assert len(ones) == len(twos) == 60
        assert len(set(ones[:40])) == 40
        assert all(len(set(twos[10 * e : 10 * e + 10])) == 10 for e in range(6))
    pure = content(run(two_sources, 12, batch=10, weights=(3, 1), pure_batches=True))
    letters = ["".join(sorted({k[0] for k in keys})) for keys, _ in pure]
    assert Counter(letters) == {"a": 9, "b": 3}


def test_each_source_keeps_its_own_order_whatever_the_others_do(two_sources):
    """For 1-4 ranks x 0-4 workers, any weights, and a restart with other ranks and workers."""
    orders: dict[str, list] = {"a": [], "b": []}
    for weights in ((1, 1), (3, 1), (1, 4)):
        want = content(run(two_sources, 20, weights=weights))
        flat = sum((k for k, _ in want), [])
        for letter, size in (("a", 40), ("b", 10)):
            own = [k for k in flat if k[0] == letter]
            for end in range(size, len(own) + 1, size):
                assert len(set(own[end - size : end])) == size, (
                    "every sample once in each epoch of its source"
                )
            longer, shorter = sorted((orders[letter], own), key=len, reverse=True)
            assert longer[: len(shorter)] == shorter, "the weights do not change a source's order"
            orders[letter] = longer
        combinations = itertools.product((1, 2, 3, 4), range(5)) if weights == (3, 1) else [(2, 2)]
        for ranks, workers in combinations:
            options = {"weights": weights, "ranks": ranks, "workers": workers}
            assert content(by_hand(two_sources, 4, **options)) == want[:4]
            start = 12 * (1 + ranks) + workers  # in the middle of a batch as well
            again = sum((k for k, _ in content(by_hand(two_sources, 4, start=start, **options))), [])
            assert again == flat[start : start + 48]
    assert len(orders["a"]) > 160
    assert len(orders["b"]) > 160


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (1, 2)])
def test_sources_with_weights_go_on_with_real_workers(two_sources, ranks, workers):
    options = {"weights": (3, 1), "ranks": ranks, "workers": workers}
    flat = sum((k for k, _ in content(run(two_sources, 12, weights=(3, 1)))), [])
    assert sum((k for k, _ in content(run(two_sources, 6, start=60, **options))), []) == flat[60:132]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> str:
    """100 samples of which every twentieth has no caption."""
    folder = tmp_path_factory.mktemp("damaged")
    with ShardWriter(folder / "d", 30) as writer:
        for i in range(100):
            writer.write(f"s{i:03d}", {"txt": "" if i % 20 == 0 else f"caption {i}", "json": {"label": i}})
    return str(folder)


def test_bad_samples_are_replaced_counted_and_logged_sparsely(damaged, caplog):
    with (
        caplog.at_level(logging.WARNING),
        make_loader(damaged, batch_size=20, num_batches=10, fields=("text",), max_bad_rate=0.2) as loader,
    ):
        batches = list(loader)
    assert all(len(b) == 20 for b in batches)
    assert loader.skipped["text-empty"] >= 10, "five in each of two epochs, and unlucky replacements"
    assert sum((Counter(b.skipped) for b in batches), Counter()) == loader.skipped
    assert loader.drawn == 200 + loader.skipped.total()
    assert len(caplog.records) == 1
    assert "text-empty" in caplog.text
    assert "s0" in caplog.text
    again = content(run(damaged, 10, batch=20, ranks=2, workers=1, max_bad_rate=0.2))
    assert again == content([batches]), "replacements are the same for any ranks and workers"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(damaged, workers):
    loader = make_loader(damaged, batch_size=20, fields=("text",), max_bad_rate=0.01, workers=workers)
    with pytest.raises(UserError, match=r"text-empty \d+.*max-bad-rate 0.01"):
        list(loader)
    assert loader.drawn >= 200
    assert loader._iterator is None, "the workers are gone"


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_one_error(tmp_path, workers):
    with ShardWriter(tmp_path / "e") as writer:
        for i in range(5):
            writer.write(f"s{i}", {"txt": " "})
    loader = make_loader(str(tmp_path), batch_size=2, fields=("text",), workers=workers)
    with pytest.raises(UserError, match="100 samples of .* in a row") as error:
        next(iter(loader))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_one_error(shards):
    with make_loader(shards, batch_size=4, fields=("text",), workers=1, prefetch=1) as loader:
        batches = iter(loader)
        next(batches)
        os.kill(loader._iterator.processes[0].pid, signal.SIGKILL)
        time.sleep(0.5)  # the death must not surface here, in the middle of the program
        with pytest.raises(UserError, match=r"worker died .*--data\.workers"):
            list(itertools.islice(batches, 50))


def test_a_worker_serves_on_after_the_first_sigterm(shards):
    """Launchers signal the whole group, and the step in hand needs its batch; a second one ends it."""
    with make_loader(shards, batch_size=4, num_batches=12, fields=("text",), workers=1, prefetch=1) as loader:
        batches, found = iter(loader), []
        found.append(next(batches))
        (worker,) = loader._iterator.processes
        os.kill(worker.pid, signal.SIGTERM)
        found += batches
        assert worker.is_alive() or worker.exitcode == 0
    assert content([found]) == content(run(shards, 12, batch=4))


def test_other_ways_to_start_workers(shards, sentencepiece):
    options = {"fields": ("image", "text"), "tokenizer": sentencepiece, "augment": ImageAugment()}
    (spawned,) = run(shards, 2, workers=1, start_method="spawn", **options)
    (here,) = run(shards, 2, **options)
    for one, two in zip(spawned, here, strict=True):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.text, two.text)


def test_start_up_errors(shards, tmp_path):
    for options, message in [
        ({"batch_size": 10, "world_size": 4}, "multiple of the 4"),
        ({"batch_size": 0}, "positive"),
        ({"batch_size": 2, "workers": -1}, "workers=-1"),
        ({"batch_size": 2, "weights": (1, 2)}, "2 data weights for 1 sources"),
        ({"batch_size": 2, "fields": ("sound",)}, "unknown data field 'sound'"),
    ]:
        with pytest.raises(UserError, match=message):
            make_loader(shards, **options)
    with pytest.raises(UserError, match="empty pattern"):
        make_loader(f"{shards}::", batch_size=2)
    with ShardWriter(tmp_path / "t") as writer:
        writer.write("k", {"txt": "x"})
    with pytest.raises(UserError, match="has no image"):
        make_loader(str(tmp_path), batch_size=1)
    with pytest.raises(TypeError, match="endless"):
        len(make_loader(shards, batch_size=2))


@pytest.mark.parametrize(("ranks", "workers", "batch"), [(1, 0, 7), (2, 0, 8), (3, 1, 9), (4, 0, 100)])
def test_read_all_gives_every_sample_once_in_order(shards, sentencepiece, ranks, workers, batch):
    keys, numbers = [], []
    for rank in range(ranks):
        with read_all(
            shards, batch_size=batch, rank=rank, world_size=ranks, workers=workers, preprocess=SMALL,
            tokenizer=sentencepiece,
        ) as loader:  # fmt: skip
            for b in loader:
                keys += b.keys
                numbers += [m["__index__"] for m in b.meta]
                assert b.captions == [f"s caption {m['__index__']}" for m in b.meta]
                assert b.text.shape == (len(b), 8)
    assert keys == [f"s{i:05d}" for i in range(60)]
    assert numbers == list(range(60))


def test_read_all_lists_all_captions_and_leaves_bad_samples_out(damaged, shards):
    with read_all(shards, batch_size=50, fields=("text", "meta"), caption="all") as loader:
        assert len(loader) == 2
        assert next(iter(loader)).meta[1]["captions"] == ["s caption 1", "other 1"]
    with read_all(damaged, batch_size=3, fields=("text", "meta")) as loader:
        batches = list(loader)
    assert sum(len(b) for b in batches) == 95
    assert loader.skipped == {"text-empty": 5}
    assert list(iter(loader))[0].keys == batches[0].keys, "a loader can be read again"


def test_groups_follow_labels(shards):
    (batches,) = run(shards, 5, group_by="label", fields=("text", "meta"))
    groups: dict[int, set] = {}
    for b in batches:
        for meta, group in zip(b.meta, b.group.tolist(), strict=True):
            groups.setdefault(group, set()).add(meta["label"])
    assert sorted(map(tuple, groups.values())) == [(0,), (1,), (2,)]
