"""Embedding and merging, prompt ensembles against open_clip's, class files, result files and the table."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmvit.errors import UserError
from mmvit.evaluators.classes import read_classes, read_templates
from mmvit.evaluators.embed import Embedded, embed_samples, evaluating, merge, text_encoder
from mmvit.evaluators.prompts import class_embeddings
from mmvit.evaluators.results import dataset_and_split, read_results, result, write_results
from mmvit.evaluators.samples import drawn
from mmvit.evaluators.table import blocks, comparison_table, percent, run_name
from mmvit.types import Batch


def part(numbers, dim=3):
    return Embedded(
        torch.tensor(numbers, dtype=torch.int64),
        [f"k{i}" for i in numbers],
        {"any": torch.tensor(numbers).float()[:, None].expand(-1, dim)},
        [[f"caption {i}"] for i in numbers],
        [{"label": str(i)} for i in numbers],
        {"broken": 1},
    )


def test_parts_merge_in_order_without_doubles():
    whole = merge([part([4, 5, 6]), part([0, 1]), part([5, 6, 7])])
    assert whole.index.tolist() == [0, 1, 4, 5, 6, 7]
    assert whole.keys == [f"k{i}" for i in whole.index]
    assert whole.embeddings["any"][:, 0].tolist() == whole.index.tolist()
    assert [c[0] for c in whole.captions] == [f"caption {i}" for i in whole.index]
    assert [m["label"] for m in whole.meta] == [str(int(i)) for i in whole.index]
    assert whole.skipped == {"broken": 3}
    assert len(merge([part([]), part([2])])) == 1


def test_any_modality_is_a_function_of_the_batch():
    batches = [
        Batch(
            keys=["a", "b"],
            audio=torch.ones(2, 4),
            meta=[{"__index__": 0}, {"__index__": 1}],
            captions=["x", "y"],
        ),
        Batch(
            keys=["c"],
            audio=2 * torch.ones(1, 4),
            meta=[{"__index__": 2, "captions": ["z", "w"]}],
            captions=["z"],
        ),
    ]
    seen = []
    found = embed_samples(batches, {"audio": lambda b: b.audio.sum(1, keepdim=True)}, seen.append)
    assert found.embeddings["audio"].tolist() == [[4], [4], [8]]
    assert found.captions == [["x"], ["y"], ["z", "w"]]
    assert seen == [2, 1]


def test_modes_and_gradients_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[2].eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        assert not model(torch.ones(3, 2)).requires_grad
    assert [m.training for m in model] == [True, True, False]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert model.training


class CountingTower(nn.Module):
    """Texts of one letter -> a vector by letter; remembers how many it saw."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.seen = 0
        self.config = SimpleNamespace(text=SimpleNamespace(pool="last"))

    def encode_text(self, ids, mask):
        self.seen += len(ids)
        return torch.nn.functional.one_hot(ids[:, 0], 30).float()


class Letters:
    """Tokenizer whose only token is the first letter."""

    def __call__(self, texts):
        ids = torch.tensor([[ord(text[0]) - ord("a")] for text in texts])
        return type("Tokens", (), {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)})


def test_each_distinct_text_is_embedded_once():
    tower = CountingTower()
    out = text_encoder(tower, Letters(), batch_size=2)(["b", "a", "b", "c", "a"])
    assert out.argmax(1).tolist() == [1, 0, 1, 2, 0]
    assert tower.seen == 3


def test_prompt_ensemble_equals_open_clips():
    open_clip = pytest.importorskip("open_clip")
    generator = torch.Generator().manual_seed(0)
    table = {}

    def vector(text):
        return table.setdefault(text, torch.randn(8, generator=generator))

    class Peer:
        def encode_text(self, texts, normalize=False):
            x = torch.stack([vector(t) for t in texts])
            return torch.nn.functional.normalize(x, dim=-1) if normalize else x

    class Verbatim(list):
        def to(self, device):
            return self

    names, templates = ["fox", "violin", "tea"], ["a {}", "the {} here", "{}"]
    theirs = open_clip.build_zero_shot_classifier(
        Peer(), Verbatim, names, [lambda c, t=t: t.format(c) for t in templates], num_classes_per_batch=2
    )
    ours = class_embeddings(lambda texts: torch.stack([vector(t) for t in texts]), names, templates)
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


