"""SearchIndex against brute force; its own keys, ties, faults and folder."""

import json

import numpy as np
import pytest
import torch

from mmvit.search import SearchIndex, effort, exact


@pytest.fixture(autouse=True)
def one_thread():
    """FAISS's k-means on tiny inputs crawls when its threads outnumber the free cores."""
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def unit(rows, dim, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def keys_of(n):
    return [f"key-{i}" for i in range(n)]


def test_known_answer_maps_rows_to_keys():
    index = SearchIndex.build(torch.eye(3), ["x", "y", "z"])
    keys, scores = index.search(torch.tensor([[0.0, 3.0, 4.0]]), k=2)
    assert keys == [["z", "y"]]
    torch.testing.assert_close(scores, torch.tensor([[0.8, 0.6]]))


def test_flat_equals_brute_force_over_several_blocks():
    base, queries = unit(9001, 24) * 7, unit(1100, 24, 1) * 0.01  # lengths must not matter
    ids, scores = SearchIndex.build(base, range(9001)).search_ids(queries, 10)
    cosine = unit(1100, 24, 1).double() @ unit(9001, 24).double().T
    truth = cosine.topk(10)
    assert (
        torch.from_numpy(ids) == truth.indices
    ).float().mean() > 0.999  # rounding may swap near-equal pairs
    torch.testing.assert_close(torch.from_numpy(scores).double(), truth.values, atol=1e-5, rtol=0)


def test_flat_equals_faiss_flat():
    faiss = pytest.importorskip("faiss")
    base, queries = unit(5000, 32), unit(50, 32, 1)
    index = SearchIndex.build(base, range(5000))
    ids, scores = index.search_ids(queries, 7)
    theirs = faiss.IndexFlatIP(32)
    theirs.add(base.numpy())
    their_scores, their_ids = theirs.search(queries.numpy(), 7)
    assert (ids == their_ids).mean() > 0.999
    np.testing.assert_allclose(scores, their_scores, atol=1e-5)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_scores_are_full_float32_whatever_the_process_allows(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        base, queries = unit(300, 256), unit(20, 256, 1)
        _, scores = SearchIndex.build(base, range(300)).search(queries, 5)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(
        scores.double(), (queries.double() @ base.double().T).topk(5).values, atol=1e-6, rtol=0
    )


def test_ties_go_to_the_lowest_row_even_at_the_last_place_and_across_blocks(monkeypatch):
    monkeypatch.setattr("mmvit.search.exact.CELLS", 1)
    base = torch.zeros(10_000, 4)
    base[:, 0] = 1.0
    base[::3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    index = SearchIndex.build(base, range(10_000))
    keys, scores = index.search(torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0]]), k=5)
    assert keys == [[1, 2, 4, 5, 7], [0, 3, 6, 9, 12], [0, 1, 2, 3, 4]]
    torch.testing.assert_close(scores, torch.tensor([[1.0] * 5, [1.0] * 5, [0.0] * 5]))


def test_one_vector_is_a_query_and_k_is_cut():
    index = SearchIndex.build(torch.eye(3), ["x", "y", "z"])
    keys, scores = index.search(torch.tensor([1.0, 0.5, 0.0]), k=99)
    assert keys == [["x", "y", "z"]]
    assert scores.shape == (1, 3)


def test_scores_never_leave_the_range_of_a_cosine():
    base = unit(500, 96)
    _, scores = SearchIndex.build(base, range(500)).search(base, 1)
    assert scores.max() <= 1.0
    torch.testing.assert_close(scores, torch.ones(500, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_and_layout(dtype):
    base = unit(64, 16).to(dtype)
    keys, _ = SearchIndex.build(base.T.contiguous().T, keys_of(64)).search(base, 1)
    assert [row[0] for row in keys] == keys_of(64)
    keys, _ = SearchIndex.build(base.float().numpy(), keys_of(64)).search(base.float().numpy(), 1)
    assert [row[0] for row in keys] == keys_of(64)


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("HNSW32", 0.95),
        ("HNSW16,SQ8", 0.9),
        ("IVF64,Flat", 0.5),
        ("IVF64,SQ8", 0.5),
        ("IVF64_HNSW16,Flat", 0.5),
        ("SQfp16", 0.97),
        ("PCAR24,IVF16,PQ12x4", 0.1),
        ("IVF32,PQ8x4fs,RFlat", 0.3),
        ("RR32,IVF32,RaBitQ,RFlat", 0.3),
        ("L2norm,IVF32,Flat", 0.5),
    ],
)
def test_factory_strings_find_what_they_should(factory, least):
    base, queries = unit(3000, 32), unit(200, 32, 1)
    exact, _ = SearchIndex.build(base, range(3000), "flat").search_ids(queries, 10)
    ids, scores = SearchIndex.build(base, range(3000), factory).search_ids(queries, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), exact.tolist(), strict=True)])
    assert found >= least
    assert (np.diff(scores) <= 0).all()


