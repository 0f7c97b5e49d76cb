"""Classes out of shards' JSON: which there are, and which are a sample's own."""

import pytest

from mmvit.data.classes import ClassList, class_list, labels_in
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError


@pytest.fixture
def shards(tmp_path):
    """shards(name, metas) -> a folder of shards."""

    def write(name, metas):
        with ShardWriter(str(tmp_path / name / "a"), 2) as writer:
            for i, meta in enumerate(metas):
                writer.write(f"s{i}", {"txt": "a thing", "json": meta})
        return str(tmp_path / name)

    return write


def test_what_a_sample_states():
    assert labels_in({"label": "fox"}, "label") == ["fox"]
    assert labels_in({"label": 7}, "label") == ["7"]
    assert labels_in({"label": ["fox", "", None, "cat"]}, "label") == ["fox", "cat"]
    assert labels_in({"label": []}, "label") == []
    assert labels_in({"label": ""}, "label") is None
    assert labels_in({"motion": "rising"}, "label") is None


def test_the_classes_of_shards_are_sorted_and_lists_make_them_many(shards):
    one = class_list(shards("one", [{"label": "fox"}, {"label": "cat"}, {}, {"label": "fox"}]), "label")
    assert one == ClassList(("cat", "fox"), "label", False)
    many = class_list(shards("many", [{"tags": ["fox", "red"]}, {"tags": []}, {"tags": ["cat"]}]), "tags")
    assert many == ClassList(("cat", "fox", "red"), "tags", True)
    listed = class_list(shards("listed", [{"label": "fox"}]), "label", ["fox", "wolf"])
    assert listed.names == ("fox", "wolf")


def test_targets():
    metas = [{"label": "fox"}, {"label": "owl"}, {}, {"label": ["cat"]}, {"label": ["cat", "fox"]}]
    targets, known = ClassList(("cat", "fox")).targets(metas)
    assert known.tolist() == [True, False, False, True, False]
    assert targets.tolist() == [[0, 1], [0, 0], [0, 0], [1, 0], [0, 0]]
    targets, known = ClassList(("cat", "fox"), multi=True).targets(metas)
    assert known.tolist() == [True, True, False, True, True]
    assert targets.tolist() == [[0, 1], [0, 0], [0, 0], [1, 0], [1, 1]]


def test_mistakes_are_one_line(shards):
    folder = shards("none", [{"label": "fox"}, {"label": "fox"}])
    for call, said in (
        (lambda: class_list(folder, "motion"), "'motion' is in none of 2 JSON objects; --data.label names"),
        (lambda: class_list(folder, "label"), r"needs at least two classes, got \['fox'\]"),
        (lambda: class_list(folder, "label", ["cat", "owl"]), "none of the 2 classes occurs .* like 'fox'"),
        (lambda: ClassList(("a", "b", "a")), "the class 'a' is listed 2 times"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
