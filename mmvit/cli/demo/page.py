"""The page of `mmvit-demo detect`: a picture, names or an example, sliders, and what was found.

Layout and wiring only; what happens stands in `handlers` and `example`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mmvit.cli.demo.example import build_panel
from mmvit.cli.demo.finder import Finder, Settings
from mmvit.cli.demo.handlers import START, Handlers, Sample
from mmvit.cli.demo.style import say
from mmvit.errors import need

_HEAD = (
    "<h1>Find anything in a picture</h1><p>Name what you look for in your own words, or show an example of "
    "it. Everything is computed on the machine that serves this page.</p>"
)


def build_page(finder: Finder, samples: Sequence[Sample] = (), settings: Settings | None = None) -> Any:
    """The page as a `gradio.Blocks`, not yet served: see `serve`.

    Args:
        finder: answers the questions.
        samples: pictures to pick from.
        settings: where the sliders stand at first.

    Raises:
        UserError: gradio is not installed.
    """
    gr = need("gradio", "demo")
    hands = Handlers(finder, samples)
    blocks = gr.Blocks(
        title="mmvit: find anything", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    )
    with blocks as page:
        gr.HTML(_HEAD, elem_id="head", padding=False)
        mode = gr.State("words")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=340):
                picture = upload("Picture: upload, paste or pick" if samples else "Picture", "picture", 230)
                picks = _picks(samples)
                with gr.Tab("By words", elem_id="by-words"):
                    words = gr.Textbox(
                        label="Names", info="separated by commas or lines", elem_id="words", lines=2,
                        max_lines=8, placeholder="red fox, cup of tea, traffic light",
                    )  # fmt: skip
                    find = gr.Button("Find", variant="primary", elem_id="find")
                with gr.Tab("By example", elem_id="by-example"):
                    panel = build_panel(finder, upload)
                    like = gr.Button("Find things like it", variant="primary", elem_id="find-like")
                sliders = _sliders(settings or Settings())
            with gr.Column(scale=7, min_width=420, elem_id="answer"):
                answer = _answer()
        asked = [picture, words, *panel.inputs, *sliders]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        again = {"inputs": [mode, *asked], "outputs": answer, "trigger_mode": "always_last", **quiet}
        for button, kind in ((find, "words"), (like, "example")):
            button.click(functools.partial(hands.find, kind), asked, answer, **quiet)
            button.click(functools.partial(str, kind), None, mode, **quiet)
        for slider in sliders:
            slider.release(hands.again, **again)
        picture.upload(hands.take, [mode, *asked], [picture, *answer], **quiet)
        picture.clear(hands.start, None, answer, **quiet)
        for number, pick in enumerate(picks):
            chosen = pick.click(functools.partial(hands.pick, number), None, [picture, words], **quiet)
            chosen.then(hands.again, **again)
    return page.queue(default_concurrency_limit=1, max_size=64)


def upload(label: str, name: str, height: int) -> Any:
    """A component that takes a picture and hands over its path: it is the finder that reads it, or refuses.

    Args:
        label: above it.
        name: its id on the page.
        height: in pixels.
    """
    gr = need("gradio", "demo")
    component = gr.Image(
        label=label, elem_id=name, type="filepath", height=height, sources=["upload", "clipboard"],
        buttons=[],
    )  # fmt: skip
    # The component's own reading fails with the decoder's words, and before any handler of ours is called. No
    # handler may answer with an update of this component: gradio would make it anew, without this line.
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def _picks(samples: Sequence[Sample]) -> list[Any]:
    """Small pictures to click, in one row."""
    gr = need("gradio", "demo")
    if not samples:
        return []
    with gr.Row(elem_id="samples"):
        return [
            gr.Button("", icon=str(sample.path), elem_id=f"sample-{i}", min_width=56, size="sm")
            for i, sample in enumerate(samples)
        ]


def _sliders(at: Settings) -> list[Any]:
    """Threshold, top-k and overlap."""
    gr = need("gradio", "demo")
    with gr.Group():
        threshold = gr.Slider(
            0, 1, at.threshold, step=0.01, label="Threshold: lowest score shown", elem_id="threshold",
            buttons=[],
        )  # fmt: skip
        with gr.Row():
            top_k = gr.Slider(
                1, 100, at.top_k, step=1, label="At most", elem_id="top-k", buttons=[], min_width=150
            )
            nms = gr.Slider(
                0, 1, at.nms, step=0.05, label="Overlap", elem_id="nms", buttons=[], min_width=150
            )
    return [threshold, top_k, nms]


def _answer() -> list[Any]:
    """Status, picture, rows, file to save."""
    gr = need("gradio", "demo")
    return [
        gr.HTML(say(START), elem_id="status", padding=False),
        gr.Image(
            label="Found", show_label=False, elem_id="found", interactive=False, format="png", height=620,
            buttons=["download", "fullscreen"],
        ),
        gr.HTML(elem_id="rows", padding=False),
        gr.DownloadButton("Save the boxes as JSON", size="sm", elem_id="json", visible=False),
    ]  # fmt: skip
