import itertools
from collections import Counter
from types import SimpleNamespace

import pytest

from mmvit.data.loader import make_loader
from mmvit.data.shards import ShardIndex
from mmvit.data.stream import Streams
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError


def paths(shards) -> list[str]:
    return [s.path for s in ShardIndex.open(shards).shards]


@pytest.mark.parametrize("slots", [1, 2, 4, 9])
def test_an_epoch_of_all_slots_is_every_sample_once(shards, slots):
    streams = Streams(paths(shards), seed=0, samples=None, pool=5)
    assert streams.samples == 60
    for epoch in range(2):
        keys = Counter()
        for slot in range(slots):
            counts = [sum(streams.counts[s] for s in streams.shards(e, slot, slots)) for e in (0, 1)]
            draws = streams.draws(slot, slots, skip=epoch * counts[0])
            keys.update(raw["__key__"] for raw, _ in itertools.islice(draws, counts[epoch]))
        assert keys == {f"s{i:05d}".encode(): 1 for i in range(60)}
    assert streams.shards(0, 0, 1) != streams.shards(1, 0, 1)
    assert streams.shards(0, 0, 1) != Streams(paths(shards), 1, None).shards(0, 0, 1)


def test_skipping_equals_reading(shards):
    streams = Streams(paths(shards), seed=0, samples=None, pool=10)
    keys = [raw["__key__"] for raw, _ in itertools.islice(streams.draws(0, 2, 0), 100)]
    for skip in (1, 31, 77):
        rest = itertools.islice(streams.draws(0, 2, skip), 100 - skip)
        assert [raw["__key__"] for raw, _ in rest] == keys[skip:]
    assert keys[:28] != sorted(keys[:28])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_and_equal_steps_on_all_ranks(shards, workers):
    def run(rank, start, n):
        options = {"batch_size": 6, "rank": rank, "world_size": 2, "workers": workers, "read": "stream"}
        with make_loader(shards, num_batches=n, start_position=start, fields=("text",), **options) as loader:
            return [(b.position, b.keys, b.captions) for b in loader]

    for rank in range(2):
        whole = run(rank, 0, 14)
        assert len(whole) == 14
        assert [p for p, _, _ in whole] == [6 * k for k in range(14)]
        assert run(rank, 30, 9) == whole[5:]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """60 samples in 17 shards of 1 to 8."""
    folder, numbers = tmp_path_factory.mktemp("many"), itertools.count()
    for j, size in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 1, 2, 3, 3]):
        with ShardWriter(folder / f"p{j:02d}", 1000) as writer:
            for i in itertools.islice(numbers, size):
                writer.write(f"s{i:05d}", {"txt": f"caption {i}"})
    return str(folder)