def test_class_and_template_files(tmp_path):
    text = tmp_path / "c.txt"
    text.write_bytes("\ufefffox\n\n  red fox \r\nviolin".encode())
    assert read_classes(text) == ["fox", "red fox", "violin"]
    mapping = tmp_path / "c.json"
    mapping.write_text('{"fox": ["fox", "vixen"]}')
    assert read_classes(mapping) == {"fox": ["fox", "vixen"]}
    assert read_templates("default") == "default"
    text.write_text("a photo of a fox")
    with pytest.raises(UserError, match="has no '{}'"):
        read_templates(str(text))
    text.write_text("fox\nfox")
    with pytest.raises(UserError, match="listed twice"):
        read_classes(text)
    mapping.write_text('{"fox": 3}')
    with pytest.raises(UserError, match="class list"):
        read_classes(mapping)
    mapping.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_classes(mapping)


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ("data/corpus/test_style/emoji", ("corpus", "test_style/emoji")),
        ("/x/corpus/test_style/emoji/emoji-{000000..000002}.tar", ("corpus", "test_style/emoji")),
        ("data/corpus/val/*/*.tar::data/other/val", ("corpus", "val")),
        ("flickr30k-test-{0..3}.tar", ("flickr30k-test", "")),
        ("shards", ("shards", "")),
        ("coco/val2017", ("coco", "val2017")),
    ],
)
def test_data_set_and_split_come_from_the_path(urls, expected):
    assert dataset_and_split(urls) == expected


def row(model, split, task, metrics):
    config = {"model": {"a": 1}, "card": {"preset": "small", "step": 12}, "fingerprint": "f"}
    return result(
        model=model, config=config, data=f"d/corpus/{split}", task=task, metrics=metrics, n=7, seconds=1
    )


def test_results_round_trip(tmp_path):
    one = row("runs/a/model", "test", "zero_shot_classification", {"acc1": 0.5, "classes": 3})
    assert (one["preset"], one["step"], one["dataset"], one["split"]) == ("small", 12, "corpus", "test")
    write_results([one], tmp_path / "x" / "r.json")
    assert json.loads((tmp_path / "x" / "r.json").read_text()) == one
    write_results([one, one], tmp_path / "r.json")
    assert read_results(tmp_path / "r.json") == [one, one]
    assert [p.name for p in tmp_path.iterdir()].count("r.json") == 1
    (tmp_path / "r.json").write_text('{"model": "x"}')
    with pytest.raises(UserError, match="lacks dataset"):
        read_results(tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "none.json")


def test_the_table_groups_by_split_and_marks_the_best():
    results = [
        row(
            "runs/lit/model",
            "test",
            "zero_shot_classification",
            {"acc1": 0.5, "acc5": 0.75, "classes": 40, "chance_acc1": 0.025},
        ),
        row(
            "runs/lit/model",
            "test",
            "zero_shot_retrieval",
            {"image_retrieval_recall@1": 0.25, "image_retrieval_n": 9},
        ),
        row(
            "runs/scratch/model",
            "test",
            "zero_shot_classification",
            {"acc1": 0.004, "acc5": 1.0, "classes": 40},
        ),
        row("runs/lit/model", "val", "zero_shot_classification", {"acc1": 0.5, "acc5": 0.5, "classes": 4}),
    ]
    first, second = blocks(results, {"runs/scratch/model": "from scratch"})
    assert (first.split, second.split) == ("corpus test", "corpus val")
    assert [name for name, _ in first.rows] == ["lit", "from scratch"]
    assert first.best()[:3] == [50.0, 100.0, None]
    assert first.chance[0] == 2.5
    assert first.size == "7 samples, 40 classes, 9 captions"
    text = comparison_table(results, terminal=False)
    lines = text.split("\n")
    assert "zero-shot" in lines[1]
    assert lines[3].split() == ["lit", "│", "50.0", "75.0", "│", "25.0"]
    assert lines[4].split() == ["scratch", "│", "0.40", "100.0", "│", "–"]
    assert lines[5].split()[:3] == ["chance", "│", "2.5"]
    assert "\x1b[" not in text
    assert "\x1b[" in comparison_table(results, terminal=True)
    assert len({len(line.split("│")[0]) for line in lines[1:6]}) == 1


def test_numbers_and_names():
    assert [percent(v) for v in (None, 0.0, 0.123, 0.996, 12.34, 100.0)] == [
        "–",
        "0.0",
        "0.12",
        "1.0",
        "12.3",
        "100.0",
    ]
    assert run_name("runs/quickstart/lit_Lu/model") == "lit_Lu"
    assert run_name("runs/x/checkpoints/step-00000010/model") == "x"
    assert run_name("towers/clip") == "clip"


def test_a_drawn_part_keeps_samples_whole_and_in_order():
    n = 20
    whole = Embedded(
        torch.arange(n),
        [f"k{i}" for i in range(n)],
        {"image": torch.arange(n, dtype=torch.float32)[:, None]},
        [[f"c{i}"] for i in range(n)],
        [{"i": i} for i in range(n)],
    )
    part = drawn(whole, 7)
    rows = part.index.tolist()
    assert rows == sorted(set(rows))
    assert len(part) == 7
    assert rows != list(range(7))
    assert part.embeddings["image"][:, 0].tolist() == rows
    assert [part.keys, part.captions, part.meta] == [
        [f"k{i}" for i in rows],
        [[f"c{i}"] for i in rows],
        [{"i": i} for i in rows],
    ]
    assert drawn(whole, 7).keys == part.keys
    assert drawn(whole, 20) is whole
