"""What the events of the search page call: what the page holds -> what the page shows.

As on every page, a mistake becomes a line, and the server lives on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvit.cli.demo.cards import TITLES, shelves, summary
from mmvit.cli.demo.handlers import guarded
from mmvit.cli.demo.seeker import Answer, Seeker
from mmvit.cli.demo.style import say
from mmvit.errors import UserError, need

START = "Write what you look for, or drop a sound, a picture or a clip."
Shown = tuple[Any, Any, Any]  # status, shelves, file to save


class SearchHandlers:
    """The page's answers.

    Args:
        seeker: answers the questions.
    """

    def __init__(self, seeker: Seeker) -> None:
        self.seeker = seeker
        self.counts = {name: seeker.collection.count(name) for name in seeker.collection.modalities}

    def start(self) -> Shown:
        """The answer of a page that was asked nothing."""
        return _shown(say(START))

    def find(self, mode: str, content: str | None, k: float, wanted: Sequence[str]) -> Shown:
        """What was found, or why there is nothing to show.

        Args:
            mode: "text", "audio", "image", "video", or "heard": the sound of a clip.
            content: the words, or the path of the file.
            k: at most so many of each kind.
            wanted: titles of the kinds that are looked for.
        """
        answer, line = guarded(lambda: self._found(mode, content, k, wanted))
        if answer is None:
            return _shown(say(line, "bad"))
        return _shown(summary(answer), shelves(answer, self.counts), _file(answer))

    def again(self, mode: str, words: str, sound: Any, picture: Any, clip: Any, *settings: Any) -> Shown:
        """As `find`, for a page whose settings changed: what is not asked yet is no mistake."""
        content = {"text": words, "audio": sound, "image": picture, "video": clip, "heard": clip}[mode]
        return self.find(mode, content, *settings) if (content or "").strip() else self.start()

    def drop(self, mode: str, path: str | None, *settings: Any) -> tuple[Any, ...]:
        """(upload, answer…) to a file that was dropped; one that cannot be used is taken off the page."""
        shown = self.find(mode, path, *settings)
        bad = 'class="say bad"' in shown[0]
        return (None if bad else path, *shown)

    def _found(self, mode: str, content: str | None, k: float, wanted: Sequence[str]) -> Answer:
        kinds = [name for name in self.seeker.collection.modalities if TITLES[name] in wanted]
        if mode == "text":
            return self.seeker.words(content or "", int(k), kinds)
        if not content:
            raise UserError("there is no file yet: drop one, or record one")
        mode = "audio" if mode == "heard" else mode
        if mode == "audio":  # what answers a sound is not another sound first
            kinds.sort(key="audio".__eq__)
        return self.seeker.like(mode, content, int(k), kinds)


def _shown(status: str, html: str = "", file: str | None = None) -> Shown:
    return status, html, need("gradio", "demo").update(value=file, visible=file is not None)


def _file(answer: Answer) -> str:
    """A file with the results as JSON; gradio copies it to where it may be downloaded from."""
    folder = Path(tempfile.mkdtemp(prefix="results-", dir=tempfile.gettempdir()))
    path = folder / "results.json"
    path.write_text(json.dumps(answer.to_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
    return str(path)