def test_inverted_lists_searched_whole_are_exact():
    base, queries = unit(2000, 32), unit(100, 32, 1)
    index = SearchIndex.build(base, range(2000), "IVF32,Flat")
    index.parameters = {"nprobe": 32}
    flat = SearchIndex.build(base, range(2000))
    for ours, theirs in zip(index.search_ids(queries, 10), flat.search_ids(queries, 10), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_missing_places_are_found_by_searching_harder():
    index = SearchIndex.build(unit(400, 16), range(400), "IVF64,Flat")
    index.parameters = {"nprobe": 1}  # one list holds some six rows
    ids, scores = index.search_ids(unit(50, 16, 1), 300)
    assert (ids >= 0).all()
    assert np.isfinite(scores).all()
    assert all(len(set(row)) == 300 for row in ids.tolist())


def test_places_that_stay_empty_are_marked(monkeypatch):
    monkeypatch.setattr("mmvit.search.effort.harder", lambda *_: None)
    index = SearchIndex.build(unit(400, 16), keys_of(400), "IVF64,Flat")
    index.parameters = {"nprobe": 1}
    keys, scores = index.search(unit(5, 16, 1), 300)
    empty = torch.tensor([[key is None for key in row] for row in keys])
    assert empty.any()
    assert torch.equal(empty, scores == -torch.inf)
    assert torch.equal(empty, empty.cummax(1).values)  # empty places come last


def test_add_appends_and_is_all_or_nothing():
    index = SearchIndex.build(torch.eye(4)[:2], ["a", "b"])
    index.add(torch.eye(4)[2:], ["c", "d"])
    assert index.search(torch.eye(4), 1)[0] == [["a"], ["b"], ["c"], ["d"]]
    bad = torch.eye(4)
    bad[3] = 0
    with pytest.raises(ValueError, match="row 3 is zero"):
        index.add(bad, ["e", "f", "g", "h"])
    assert len(index) == 4 == index.index.ntotal


def test_auto_is_exact_for_small_and_approximate_for_large():
    from mmvit.search.make import factory_string

    assert factory_string("auto", 199_999) == "Flat"
    assert factory_string("auto", 200_000) == "HNSW32"
    assert factory_string("auto", 4_000_000) == "IVF16384_HNSW32,SQ8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill_(0, torch.tensor([3]), torch.nan), "row 3 holds NaN"),
        (lambda x: x.index_fill_(0, torch.tensor([4]), torch.inf), "row 4 holds NaN or infinity"),
        (lambda x: x.index_fill_(0, torch.tensor([5]), 0.0), "row 5 is zero"),
        (lambda x: x[:0], "no rows"),
        (lambda x: x[None], "shape"),
        (lambda x: x[:5], "5 embeddings but 8 keys"),
    ],
)
def test_bad_rows_are_refused_by_number(change, message):
    with pytest.raises(ValueError, match=message):
        SearchIndex.build(change(unit(8, 4)), keys_of(8))


def test_user_mistakes_name_the_remedy():
    base = unit(8, 4)
    with pytest.raises(ValueError, match="IVFx,Flat"):
        SearchIndex.build(base, range(8), "IVFx,Flat")
    with pytest.raises(ValueError, match="8 rows"):
        SearchIndex.build(base, range(8), "IVF64,Flat")
    with pytest.raises(ValueError, match="IDMap"):
        SearchIndex.build(base, range(8), "IDMap2,Flat")
    with pytest.raises(ValueError, match="device"):
        SearchIndex.build(base, range(8), device="tpu")
    with pytest.raises(ValueError, match="strings or integers"):
        SearchIndex.build(base, [0.5] * 8)
    index = SearchIndex.build(base, range(8), fingerprint="a" * 64)
    with pytest.raises(ValueError, match="5 dimensions, the index holds 4"):
        index.search(unit(1, 5))
    with pytest.raises(ValueError, match="at least 1"):
        index.search(base, 0)
    with pytest.raises(ValueError, match="model bbbbbbbbbbbb"):
        index.search(base, fingerprint="b" * 64)
    assert index.search(base, 1, fingerprint="a" * 64)[0][3] == [3]


def test_gpu_without_faiss_gpu_is_a_clear_error():
    faiss = pytest.importorskip("faiss")
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss-gpu is here")
    with pytest.raises(ValueError, match="faiss-gpu"):
        SearchIndex.build(unit(8, 4), range(8), device="gpu")


