"""What the page's events call: what the page holds -> what the page shows.

Between two calls only the finder remembers anything, and only as a cache. A mistake becomes a line on the
page; what nobody foresaw does too, with its traceback in the server's log, and the server lives on.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mmvit.cli.demo.draw import draw
from mmvit.cli.demo.finder import Finder, Found, Question, Settings
from mmvit.cli.demo.style import say, summary, table
from mmvit.cli.demo.uploads import names_in
from mmvit.errors import UserError, need

log = logging.getLogger(__name__)

START = "Upload a picture or pick one, write what you look for, and press Find."
T = TypeVar("T")
Answer = tuple[Any, Any, Any, Any]  # status, picture, rows, file to save


@dataclass(frozen=True)
class Sample:
    """A picture to pick: its file, and names that fit it, as they would be typed."""

    path: Path
    names: str = ""


class Handlers:
    """The page's answers.

    Args:
        finder: answers the questions.
        samples: pictures to pick from.
    """

    def __init__(self, finder: Finder, samples: Sequence[Sample] = ()) -> None:
        self.finder, self.samples = finder, samples

    def start(self) -> Answer:
        """The answer of a page without a picture."""
        return _answer(say(START))

    def find(self, mode: str, *asked: Any) -> Answer:
        """What was found, or why there is nothing to show.

        Args:
            mode: "words" or "example".
            asked: the page's fields, in the order of `page.build_page`.
        """
        shown, line = guarded(lambda: _shown(self._found(mode, asked)))
        return shown if shown is not None else _answer(say(line, "bad"), self._plain(asked[0]))

    def again(self, mode: str, *asked: Any) -> Answer:
        """As `find`, for a page that changed by itself: what is not asked yet is no mistake."""
        path, words, example = asked[:3]
        if not path:
            return self.start()
        if not ((words or "").strip() if mode == "words" else example):
            return _answer(say(START), self._plain(path))
        return self.find(mode, *asked)

    def take(self, mode: str, *asked: Any) -> tuple[Any, ...]:
        """(upload, answer…) as `again` gives it: a file that cannot be used is taken off the page."""
        _, line = guarded(lambda: self.finder.read(asked[0]))
        if line:
            return (None, *_answer(say(line, "bad")))
        return (asked[0], *self.again(mode, *asked))

    def pick(self, number: int) -> tuple[str, str]:
        """(path, names) of the sample that was clicked."""
        return str(self.samples[number].path), self.samples[number].names

    def _found(self, mode: str, asked: Sequence[Any]) -> Found:
        path, words, example, name, x0, y0, x1, y1, threshold, top_k, nms = asked
        if not path:
            raise UserError("there is no picture yet: upload one or pick one")
        if mode == "words":
            question = Question(tuple(names_in(words, self.finder.limits)))
        elif not example:
            raise UserError("there is no example yet: upload a picture that shows what you look for")
        else:
            names = names_in(name, self.finder.limits) if (name or "").strip() else []
            question = Question(tuple(names[:1]), example, (x0, y0, x1, y1))
        return self.finder.find(path, question, Settings(float(threshold), int(top_k), float(nms)))

    def _plain(self, path: str | None) -> Image.Image | None:
        """The picture without boxes; None where there is none that can be shown."""
        return guarded(lambda: self.finder.view(path)[0])[0] if path else None


def guarded(compute: Callable[[], T]) -> tuple[T | None, str]:
    """(the result, "") or (None, one line that says what is wrong)."""
    try:
        return compute(), ""
    except UserError as error:
        line = str(error)
        return None, line[:1].upper() + line[1:] + ("" if line.endswith((".", "?", "!")) else ".")
    except Exception as error:
        log.exception("a request failed")
        return None, f"This went wrong inside ({type(error).__name__}); the server's log says more."


def _shown(found: Found) -> Answer:
    picture = draw(found.view, found.on_view(), names=found.names, at_least=960)
    return _answer(summary(found), picture, table(found), _file(found))


def _answer(
    status: str, picture: Image.Image | None = None, rows: str = "", file: str | None = None
) -> Answer:
    return status, picture, rows, need("gradio", "demo").update(value=file, visible=file is not None)


def _file(found: Found) -> str:
    """A file with the boxes as JSON; gradio copies it to where it may be downloaded from."""
    folder = Path(tempfile.mkdtemp(prefix="boxes-", dir=tempfile.gettempdir()))
    path = folder / "boxes.json"
    path.write_text(json.dumps(found.to_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
    return str(path)
