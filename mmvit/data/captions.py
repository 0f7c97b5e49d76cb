"""Which captions a sample has, which one is drawn, and which samples "show the same".

`key.txt` is the main caption; the JSON's "texts" adds more: a list, or {"en": [...], "fr": [...]} by
language.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from mmvit.data.pixels import BadSample

LONGEST = 32_768
DEEPEST = 64
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def read_text(data: bytes) -> str:
    """The caption in a .txt member, outer white space removed; "" where no character of it can be seen.

    Raises:
        BadSample: text-not-utf8, or text-too-long (above 32,768 characters: no caption, and slow to
            tokenize).
    """
    try:
        text = _visible(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadSample("text-not-utf8", f"byte {error.start} is {data[error.start]:#x}") from None
    if len(text) > LONGEST:
        raise BadSample("text-too-long", f"{len(text)} characters, at most {LONGEST}")
    return text


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a .json member; halves of surrogate pairs, which no tokenizer takes, become U+FFFD.

    Raises:
        BadSample: json-unreadable: not UTF-8, not JSON, not an object, or more than 64 levels deep.
    """
    try:
        content = json.loads(data)
        if _HALF.search(data):
            content = json.loads(re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(content, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise BadSample("json-unreadable", str(error)[:80]) from None
    if not isinstance(content, dict):
        raise BadSample("json-unreadable", f"an object was expected, this is a {type(content).__name__}")
    if data.count(b"{") + data.count(b"[") > DEEPEST and _deeper(content, DEEPEST):
        raise BadSample("json-unreadable", f"nested more than {DEEPEST} levels deep")
    return content


def all_captions(raw: Mapping[str, bytes], meta: Mapping[str, Any], languages: Sequence[str]) -> list[str]:
    """The sample's captions, main one first, empty and repeated ones left out.

    Args:
        raw: members by extension.
        meta: the JSON.
        languages: keys of "texts" to use, in this order; ("*",) = all. A plain list counts as every language.

    Raises:
        BadSample: text-missing, text-empty, or as `read_text`.
    """
    found = [read_text(raw["txt"])] if "txt" in raw else []
    texts = meta.get("texts", [])
    if isinstance(texts, Mapping):
        wanted = sorted(texts) if "*" in languages else languages
        texts = [text for language in wanted for text in _as_list(texts.get(language, []))]
    found += [_visible(t) for t in _as_list(texts) if isinstance(t, str) and len(t) <= LONGEST]
    captions = [text for text in dict.fromkeys(found) if text]
    if not captions:
        raise BadSample("text-empty" if "txt" in raw or found else "text-missing")
    return captions


def choose(captions: Sequence[str], how: str, rng: random.Random, first_rate: float = 0.0) -> str:
    """One caption: the first, or ("random") the first at `first_rate`, else any, all equally likely."""
    if how == "first" or len(captions) == 1 or rng.random() < first_rate:
        return captions[0]
    return captions[rng.randrange(len(captions))]


def near(meta: Mapping[str, Any], centre: float, count: int) -> list[str] | None:
    """At most `count` captions said nearest to second `centre` of the sample's media, the nearest first.

    They come from the JSON's "captions", a list of {"t": seconds, "text": …} (or "start" and "end" for "t").
    These times, and the JSON's "start", are on the clock of the video that the sample was cut from: "start"
    is where its media begin, 0 where it is missing.

    Returns:
        None where the JSON has no such list.

    Raises:
        BadSample: json-unreadable for times that are no numbers, text-empty where no caption can be seen.
    """
    listed = meta.get("captions")
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        return None
    found: list[tuple[float, str]] = []
    try:
        centre += float(meta.get("start", 0.0))
        for entry in listed:
            said = entry["t"] if "t" in entry else (float(entry["start"]) + float(entry["end"])) / 2
            text = entry["text"]
            if not math.isfinite(distance := abs(float(said) - centre)):
                raise ValueError(f"time {said}")
            if isinstance(text, str) and len(text) <= LONGEST and _visible(text):
                found.append((distance, _visible(text)))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BadSample("json-unreadable", f"captions must be {{'t', 'text'}}: {what[:60]}") from None
    if not found:
        raise BadSample("text-empty")
    found.sort(key=lambda pair: pair[0])  # stable: of two as near, the earlier in the list
    return list(dict.fromkeys(text for _, text in found))[:count]


def group_of(value: str | int) -> int:
    """63-bit hash of a caption or label, the same whatever the case, spacing or final stop."""
    text = unicodedata.normalize("NFKC", str(value)).casefold()
    text = " ".join(text.split()).rstrip(".").strip()
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _visible(text: str) -> str:
    """`text` without outer white space; "" where it holds only spaces, controls and invisible marks."""
    text = text.strip()
    seen = any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp", "Cs") for c in text)
    return text if seen else ""


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels < 1 or any(_deeper(v, levels - 1) for v in inner)


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, list | tuple) else []