@pytest.mark.parametrize("factory", ["flat", "HNSW16", "IVF16,Flat"])
def test_saved_and_loaded_answers_the_same(tmp_path, factory):
    base, queries = unit(800, 16), unit(20, 16, 1)
    index = SearchIndex.build(base, keys_of(800), factory, fingerprint="f" * 64)
    index.parameters = {name: 5 for name in index.parameters}
    index.save(tmp_path / "ix")
    again = SearchIndex.load(tmp_path / "ix")
    keys, scores = index.search(queries, 5)
    keys_again, scores_again = again.search(queries, 5)
    assert keys == keys_again
    assert torch.equal(scores, scores_again)
    assert again.parameters == index.parameters
    assert again.fingerprint == "f" * 64
    facts = json.loads((tmp_path / "ix" / "index.json").read_text())
    assert facts["metric"] == "cosine"
    assert (facts["n"], facts["dim"], facts["factory"]) == (800, 16, index.factory)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ix"]  # nothing temporary stays


def test_saving_replaces_an_index_but_nothing_else(tmp_path):
    index = SearchIndex.build(torch.eye(2), ["a", "b"])
    index.save(tmp_path / "ix")
    SearchIndex.build(torch.eye(3), ["c", "d", "e"]).save(tmp_path / "ix")
    assert SearchIndex.load(tmp_path / "ix").keys == ["c", "d", "e"]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="not an index folder"):
        index.save(tmp_path / "work")
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


def test_a_failed_save_leaves_the_old_index(tmp_path, monkeypatch):
    SearchIndex.build(torch.eye(2), ["a", "b"]).save(tmp_path / "ix")
    monkeypatch.setattr("mmvit.search.folder.digest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SearchIndex.build(torch.eye(3), ["c", "d", "e"]).save(tmp_path / "ix")
    monkeypatch.undo()
    assert SearchIndex.load(tmp_path / "ix").keys == ["a", "b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ix"]


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="index.json is missing"):
        SearchIndex.load(tmp_path)
    SearchIndex.build(torch.eye(2), ["a", "b"]).save(tmp_path / "ix")
    (tmp_path / "ix" / "keys.json").write_text('["b", "a"]')
    with pytest.raises(ValueError, match="keys.json is damaged"):
        SearchIndex.load(tmp_path / "ix")
    (tmp_path / "ix" / "index.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="'other'"):
        SearchIndex.load(tmp_path / "ix")


@pytest.mark.parametrize("factory", ["HNSW8", "IVF64,SQ8", "IVF64,PQ8x4,RFlat"])
def test_tune_reaches_the_target_and_keeps_the_smallest(factory):
    base, queries = unit(4000, 16), unit(100, 16, 1)
    index = SearchIndex.build(base, range(4000), factory)
    curve = index.tune(queries, recall=0.8, embeddings=base)
    recalls = [row["recall"] for row in curve]
    assert recalls[-1] >= 0.8
    assert all(r < 0.8 for r in recalls[:-1])
    assert recalls == sorted(recalls)
    name = "efSearch" if "HNSW" in factory else "nprobe"
    assert index.parameters[name] == curve[-1][name]


def test_tuning_narrows_the_last_power_of_two_down():
    index = SearchIndex.build(unit(500, 16), range(500), "HNSW8").index

    def reached(target):
        def measure(values):
            return {"recall": values["efSearch"] / 500, "ms_per_query": 0.0}

        return [row["efSearch"] for row in effort.sweep(index, 500, {"efSearch": 128}, measure, target / 500)]

    assert reached(41) == [8, 16, 32, 40, 48]
    assert reached(40) == [8, 16, 32, 40]
    assert reached(63) == [8, 16, 32, 48, 56, 64]
    assert reached(5) == [8]
    assert reached(600) == [8, 16, 32, 64, 128, 256, 500]


def test_groups_of_scores_give_what_sorting_all_of_them_gives():
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (9600, 6)).astype(np.float32)  # whole numbers: many equal scores, no rounding
    queries = rng.integers(-2, 3, (40, 6)).astype(np.float32)
    for k in (1, 10, 60):
        scores, ids = exact.top_k(queries, rows, k)
        full = queries @ rows.T
        truth = np.lexsort((np.broadcast_to(np.arange(9600), full.shape), -full), axis=1)[:, :k]
        assert (ids == truth).all()
        assert (scores == np.take_along_axis(full, truth, 1)).all()


def test_tune_asks_for_the_rows_that_codes_lost():
    index = SearchIndex.build(unit(500, 16), range(500), "IVF8,PQ4x4")
    with pytest.raises(ValueError, match="embeddings=…"):
        index.tune(unit(10, 16, 1))
    flat = SearchIndex.build(unit(500, 16), range(500))
    assert flat.tune(unit(10, 16, 1))[-1]["recall"] == 1.0


def test_results_do_not_depend_on_threads():
    faiss = pytest.importorskip("faiss")
    base, queries = unit(3000, 16), unit(64, 16, 1)
    index = SearchIndex.build(base, range(3000), "IVF32,Flat")
    one = index.search_ids(queries, 10)
    faiss.omp_set_num_threads(4)
    four = index.search_ids(queries, 10)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)
