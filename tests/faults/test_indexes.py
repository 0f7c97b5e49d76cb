"""Index files that lie: one error that names the remedy, or a table made anew; never others' bytes."""

import pytest

from mmvit.data.cache import read_cache
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import make_loader, read_all
from mmvit.data.write import ShardWriter, rebuild_index
from mmvit.errors import UserError
from tests.faults.cases_indexes import CACHES, KEYS, LIES
from tests.faults.cases_pictures import is_halves
from tests.faults.cases_words import GOOD

pytestmark = pytest.mark.filterwarnings("default")
OPTIONS = {"preprocess": ImagePreprocess(size=(8, 8)), "fields": ("image", "text")}


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "shards" / "s", 3) as writer:
        for key in KEYS:
            writer.write(key, {"png": GOOD, "txt": f"caption of {key}"})
    return tmp_path / "shards"


def everything(folder):
    """Keys of all samples, each of which must have its own caption."""
    with read_all(str(folder), batch_size=2, **OPTIONS) as loader:
        batches = list(loader)
    for batch in batches:
        assert batch.captions == [f"caption of {key}" for key in batch.keys]
        for picture in batch.image:
            is_halves(picture, "")
    assert not loader.skipped
    return [key for b in batches for key in b.keys]


@pytest.mark.parametrize("lie", LIES, ids=lambda c: c.fault)
def test_a_lie_about_shards(lie, folder, told, only_indexes, capfd):
    lie.tell(folder)
    with only_indexes():
        if lie.error:
            with pytest.raises(UserError, match=lie.error) as caught:
                everything(folder)
            seen = str(caught.value)
            assert "\n" not in seen
            with (
                pytest.raises(UserError, match=lie.error),
                make_loader(str(folder), batch_size=5, **OPTIONS) as loader,
            ):
                next(iter(loader))
        else:
            assert everything(folder) == KEYS
            assert everything(folder) == KEYS, "and again, from what the first reading wrote"
            seen = lie.became
    if "--index" in seen and (folder / "index.json").is_dir():
        with pytest.raises(UserError, match="cannot write the index of .*directory"):
            rebuild_index(str(folder))
    elif "--index" in seen:
        rebuild_index(str(folder))
        left = [key for key in KEYS if (folder / f"s-00000{KEYS.index(key) // 3}.tar").exists()]
        if "cut off after" not in lie.fault:
            assert everything(folder) == left, "the remedy that the error names is one"
    assert "Traceback" not in capfd.readouterr().err
    told(lie.fault, "one error" if lie.error else "used", seen)


@pytest.mark.parametrize("lie", CACHES, ids=lambda c: c.fault)
def test_a_lie_about_cached_embeddings(lie, folder, told, only_indexes):
    lie.tell(folder)
    with only_indexes(), pytest.raises(UserError, match=lie.error) as caught:
        read_cache(str(folder))
    assert "\n" not in str(caught.value)
    told(lie.fault, "one error", str(caught.value))


def test_a_stream_notices_a_wrong_count(folder, told, caplog):
    LIES[0].tell(folder)
    with make_loader(str(folder), batch_size=5, num_batches=3, read="stream", **OPTIONS) as loader:
        keys = [key for b in loader for key in b.keys]
    assert sorted(keys) == sorted(KEYS * 3), "nothing is lost or doubled"
    (line,) = [r.getMessage() for r in caplog.records]
    assert "hold 5 samples, index.json says 6" in line
    told("index.json with a wrong count, as a stream", "warned of, the rest used", line)
