"""Odd captions and odd JSON."""

import json

from tests.faults.case import CAPTION, Case
from tests.faults.cases_pictures import encoded, halves

GOOD = encoded(halves())
MILLION = 1_000_000


def caption(fault, text, *rest):
    return Case(
        fault, lambda: {"png": GOOD, "txt": text if isinstance(text, bytes) else text.encode()}, *rest
    )


def facts(fault, data, *rest, txt=CAPTION):
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Case(fault, lambda: {"png": GOOD, "txt": txt, "json": content}, *rest)


def says(text):
    def check(image, caption):
        assert caption == text, caption[:100]

    return check


WORKS = ("", "the caption", says(CAPTION))
CASES = [
    Case("no caption at all", lambda: {"png": GOOD}, "text-missing"),
    caption("empty caption", "", "text-empty"),
    caption("caption of white space", " \t\r\n\u00a0\u2003", "text-empty"),
    caption("caption of control characters", "\x00\x01\x1b\x7f", "text-empty"),
    caption("caption of invisible marks", "\u200b\u200d\ufeff\u202e", "text-empty"),
    caption("caption of a million characters", "red " * (MILLION // 4), "text-too-long"),
    caption("caption of a million characters without a space", "r" * MILLION, "text-too-long"),
    caption("caption of 30,000 characters without a space", "r" * 30_000, "",
         "its first 32 L characters, L the context",
            says("r" * 30_000)),
    caption("caption in Latin-1", "café".encode("latin-1"), "text-not-utf8"),
    caption("caption in UTF-16", "a red circle".encode("utf-16"), "text-not-utf8"),
    caption("caption that is a JPEG", encoded(halves(), "JPEG"), "text-not-utf8"),
    caption("caption with a byte order mark", b"\xef\xbb\xbf" + CAPTION.encode(), *WORKS),
    caption("caption of several lines", f"\r\n{CAPTION}\r\n", *WORKS),
    caption("caption of emoji only", "\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467", "", "a caption",
            says("\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467")),
    caption("caption with a NUL character", "red\0fox", "", "a caption", says("red\0fox")),
    caption("caption with 5,000 accents on a letter", "a" + "\u0301" * 5000, "", "a caption",
         says("a" + "\u0301" * 5000)),
    facts("JSON of zero bytes", b"", "json-unreadable"),
    facts("JSON cut off", b'{"label": "fo', "json-unreadable"),
    facts("JSON that is a list", [1, 2], "json-unreadable"),
    facts("JSON that is a number", 7, "json-unreadable"),
    facts("JSON in Latin-1", b'{"label": "caf\xe9"}', "json-unreadable"),
    facts("JSON 100,000 levels deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json-unreadable"),
    facts("JSON 200 levels deep", b'{"a":' * 200 + b"1" + b"}" * 200, "json-unreadable"),
    facts("JSON with a number of 5,000 digits", b'{"a": ' + b"9" * 5000 + b"}", "json-unreadable"),
    facts("JSON with NaN", b'{"label": NaN, "x": [Infinity]}', "", "NaN is a value like others",
         says(CAPTION)),
    facts("JSON with one name twice", b'{"label": 1, "label": 2}', "", "the last one counts", says(CAPTION)),
    facts("JSON whose label is a list", {"label": ["a", {"b": 1}]}, *WORKS),
    facts("JSON whose texts are no texts", {"texts": {"en": [1, None, {"a": "b"}, ["c"]], "de": 7}}, *WORKS),
    facts("JSON whose texts are a number", {"texts": 7}, *WORKS),
    facts("JSON text of a million characters", {"texts": {"en": ["r" * MILLION]}}, "",
          "the other captions", says(CAPTION)),
    facts("JSON text with half a surrogate pair", b'{"texts": {"en": ["red \\ud83e fox"]}}', "",
          "U+FFFD stands for the half", says("red \ufffd fox"), txt=None),
]  # fmt: skip
