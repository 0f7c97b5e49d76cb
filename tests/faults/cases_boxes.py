"""Odd annotations of boxes, in the JSON of a good picture of 24 x 16 pixels or beside an odd picture."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.case import Case
from tests.faults.cases_pictures import encoded, exif, halves
from tests.faults.cases_words import GOOD, MILLION

HALF, BOTH = [0, 0, 12, 16], [[0, 0, 12, 16], [12, 0, 24, 16]]
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class BoxCase(Case):
    """One sample with odd annotations among good ones.

    left_out: reason -> how many of its boxes are left out for it, in one reading for training.
    boxes: those that evaluation counts, xyxy in pixels of its upright picture.
    trained: those of a whole view in training, None = the same; a number where they are drawn.
    asked: labels that begin so are asked in training.
    never: labels that are not.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    boxes: list[list[float]] = field(default_factory=list)
    trained: list[list[float]] | int | None = None
    asked: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def thing(box, label="red half", **more):
    return {"label": label, "box": box, **more}


def members(meta, png=GOOD, kind="png") -> Callable[[], dict[str, Any]]:
    """A picture and its JSON; NaN and Infinity are written as Python writes them."""
    content = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    return lambda: {kind: png, "json": content}


def skipped(fault, meta, reason, **more):
    return BoxCase(fault, members(meta, **more), reason)


def less(fault, objects, reason, count=1, boxes=(HALF,), **more):
    """The picture stays, `count` boxes go."""
    made = members({"objects": objects, **more})
    return BoxCase(fault, made, left_out={reason: count}, boxes=[list(b) for b in boxes])


def used(fault, meta, became, boxes=(HALF,), png=GOOD, kind="png", **more):
    made = members(meta, png, kind)
    return BoxCase(fault, made, became=became, boxes=[list(b) for b in boxes], **more)


