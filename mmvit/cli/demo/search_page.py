"""The page of `mmvit-demo search`: a question in words or as a file, and what is nearest, playing.

Layout and wiring only; what happens stands in `search_handlers`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mmvit.cli.demo.cards import TITLES
from mmvit.cli.demo.page import upload
from mmvit.cli.demo.search_handlers import START, SearchHandlers
from mmvit.cli.demo.seeker import Seeker
from mmvit.cli.demo.style import say
from mmvit.errors import need

_HEAD = (
    "<h1>Search clips, sounds and pictures</h1><p>Ask in your own words, or with a sound, a picture or a "
    "clip. Everything is computed on the machine that serves this page.</p>"
)
_TABS = {"text": "Words", "audio": "Sound", "image": "Picture", "video": "Clip"}


def build_page(seeker: Seeker, tries: Sequence[str] = (), k: int = 4) -> Any:
    """The page as a `gradio.Blocks`, not yet served: see `serve`.

    Args:
        seeker: answers the questions.
        tries: questions to click.
        k: results of each kind at first.

    Raises:
        UserError: gradio is not installed.
    """
    gr = need("gradio", "demo")
    hands = SearchHandlers(seeker)
    modes = [mode for mode in _TABS if mode in seeker.model.modalities]
    blocks = gr.Blocks(
        title="mmvit: search", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    )
    with blocks as page:
        gr.HTML(_HEAD, elem_id="head", padding=False)
        mode = gr.State(modes[0])
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                fields, buttons, picks = _question(modes, tries)
                settings = _settings(seeker, k)
            with gr.Column(scale=8, min_width=440):
                answer = [
                    gr.HTML(say(START), elem_id="status", padding=False),
                    gr.HTML(elem_id="shelves", padding=False),
                    gr.DownloadButton("Save the results as JSON", size="sm", elem_id="json", visible=False),
                ]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        for name in modes:
            field, button, find = fields[name], buttons[name], functools.partial(hands.find, name)
            asked = [field, *settings]
            events = [button.click(find, asked, answer, **quiet)]
            if name == "text":
                events.append(field.submit(find, asked, answer, **quiet))
            else:
                drop = functools.partial(hands.drop, name)
                events.append(field.upload(drop, asked, [field, *answer], **quiet))
                field.clear(hands.start, None, answer, **quiet)
            if name == "audio":
                events.append(field.stop_recording(find, asked, answer, **quiet))
            for event in events:
                event.then(functools.partial(str, name), None, mode, **quiet)
        if {"audio", "video"} <= set(modes):
            heard = buttons["heard"].click(
                functools.partial(hands.find, "heard"), [fields["video"], *settings], answer, **quiet
            )
            heard.then(functools.partial(str, "heard"), None, mode, **quiet)
        for pick, words in zip(picks, tries, strict=False):
            chosen = pick.click(functools.partial(str, words), None, fields["text"], **quiet)
            chosen = chosen.then(
                functools.partial(hands.find, "text"), [fields["text"], *settings], answer, **quiet
            )
            chosen.then(functools.partial(str, "text"), None, mode, **quiet)
        hidden = gr.State(None)
        every = [mode, *(fields.get(name, hidden) for name in _TABS), *settings]
        again = {"inputs": every, "outputs": answer, "trigger_mode": "always_last", **quiet}
        settings[0].release(hands.again, **again)
        settings[1].change(hands.again, **again)
    return page.queue(default_concurrency_limit=1, max_size=64)


def _question(modes: Sequence[str], tries: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """(mode -> its field, mode -> its button, buttons of `tries`): a tab for every way to ask."""
    gr = need("gradio", "demo")
    fields, buttons, picks = {}, {}, []
    for name in modes:
        with gr.Tab(_TABS[name], elem_id=f"by-{name}"):
            if name == "text":
                fields[name] = gr.Textbox(
                    label="What it shows, or sounds like", elem_id="words", lines=1, max_lines=4,
                    placeholder="a red apple moving right to left",
                )  # fmt: skip
            else:
                fields[name] = _file_field(name)
            buttons[name] = gr.Button("Search", variant="primary", elem_id=f"find-{name}")
            if name == "video" and "audio" in modes:
                buttons["heard"] = gr.Button("Search by its sound", elem_id="find-heard")
            if name == "text" and tries:
                with gr.Row(elem_id="tries"):
                    picks = [gr.Button(words, size="sm", elem_id=f"try-{i}") for i, words in enumerate(tries)]
    return fields, buttons, picks


def _file_field(name: str) -> Any:
    """A component that takes a file of a modality and hands over its path, for the seeker to read."""
    gr = need("gradio", "demo")
    if name == "image":
        return upload("Picture: upload or paste", "picture", 230)
    if name == "audio":
        field = gr.Audio(
            label="Sound: upload or record", elem_id="sound", type="filepath", editable=False, buttons=[],
            sources=["upload", "microphone"],
        )  # fmt: skip
    else:
        field = gr.Video(
            label="Clip: upload or record", elem_id="clip", sources=["upload", "webcam"], height=300,
            include_audio=True, buttons=[],
        )  # fmt: skip
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def _settings(seeker: Seeker, k: int) -> list[Any]:
    """How many, and of what."""
    gr = need("gradio", "demo")
    titles = [TITLES[name] for name in seeker.collection.modalities]
    with gr.Group():
        count = gr.Slider(1, 48, k, step=1, label="At most, of each kind", elem_id="k", buttons=[])
        kinds = gr.CheckboxGroup(
            titles, value=titles, label="Look for", elem_id="kinds", visible=len(titles) > 1
        )
    return [count, kinds]
