"""Shards -> `Report`: every member opened once, so that a run does not meet what can be known before."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field

from mmvit.data.annotations import read_annotations
from mmvit.data.captions import read_json, read_text
from mmvit.data.decode import EMBEDDING, PICTURES
from mmvit.data.embedding import read_views
from mmvit.data.folder import Shard, read_index, rebuild
from mmvit.data.labels import LabelCounter
from mmvit.data.media import VIDEOS, Container
from mmvit.data.offsets import scan_tar
from mmvit.data.pixels import BadSample, load_rgb, open_image, upright_size
from mmvit.data.shards import ShardIndex, expand, is_remote
from mmvit.data.video import is_frame
from mmvit.data.waveform import SOUNDS, cut, open_sound
from mmvit.data.write import check_key
from mmvit.errors import UserError

_EXAMPLES = 3
_LABELS = 10


@dataclass(slots=True)
class Report:
    """What `validate` found.

    Attributes:
        shards, samples, bytes: totals over the shards that could be read.
        fields: extension -> samples that have it.
        problems: kind -> how often.
        examples: kind -> up to three places.
        sides: smallest and largest picture side in pixels, (0, 0) without pictures.
        seconds: "videos" and "sounds" -> how many, shortest and longest in seconds.
        boxes: boxes that a reader would use.
        crowds: boxes that stand for a crowd; training leaves them out.
        labels: what all boxes are called.
        words: caption length in words -> how many captions (100 stands for 100 and more).
    """

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    sides: tuple[int, int] = (0, 0)
    seconds: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    boxes: int = 0
    crowds: int = 0
    labels: LabelCounter = field(default_factory=LabelCounter)
    words: Counter[int] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, kind: str, where: str) -> None:
        """Nothing; notes a problem."""
        self.problems[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(where)

    def lasts(self, what: str, seconds: float) -> None:
        """Nothing; notes how long a video or a sound is."""
        count, low, high = self.seconds.get(what, (0, seconds, seconds))
        self.seconds[what] = (count + 1, min(low, seconds), max(high, seconds))

    def lines(self) -> list[str]:
        """The report for people: totals, fields, pictures, captions, launch limits, problems."""
        out = [f"{self.shards} shards, {self.samples} samples, {self.bytes / 1e6:.1f} MB"]
        for name, count in sorted(self.fields.items()):
            missing = f", {self.samples - count} without" if count < self.samples else ""
            out.append(f"  {name:<12} {count} samples{missing}")
        if self.sides[1]:
            out.append(f"pictures: sides of {self.sides[0]} to {self.sides[1]} pixels")
        for what, (count, low, high) in sorted(self.seconds.items()):
            out.append(f"{what}: {count} of {low:.1f} to {high:.1f} seconds")
        if self.boxes or self.labels.counts:
            crowds = f", {self.crowds} crowds" if self.crowds else ""
            out.append(f"boxes: {self.boxes}{crowds}, {len(self.labels.counts)} labels, the most frequent:")
            out += [f"  {count:>8} {label}" for label, count in self.labels.counts.most_common(_LABELS)]
        if self.words:
            total = sum(self.words.values())
            mean = sum(n * c for n, c in self.words.items()) / total
            out.append(f"captions: {total}, {mean:.1f} words on average, {max(self.words)} at most")
        out.append("launch limits: any ranks x workers when read by index (local files);")
        out.append(f"  at most ranks x workers = {self.shards} when read as a stream")
        for kind, count in self.problems.most_common():
            out.append(f"PROBLEM {kind}: {count}, e.g. {'; '.join(self.examples[kind])}")
        out.append("no problem found" if self.ok else f"{sum(self.problems.values())} problems")
        return out


def validate(urls: str, max_pixels: int = 64_000_000) -> Report:
    """What the shards hold and what is wrong with them; every picture and sound is decoded, of videos the
    ends; nothing is changed.

    Args:
        urls: shard pattern(s), several separated by "::".
        max_pixels: larger pictures are a problem.

    Raises:
        UserError: no shard matches, or they cannot be read in any order.
    """
    report, keys = Report(), set()
    for path in [p for pattern in urls.split("::") for p in expand(pattern)]:
        if is_remote(path):
            raise UserError(f"{path}: only local shards can be validated; copy it first")
        damage: list[str] = []
        try:
            offsets = scan_tar(path, damage)
        except UserError as error:
            report.add("shard-unreadable", str(error))
            continue
        for line in damage:
            report.add("shard-damaged", line)
        shard = Shard(path, len(offsets), offsets.total_bytes)
        _check_index(shard, report)
        report.shards += 1
        report.bytes += shard.bytes
        index = ShardIndex([shard], set(offsets.extensions), [], {path: offsets})
        for i in range(len(offsets)):
            key = index.key(i)
            where = f"{key} in {os.path.basename(path)}"
            if key in keys:
                report.add("key-twice", where)
            keys.add(key)
            _check_sample(index, i, where, report, max_pixels)
        index.close()
    return report


def _check_index(shard: Shard, report: Report) -> None:
    """Compares a shard with what index.json says of it."""
    folder, name = os.path.split(shard.path)
    try:
        content = read_index(folder)
    except UserError as error:
        report.add("index-damaged", str(error))
        return
    entry = next((s for s in content["shards"] if s["name"] == name), None) if content else None
    if entry and (entry["samples"], entry["bytes"]) != (shard.samples, shard.bytes):
        report.add(
            "index-lies",
            f"{name}: {entry['samples']} samples and {entry['bytes']} bytes listed, {shard.samples} and "
            f"{shard.bytes} there; {rebuild(shard.path)}",
        )


def _check_sample(index: ShardIndex, i: int, where: str, report: Report, max_pixels: int) -> None:
    report.samples += 1
    try:
        check_key(index.key(i))
    except UserError:
        report.add("key-unsafe", where)
    try:
        raw = index.read(i)
    except (BadSample, UserError) as error:
        report.add(error.reason if isinstance(error, BadSample) else "shard-damaged", f"{where}: {error}")
        return
    members = {name: data for name, data in raw.items() if name != "__key__"}
    report.fields.update(members.keys())
    plain = [name for name in members if "." not in name]
    if not plain and any(name.rpartition(".")[2] in (*PICTURES, "txt", "json") for name in members):
        report.add("key-with-dots", f"{where}: read as member {next(iter(members))!r}")
    bad_members: set[str] = set()
    for name, data in members.items():
        if not data:
            bad_members.add(name)
            report.add("member-empty", f"{where}: {name}")
            continue
        try:
            _check_member(name, data, report, max_pixels)
        except BadSample as bad:
            report.add(bad.reason, f"{where}: {bad.detail}")
            bad_members.add(name)
    if b'"box"' in members.get("json", b"") and not bad_members and set(PICTURES) & set(members):
        try:
            _check_boxes(members, where, report, max_pixels)
        except BadSample as bad:
            report.add(bad.reason, f"{where}: {bad.detail}")


def _check_boxes(members: dict[str, bytes], where: str, report: Report, max_pixels: int) -> None:
    """Compares the boxes in a sample's JSON with its picture; raises BadSample where there can be none."""
    meta = read_json(members["json"])
    if "objects" not in meta:
        return
    picture = next(members[extension] for extension in PICTURES if extension in members)
    width, height = upright_size(open_image(picture, max_pixels))

    def note(bad: BadSample) -> None:
        if bad.reason == "box-crowd":
            report.crowds += 1
        else:
            report.add(bad.reason, f"{where}: {bad.detail}")

    report.boxes += len(read_annotations(meta, (height, width), note).boxes)
    report.labels.add(meta)


