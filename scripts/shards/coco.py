"""COCO and LVIS JSON -> one record per picture, in the form that docs/data.md gives for boxes.

Boxes become xyxy, category numbers become names, underscores spaces; the numbers are kept so that results can
be compared with other tools. Masks and keypoints are not read.
Source: the formats of cocodataset.org and lvisdataset.org (version 1).
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvit.data.annotations import check_box
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError

_FAR = (1e9, 1e9)  # pixels: what lies outside its picture is the reader's business


@dataclass(slots=True)
class Annotated:
    """A file of annotations.

    Attributes:
        pictures: (name, path, JSON of the sample), in the order of the file.
        categories: name, id, and where known frequency, synonyms and supercategory.
        left_out: annotations that cannot be used, by reason.
        examples: one of each.
    """

    pictures: list[tuple[str, Path, dict[str, Any]]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, detail: str) -> None:
        """Nothing; counts something that is left out."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, detail)


def read_coco(path: Path, images: Path, exhaustive: bool = True) -> Annotated:
    """The pictures of a COCO or LVIS file with their objects; those without a box too.

    Args:
        path: the JSON, with images, annotations and categories.
        images: the folder that its file names start from.
        exhaustive: whether a picture lacks what it has no box of; not asked for LVIS, which lists for every
            picture what it lacks and what is not marked completely.

    Raises:
        UserError: it is not such a file, or the folder is not there.
    """
    content = _load(path)
    if not images.is_dir():
        raise UserError(f"--images {images} is not a folder: give the one that the file names start from")
    out = Annotated(categories=[_category(c) for c in content["categories"]])
    names = {c["id"]: c["name"] for c in out.categories}
    found: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        if image.get("id") in found:
            out.add("image-twice", f"image id {image.get('id')}")
            continue
        name = _file(image)
        if name is None:
            out.add("image-without-file", f"image id {image.get('id')} has no file_name and no coco_url")
            continue
        meta = _facts(image, names, exhaustive)
        found[image.get("id")] = meta
        out.pictures.append((posixpath.splitext(name)[0], _where(images, name), meta))
    seen = set()
    for annotation in content["annotations"]:
        number = annotation.get("id")
        if number is not None and number in seen:
            out.add("annotation-twice", f"annotation id {number}")
            continue
        seen.add(number)
        _place(annotation, names, found, out)
    return out


def _place(
    annotation: dict[str, Any], names: dict[Any, str], found: dict[Any, dict[str, Any]], out: Annotated
) -> None:
    """Nothing; adds an annotation to its picture, or counts why that cannot be."""
    number, picture = annotation.get("id"), found.get(annotation.get("image_id"))
    if picture is None:
        out.add("annotation-without-image", f"annotation id {number}: image {annotation.get('image_id')}")
        return
    label = names.get(annotation.get("category_id"))
    if label is None:
        out.add(
            "annotation-without-category", f"annotation id {number}: category {annotation.get('category_id')}"
        )
        return
    try:
        box = _corners(annotation.get("bbox"))
        check_box(box, _FAR, f"annotation id {number}")
    except BadSample as bad:
        out.add(bad.reason, bad.detail)
        return
    kept = {key: annotation[key] for key in ("id", "category_id", "area") if key in annotation}
    crowd = {"crowd": True} if annotation.get("iscrowd") else {}
    picture["objects"].append({"label": label, "box": box, **kept, **crowd})


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:80]
        raise UserError(f"{path} is not JSON that can be read: {reason}") from None
    parts = ("images", "annotations", "categories")
    lists = isinstance(content, dict) and all(
        isinstance(content.get(part), list) and all(isinstance(x, dict) for x in content[part])
        for part in parts
    )
    if not lists:
        raise UserError(
            f"{path} is no COCO or LVIS file: an object with the lists {', '.join(parts)} was expected"
        )
    for category in content["categories"]:
        if "id" not in category or not isinstance(category.get("name"), str):
            raise UserError(f"{path}: the category {str(category)[:80]} has no id or no name")
    return content


def _category(category: dict[str, Any]) -> dict[str, Any]:
    known = {k: category[k] for k in ("frequency", "synonyms", "supercategory") if k in category}
    return {"id": category["id"], "name": category["name"].replace("_", " "), **known}


def _facts(image: dict[str, Any], names: dict[Any, str], exhaustive: bool) -> dict[str, Any]:
    """What is known of a picture before its boxes are."""
    facts = {key: image[key] for key in ("width", "height") if key in image}
    facts |= {"image_id": image.get("id"), "objects": []}
    if "neg_category_ids" in image or "not_exhaustive_category_ids" in image:
        for ours, theirs in (
            ("negatives", "neg_category_ids"),
            ("not_exhaustive", "not_exhaustive_category_ids"),
        ):
            facts[ours] = [names[c] for c in image.get(theirs) or [] if c in names]
    else:
        facts["exhaustive"] = exhaustive
    return facts


def _file(image: dict[str, Any]) -> str | None:
    """The picture's path below the folder of images; LVIS has the last two parts of an address instead."""
    name = image.get("file_name")
    if isinstance(name, str) and name:
        return name
    address = image.get("coco_url")
    return "/".join(address.split("/")[-2:]) if isinstance(address, str) and address else None


def _where(images: Path, name: str) -> Path:
    """`name` below the folder, or only its last part where the folder is the inner one itself."""
    path = images / name
    return path if path.exists() or "/" not in name else images / posixpath.basename(name)


def _corners(box: Any) -> Any:
    """[x0, y0, x1, y1] of [x, y, width, height]; what is not four numbers is left for the check."""
    if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box):
        x, y, width, height = box
        return [x, y, x + width, y + height]
    return box