ONE = thing(HALF)
MANY = [thing([i % 24, i // 24, i % 24 + 1, i // 24 + 1], f"cell {i}") for i in range(300)]
SLIVER = encoded(halves(5000, 1))
TURNED = encoded(halves(), "JPEG", quality=95, subsampling=0, exif=exif(6))
CASES = [
    skipped("no JSON about objects", {"label": "red half"}, "boxes-missing"),
    BoxCase("no JSON beside the picture", lambda: {"png": GOOD}, "boxes-missing"),
    skipped("objects that are no list", {"objects": {"0": ONE}}, "boxes-unreadable"),
    skipped("objects that are a text", {"objects": "red half"}, "boxes-unreadable"),
    skipped("objects that are texts", {"objects": ["red half"]}, "boxes-unreadable"),
    skipped("objects that are null", {"objects": None}, "boxes-missing"),
    skipped("negatives that are a text", {"objects": [ONE], "negatives": "cat"}, "boxes-unreadable"),
    skipped("negatives that are numbers", {"objects": [ONE], "negatives": [7]}, "boxes-unreadable"),
    skipped("not_exhaustive that is a number", {"objects": [ONE], "not_exhaustive": 7}, "boxes-unreadable"),
    skipped("boxes of a picture with other sides", {"width": 16, "height": 24, "objects": [ONE]},
            "boxes-frame"),
    skipped("boxes of a picture without height", {"width": 24, "objects": [ONE]}, "boxes-frame"),
    skipped("boxes of a picture 0 pixels wide", {"width": 0, "height": 16, "objects": [ONE]}, "boxes-frame"),
    skipped("boxes of a picture NaN pixels wide", {"width": NAN, "height": 16, "objects": [ONE]},
            "boxes-frame"),
    skipped("boxes of a picture whose width is a text", {"width": "24", "height": 16, "objects": [ONE]},
            "boxes-frame"),
    skipped("boxes of a picture 10^400 pixels wide", b'{"width": 1' + b"0" * 400 + b', "height": 16, '
            b'"objects": []}', "boxes-frame"),
    skipped("boxes in the frame before EXIF rotation", {"width": 24, "height": 16, "objects": [ONE]},
            "boxes-frame", png=TURNED, kind="jpg"),
    skipped("boxes in JSON cut off", b'{"objects": [{"label": "red ha', "json-unreadable"),
    skipped("boxes of a picture that is cut off", {"objects": [ONE]}, "image-truncated", png=GOOD[:-30]),
    skipped("boxes of a picture of zero bytes", {"objects": [ONE]}, "image-empty", png=b""),
    less("box outside the picture", [ONE, thing([30, 2, 40, 9])], "box-outside"),
    less("box that only touches the picture", [ONE, thing([24, 0, 30, 16])], "box-outside"),
    less("box of negative numbers", [ONE, thing([-9, -9, -2, -2])], "box-outside"),
    less("box of no area", [ONE, thing([3, 4, 3, 4])], "box-empty"),
    less("box of no width", [ONE, thing([3, 4, 3, 9])], "box-empty"),
    less("box with exchanged corners", [ONE, thing([9, 9, 3, 4])], "box-empty"),
    less("box with NaN", [ONE, thing([NAN, 0, 5, 5])], "box-not-finite"),
    less("box of NaN alone", [ONE, thing([NAN] * 4)], "box-not-finite"),
    less("box with infinity", [ONE, thing([0, 0, INF, 5])], "box-not-finite"),
    less("box with 10^300", [ONE, thing([0, 0, 1e300, 5])], "box-not-finite"),
    less("box of three numbers", [ONE, thing([1, 2, 3])], "box-unreadable"),
    less("box of five numbers", [ONE, thing([1, 2, 3, 4, 5])], "box-unreadable"),
    less("box of texts", [ONE, thing(["1", "2", "3", "4"])], "box-unreadable"),
    less("box with null", [ONE, thing([0, 0, None, 4])], "box-unreadable"),
    less("box that is a text", [ONE, thing("0 0 4 4")], "box-unreadable"),
    less("box that is an object", [ONE, thing({"x": 1, "y": 2, "w": 3, "h": 4})], "box-unreadable"),
    less("object without a box", [ONE, {"label": "red half"}], "box-unreadable"),
    less("object without a label", [ONE, {"box": HALF}], "box-unreadable"),
    less("empty label", [ONE, thing(HALF, "")], "box-unreadable"),
    less("label of white space", [ONE, thing(HALF, " \n\t ")], "box-unreadable"),
    less("label that is a number", [ONE, thing(HALF, 7)], "box-unreadable"),
    less("label that is a list", [ONE, thing(HALF, ["red", "half"])], "box-unreadable"),
    less("every box of a picture NaN", [thing([NAN] * 4)] * 3, "box-not-finite", 3, ()),
    less("every box of a picture outside", [thing([99, 99, 120, 120])] * 3, "box-outside", 3, ()),
    used("picture without an object", {"objects": []}, "a picture of background", ()),
    used("box larger than the picture", {"objects": [thing([-9, -9, 99, 99])]},
         "training cuts it at the border", ([-9, -9, 99, 99],), trained=[[0, 0, 24, 16]]),
    used("box of a thousandth of a pixel", {"objects": [thing([5, 5, 5.001, 5.001])]}, "a box",
         ([5, 5, 5.001, 5.001],)),
    used("one box twice", {"objects": [ONE, ONE]}, "evaluation counts two, training merges them",
         (HALF, HALF), trained=[HALF]),
    used("one box with two labels", {"objects": [ONE, thing(HALF, "half")]},
         "evaluation counts two, training has one that answers both", (HALF, HALF), trained=[HALF],
         asked=("half", "red half")),
    used("area that is a text, NaN, a list, negative",
         {"objects": [{**ONE, "area": area} for area in ("abc", NAN, [1], -5)]}, "the box's area",
         (HALF, HALF, HALF, HALF), trained=[HALF]),
    used("exhaustive that is a text", {"objects": [ONE], "exhaustive": "no"}, "not exhaustive"),
    used("crowd", {"objects": [ONE, thing([0, 0, 24, 16], "crowd", crowd=True)]},
         "evaluation ignores what is in it, training leaves it out and does not ask for it",
         (HALF, [0, 0, 24, 16]), trained=[HALF], left_out={"box-crowd": 1}, never=("crowd",)),
    used("300 boxes", {"objects": MANY}, "training draws `--data.max-boxes` and `--data.num-queries` of them",
         [o["box"] for o in MANY], trained=20, left_out={"box-over-limit": 1}),
    used("label of a million characters", {"objects": [thing(HALF, "red " * (MILLION // 4))]},
         "its first tokens", asked=("red red red",)),
    used("label of 10,000 characters without a space", {"objects": [thing(HALF, "r" * 10_000)]},
         "its first tokens", asked=("rrrrrr",)),
    used("label of emoji", {"objects": [thing(HALF, "\U0001f98a")]}, "a label", asked=("\U0001f98a",)),
    used("label of punctuation", {"objects": [thing(HALF, "?!")]}, "a label", asked=("?!",)),
    used("label with half a surrogate pair",
         b'{"objects": [{"label": "\\ud83e", "box": [0, 0, 12, 16]}]}',
         "U+FFFD stands for the half", asked=("\ufffd",)),
    used("label that is among the negatives", {"objects": [ONE], "negatives": ["Red half"]}, "a positive",
         asked=("red half",)),
    used("label that is not exhaustive and negative",
         {"objects": [ONE], "negatives": ["cat"], "not_exhaustive": ["cat"]}, "not asked for",
         never=("cat",)),
    used("2,000 negatives", {"objects": [ONE], "negatives": [f"thing {i}" for i in range(2000)]},
         "`--data.num-queries` are asked", asked=("red half", "thing 18"), never=("thing 19",)),
    used("boxes of a picture twice as large", {"width": 48, "height": 32, "objects": [thing([0, 0, 24, 32])]},
         "scaled to the picture"),
    used("picture 1 pixel high, 5,000 wide, with a box", {"objects": [thing([0, 0, 2500, 1])]},
         "a row of the picture", ([0, 0, 2500, 1],), png=SLIVER),
    used("boxes in the frame after EXIF rotation",
         {"width": 16, "height": 24, "objects": [thing([0, 0, 16, 12])]},
         "the upright picture", ([0, 0, 16, 12],), png=TURNED, kind="jpg"),
]  # fmt: skip
SHARDS = (
    "shards without a single object",
    "shards in which every box is NaN",
    "shards of which no sample has boxes",
    "shards without JSON in a detection run",
)
RUNS = (
    "detection run with too many bad samples",
    "detection run on a size that its mosaics do not divide",
    "detection run from a folder that is no pair",
)
