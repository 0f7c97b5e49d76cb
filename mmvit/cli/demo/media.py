"""The things of a collection as a browser asks for them: whole, in ranges (so that players can seek), drawn.

What is sent has a type from a fixed table, so that nothing of it is ever taken for a page or a script.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmvit.cli.demo.cards import wave
from mmvit.cli.demo.collection import Collection
from mmvit.errors import UserError, need

log = logging.getLogger(__name__)

TYPES = {
    "mp4": "video/mp4", "m4v": "video/mp4", "mov": "video/mp4", "webm": "video/webm", "ogv": "video/ogg",
    "mkv": "video/x-matroska", "avi": "video/x-msvideo", "mpg": "video/mpeg", "mpeg": "video/mpeg",
    "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "oga": "audio/ogg", "opus": "audio/ogg",
    "mp3": "audio/mpeg", "m4a": "audio/mp4", "aac": "audio/aac", "jpg": "image/jpeg", "jpeg": "image/jpeg",
    "png": "image/png", "webp": "image/webp", "bmp": "image/bmp", "gif": "image/gif",
}  # fmt: skip
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def routes(collection: Collection) -> dict[str, Callable[[Any], Any]]:
    """Path -> handler of a request: /media/ROW the thing itself, /wave/ROW a sound's loudness drawn."""
    return {
        "/media/{row:int}": lambda request: _thing(collection, request),
        "/wave/{row:int}": lambda request: _wave(collection, request),
    }


def span(header: str, size: int) -> tuple[int, int] | None:
    """(first, last) byte that a Range header asks for, None for all, also where it cannot be understood.

    Raises:
        ValueError: it begins behind the end.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or not any(match.groups()) or max(map(len, match.groups())) > 18:
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size - 1
    if int(first) >= size:
        raise ValueError(f"byte {first} of {size}")
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end) if end >= int(first) else None


def _thing(collection: Collection, request: Any) -> Any:
    response: Any = need("starlette.responses", "demo").Response
    try:
        data, extension = collection.source(request.path_params["row"])
    except (IndexError, UserError) as error:
        return response(str(error), status_code=404, media_type="text/plain", headers=_HEADERS)
    kind, headers = TYPES.get(extension, "application/octet-stream"), {**_HEADERS, "Accept-Ranges": "bytes"}
    if isinstance(data, Path):  # sent piece by piece: a film may be larger than the memory
        whole: Any = need("starlette.responses", "demo").FileResponse
        return whole(data, media_type=kind, headers=headers)
    try:
        asked = span(request.headers.get("range", ""), len(data))
    except ValueError:
        beyond = {**headers, "Content-Range": f"bytes */{len(data)}"}
        return response("", status_code=416, headers=beyond)
    if asked is None:
        return response(data, media_type=kind, headers=headers)
    first, last = asked
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return response(data[first : last + 1], status_code=206, media_type=kind, headers=headers)


def _wave(collection: Collection, request: Any) -> Any:
    response: Any = need("starlette.responses", "demo").Response
    try:
        drawn = wave(collection.peaks(request.path_params["row"]))
    except (IndexError, UserError) as error:
        return response(str(error), status_code=404, media_type="text/plain", headers=_HEADERS)
    return response(drawn, media_type="image/svg+xml", headers=_HEADERS)
