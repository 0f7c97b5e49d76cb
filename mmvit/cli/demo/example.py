"""The part of the page where a second picture shows what to look for: two clicks mark it, numbers as well.

The picture that is clicked is a reduced one; boxes are always kept in pixels of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from mmvit.cli.demo.finder import Finder
from mmvit.cli.demo.handlers import guarded
from mmvit.cli.demo.style import say
from mmvit.cli.demo.uploads import box_in
from mmvit.errors import need

HINT = "Click two opposite corners of the thing; without a box, the whole picture is the example."
SECOND = "One corner is set: click the opposite one."
_NO_BOX = (None, None, None, None)
_MARK, _HALO = (230, 25, 75), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """The panel's components that a question reads: file, name, x0, y0, x1, y1."""

    inputs: list[Any]


def build_panel(finder: Finder, upload: Callable[..., Any]) -> Panel:
    """The panel, laid out where this is called.

    Args:
        finder: reads pictures.
        upload: makes a component that hands over the path of an uploaded picture.
    """
    gr = need("gradio", "demo")
    marks = Marks(finder)
    corner = gr.State(None)
    path = upload("Example", "example", 150)
    hint = gr.HTML(elem_id="hint", padding=False)
    marked = gr.Image(
        label="Example: click two corners", elem_id="marked", interactive=False, visible=False, height=300,
        format="png", buttons=[],
    )  # fmt: skip
    name = gr.Textbox(
        label="What to call it", placeholder="like the example", elem_id="example-name", max_lines=1
    )
    with gr.Accordion("The box in numbers (pixels of the example)", open=False, elem_id="numbers"), gr.Row():
        box = [
            gr.Number(None, label=label, minimum=0, min_width=70, elem_id=f"box-{label}", buttons=[])
            for label in ("x0", "y0", "x1", "y1")
        ]
    whole = gr.Button("The whole picture", size="sm", visible=False, elem_id="whole")
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    path.upload(marks.take, path, [path, marked, whole, hint, corner, *box], **quiet)
    path.clear(marks.clear, None, [marked, whole, hint, corner, *box], **quiet)
    marked.select(_with_event(gr, marks.click), [path, corner, *box], [marked, hint, corner, *box], **quiet)
    whole.click(marks.whole, path, [marked, hint, corner, *box], **quiet)
    for number in box:
        number.blur(marks.show, [path, *box], [marked, hint], **quiet)
        number.submit(marks.show, [path, *box], [marked, hint], **quiet)
    return Panel([path, name, *box])


class Marks:
    """What the panel's events call.

    Args:
        finder: reads pictures.
    """

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def take(self, path: str) -> tuple[Any, ...]:
        """(upload, marked, whole, hint, corner, box…); a file that cannot be used is taken off the page."""
        gr = need("gradio", "demo")
        view, line = guarded(lambda: self.finder.view(path)[0])
        if view is None:
            return (None, *self.clear(line))
        return path, gr.update(value=view, visible=True), gr.update(visible=True), HINT, None, *_NO_BOX

    def clear(self, line: str = "") -> tuple[Any, ...]:
        """(marked, whole, hint, corner, box…) without an example."""
        gr = need("gradio", "demo")
        hidden = gr.update(visible=False)
        return gr.update(value=None, visible=False), hidden, say(line, "bad") if line else "", None, *_NO_BOX

    def whole(self, path: str) -> tuple[Any, ...]:
        """(marked, hint, corner, box…) without a box."""
        return (*self.show(path, *_NO_BOX), None, *_NO_BOX)

    def click(self, at: tuple[float, float], path: str, corner: Any, *box: Any) -> tuple[Any, ...]:
        """(marked, hint, corner, box…) after a click: the first corner, then the second one.

        Args:
            at: (x,y) in pixels of the picture that is shown.
            path: the example.
            corner: the first corner, in pixels of the file, None before it is set.
            box: the four numbers.
        """
        (view, scale), line = _or(guarded(lambda: self.finder.view(path)), (None, 1.0))
        if view is None:
            return None, say(line, "bad"), None, *box
        point = round(at[0] / scale, 1), round(at[1] / scale, 1)
        if corner is None:
            return _marked(view, scale, point), SECOND, point, *_NO_BOX
        low, high = (tuple(pick(a, b) for a, b in zip(corner, point, strict=True)) for pick in (min, max))
        new = (*low, *high)
        return (*self.show(path, *new), None, *new)

    def show(self, path: str, *box: Any) -> tuple[Any, str]:
        """(marked, hint): the example with its box drawn."""
        if not path:
            return None, ""
        (view, scale), line = _or(guarded(lambda: self.finder.view(path)), (None, 1.0))
        if view is None:
            return None, say(line, "bad")
        size = tuple(round(side / scale) for side in view.size)
        cut, line = guarded(lambda: box_in(box, (size[0], size[1])))
        if line:
            return view, say(line, "bad")
        if cut is None:
            return view, HINT
        text = ", ".join(f"{value:g}" for value in cut)
        return _marked(view, scale, cut), f"Example: the box {text}. Two more clicks choose another."


def _marked(view: Image.Image, scale: float, points: Sequence[float]) -> Image.Image:
    """The picture with a corner (x,y) or a box (x0,y0,x1,y1), in pixels of the file, drawn on it."""
    picture = view.copy()
    pen = ImageDraw.Draw(picture)
    wide = max(2, round(max(picture.size) / 220))
    values = [value * scale for value in points]
    if len(values) == 4:
        pen.rectangle(
            [values[0] - 1, values[1] - 1, values[2] + 1, values[3] + 1], outline=_HALO, width=wide + 2
        )
        pen.rectangle(values, outline=_MARK, width=wide)
        return picture
    x, y = values
    for ink, reach, thick in ((_HALO, 5 * wide + 1, wide + 2), (_MARK, 5 * wide, wide)):
        pen.line([x - reach, y, x + reach, y], fill=ink, width=thick)
        pen.line([x, y - reach, x, y + reach], fill=ink, width=thick)
    return picture


def _or(result: tuple[Any, str], fallback: Any) -> tuple[Any, str]:
    return (fallback if result[0] is None else result[0]), result[1]


def _with_event(gr: Any, handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler` as gradio wants it: what was clicked comes as the first argument, known by its annotation."""

    def call(event, *given):
        return handler(event.index, *given)

    call.__annotations__["event"] = gr.SelectData
    return call