def _check_member(name: str, data: bytes, report: Report, max_pixels: int) -> None:
    """Decodes one member (of a video the first and the last frame); raises BadSample where that fails."""
    if name in VIDEOS:
        with Container(data, max_pixels) as video:
            for end in (0.0, video.seconds):
                next(video.pictures([end]))
            if video.has_sound:
                cut(video, 0.0, video.rate, video.rate)
            report.lasts("videos", video.seconds)
    elif name.rpartition(".")[2] in SOUNDS:
        with open_sound(data) as sound:
            if sound.seconds <= 0:
                raise BadSample("audio-empty", "0 samples")
            for second in range(math.ceil(sound.seconds)):
                cut(sound, second, sound.rate, sound.rate)
            report.lasts("sounds", sound.seconds)
    elif name in PICTURES or is_frame(name):
        image = open_image(data, max_pixels)
        low, high = min(image.size), max(image.size)
        report.sides = (min(report.sides[0] or low, low), max(report.sides[1], high))
        load_rgb(image, (255, 255, 255))
    elif name == "txt":
        text = read_text(data)
        if not text:
            raise BadSample("text-empty")
        report.words[min(len(text.split()), 100)] += 1
    elif name == "json":
        read_json(data)
    elif name == EMBEDDING:
        read_views(data)
