"""The detector behind the page: right answers, and no tower runs twice for the same thing."""

import pytest
import torch

from mmvit.boxes import iou
from mmvit.cli.demo.finder import Finder, Kept, Question, Settings
from mmvit.cli.demo.handlers import Handlers
from mmvit.detector import Detector
from mmvit.errors import UserError

SURE = Settings(threshold=0.4)  # right names score far above, wrong ones far below
NAMES = ("red square", "blue square", "green square")


class Counting:
    """A detector that counts what it is asked to compute."""

    def __init__(self, detector):
        self.detector, self.calls = detector, []

    def __getattr__(self, verb):
        def call(*given, **options):
            self.calls.append("like" if "images" in options else verb)
            return getattr(self.detector, verb)(*given, **options)

        return call


@pytest.fixture
def finder(model):
    return Finder(Counting(Detector(model)))


def test_what_is_there_is_found_at_its_place(finder, files):
    found = finder.find(str(files / "two.png"), Question(NAMES), SURE)
    assert (found.size, found.scale) == ((256, 256), 1.0)
    assert sorted(row[0] for row in found.rows()) == ["blue square", "red square"]
    for name, score, box in found.rows():
        truth = (20, 30, 110, 120) if name == "red square" else (140, 120, 235, 215)
        assert iou(torch.tensor([box]), torch.tensor([truth]).float()).item() > 0.5
        assert 0.4 < score <= 1
    plain = found.to_dict()
    assert plain["queries"] == list(NAMES)
    assert plain["detections"][0]["box"] == found.rows()[0][2]


def test_pictures_and_queries_are_computed_once(finder, files):
    two, green = str(files / "two.png"), str(files / "green.png")
    calls = finder.detector.calls
    finder.find(two, Question(NAMES), SURE)
    assert calls == ["encode_image", "encode_queries", "score"]
    found = finder.find(two, Question(NAMES), Settings(threshold=0.9))
    assert (found.image_seconds, found.query_seconds) == (0, 0)
    finder.find(two, Question(NAMES[:1]), SURE)
    finder.find(green, Question(NAMES), SURE)
    assert calls[3:] == ["score", "encode_queries", "score", "encode_image", "score"]
    del calls[:]
    for box in ((None,) * 4, (20, 30, 110, 120), (140, 120, 235, 215)):
        finder.find(green, Question(example=two, box=box), SURE)
    assert calls == ["like", "score"] * 3  # the example is a picture that was encoded before


def test_an_example_finds_things_like_it(finder, files):
    two = str(files / "two.png")
    for box in ((20, 30, 110, 120), (140, 120, 235, 215)):
        found = finder.find(two, Question(("that one",), two, box), SURE)
        name, _, best = found.rows()[0]
        assert name == "that one"
        assert iou(torch.tensor([best]), torch.tensor([box]).float()).item() > 0.5


def test_only_the_last_are_kept():
    kept = Kept(2)
    computed = []

    def get(key):
        return kept.get(key, lambda: computed.append(key) or key.upper())[0]

    assert [get(k) for k in "abacab"] == ["A", "B", "A", "C", "A", "B"]
    assert computed == ["a", "b", "c", "b"]


def test_what_cannot_be_answered_is_refused_in_one_line(finder, files):
    two = str(files / "two.png")
    for path, question, words in [
        (str(files / "words.png"), Question(NAMES), "not a picture"),
        (two, Question(example=str(files / "cut.jpg")), "its end is missing"),
        (two, Question(example=two, box=(1, 2, None, 4)), "four numbers"),
        (two, Question(()), "quer"),
    ]:
        with pytest.raises(UserError, match=words) as refused:
            finder.find(path, question, SURE)
        assert "\n" not in str(refused.value)
    for wrong in ({"threshold": 1.5}, {"nms": -1}, {"top_k": 0}):
        with pytest.raises(UserError, match="expected"):
            Settings(**wrong)
    assert finder.find(two, Question(NAMES), SURE).rows()


def test_what_nobody_foresaw_is_said_and_logged(finder, files, caplog):
    finder.detector.detector = None
    status, picture, rows, _ = Handlers(finder).find(
        "words", str(files / "two.png"), "fox", None, "", None, None, None, None, 0.4, 30, 0.5
    )
    assert "went wrong inside (AttributeError)" in status
    assert 'role="alert"' in status
    assert rows == ""
    assert picture.size == (256, 256)
    assert "a request failed" in caplog.text


def test_names_are_text_and_never_markup(finder, files):
    hostile = "<img src=x onerror=alert(1)>"
    asked = (str(files / "two.png"), hostile, None, "", None, None, None, None, 0.0, 5, 1.0)
    status, _, rows, _ = Handlers(finder).find("words", *asked)
    assert "found" in status
    assert "<img" not in rows
    assert "&lt;img" in rows