def slot_keys(urls, ranks, rank, workers, worker, n, monkeypatch, start=0):
    """Keys of the first n packets of one worker, which this process pretends to be, and its dataset."""
    info = SimpleNamespace(id=worker) if workers else None
    monkeypatch.setattr("mmvit.data.stream.get_worker_info", lambda: info)
    options = {"batch_size": 12, "rank": rank, "world_size": ranks, "workers": workers, "read": "stream"}
    loader = make_loader(urls, fields=("text",), start_position=start, **options)
    dataset = loader.dataset
    packets = list(itertools.islice(iter(dataset), n))
    assert all(p.failure is None and len(p.batch) == 12 // ranks for p in packets)
    return [p.batch.keys for p in packets], dataset


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore:.*data workers share.*")
def test_every_sample_once_an_epoch_for_all_ranks_and_workers(many, ranks, workers, monkeypatch):
    """Every slot reads at its own pace; the samples of its epochs are, over all slots, every sample once."""
    slots, epochs = ranks * max(1, workers), [Counter(), Counter()]
    for rank, worker in itertools.product(range(ranks), range(max(1, workers))):
        slot = rank * max(1, workers) + worker
        batches, dataset = slot_keys(many, ranks, rank, workers, worker, 40, monkeypatch)
        streams, keys = dataset.streams, sum(batches, [])
        counts = [sum(streams.counts[s] for s in streams.shards(e, slot, slots)) for e in (0, 1)]
        assert len(keys) >= sum(counts)
        epochs[0].update(keys[: counts[0]])
        epochs[1].update(keys[counts[0] : sum(counts)])
    assert epochs == [{f"s{i:05d}": 1 for i in range(60)}] * 2


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_restart_neither_loses_nor_doubles(many, ranks, workers, monkeypatch):
    w = max(1, workers)
    for rank, done in itertools.product(range(ranks), (1, 5)):
        whole = [slot_keys(many, ranks, rank, workers, worker, 12, monkeypatch)[0] for worker in range(w)]
        flat = [whole[k % w][k // w] for k in range(12)]
        rest = [
            slot_keys(many, ranks, rank, workers, worker, 7, monkeypatch, start=12 * done)[0]
            for worker in range(w)
        ]
        assert [rest[k % w][k // w] for k in range(7)] == flat[done : done + 7]


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(2, 2)] + [pytest.param(r, w, marks=pytest.mark.slow) for r in (1, 2, 3, 4) for w in (1, 2, 3, 4)],
)
def test_real_workers_give_what_the_pretended_ones_do(many, ranks, workers, monkeypatch):
    for rank in range(ranks):
        want = [slot_keys(many, ranks, rank, workers, worker, 8, monkeypatch)[0] for worker in range(workers)]
        options = {"batch_size": 12, "rank": rank, "world_size": ranks, "workers": workers}
        monkeypatch.undo()
        with make_loader(many, num_batches=8, fields=("text",), read="stream", **options) as loader:
            found = [b.keys for b in loader]
        assert found == [want[k % workers][k // workers] for k in range(8)]


def test_pipes_are_read_with_a_given_count(shards):
    url = f"pipe:cat {shards}/train-{{000000..000008}}.tar"
    with make_loader(url, batch_size=10, num_batches=6, samples=60, fields=("text",)) as loader:
        keys = sum((b.keys for b in loader), [])
    assert sorted(keys) == [f"s{i:05d}" for i in range(60)]
    with pytest.raises(UserError, match=r"index\.json beside it, or give --data\.samples"):
        make_loader(url, batch_size=10, fields=("text",))


def test_start_up_errors_say_how_many_are_missing(shards):
    urls = f"{shards}/train-{{000000..000002}}.tar"
    with pytest.raises(UserError, match=r"3 shards for 2 ranks x 2 workers: 1 short; .*--samples-per-shard"):
        make_loader(urls, batch_size=4, world_size=2, workers=2, read="stream")
    with pytest.raises(UserError, match="no multiple of the batch size 4"):
        make_loader(urls, batch_size=4, start_position=6, read="stream")
    with pytest.raises(UserError, match="weights"):
        make_loader(urls, batch_size=4, weights=(1,), read="stream")
    with pytest.raises(UserError, match="read='stream'"):
        make_loader("pipe:cat x.tar", batch_size=4, read="index")


@pytest.mark.parametrize("command", ["cat /dev/null", "echo this is no tar", "false"])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_fails_is_one_error(command):
    loader = make_loader(f"pipe:{command}", batch_size=4, samples=9, fields=("text",))
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert command in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_samples_in_streams_are_replaced(tmp_path):
    with ShardWriter(tmp_path / "d", 25) as writer:
        for i in range(50):
            writer.write(f"s{i:03d}", {"txt": "" if i % 10 == 0 else f"caption {i}"})
    options = {"batch_size": 10, "fields": ("text",), "read": "stream", "max_bad_rate": 1.0}
    with make_loader(str(tmp_path), num_batches=5, **options) as loader:
        batches = list(loader)
    assert all(len(b) == 10 for b in batches)
    assert loader.skipped["text-empty"] >= 5
    good = [f"s{i:03d}" for i in range(50) if i % 10]
    assert set(sum((b.keys for b in batches), [])) == set(good)
    with make_loader(str(tmp_path), num_batches=2, start_position=30, **options) as loader:
        assert [b.keys for b in loader] == [b.keys for b in batches[3:]]
