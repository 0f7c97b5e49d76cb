"""The page's look: colours, one style sheet, and the pieces of HTML that are not components.

Fonts are the system's: nothing is fetched from anywhere.
"""
# ruff: noqa: E501  (a style sheet, not prose)

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmvit.cli.demo.draw import color_of
from mmvit.cli.demo.finder import Found
from mmvit.errors import need

CSS = """
.gradio-container { width:100% !important; max-width:1480px !important; margin:0 auto !important; padding:6px 20px 28px !important; }
.gradio-container .column { gap:12px; }
#head .html-container, #status .html-container, #rows .html-container { padding:0 !important; }
#answer { position:sticky; top:10px; align-self:flex-start; }
#head h1 { font-size:29px; line-height:1.2; letter-spacing:-.02em; margin:2px 0; font-weight:700; }
#head p { margin:0; opacity:.8; font-size:15.5px; }
#status .say { border-radius:10px; padding:10px 15px; font-size:15.5px; line-height:1.45;
  background:var(--block-background-fill); border:1px solid var(--border-color-primary); color:var(--body-text-color); }
#status .say small { opacity:.8; font-size:13.5px; margin-left:10px; }
.say.bad, #status .say.bad { background:#fdecec; border:1px solid #e5484d; color:#8a1519; border-radius:10px; padding:9px 14px; }
#status .say.good { background:#e9f7ee; border-color:#59b87c; color:#10502b; }
#rows table { border-collapse:collapse; width:100%; font-size:15px; font-variant-numeric:tabular-nums; margin:0;
  background:var(--block-background-fill); border:1px solid var(--border-color-primary); border-radius:10px; overflow:hidden; }
#rows th, #rows td { padding:7px 14px; text-align:right; border:0 !important; }
#rows th { font-weight:600; font-size:13px; opacity:.75; }
#rows th:first-child, #rows td:first-child { text-align:left; overflow-wrap:anywhere; }
#rows tbody tr { border:0 !important; border-top:1px solid var(--border-color-primary) !important; }
#rows i { display:inline-block; width:13px; height:13px; border-radius:3px; margin-right:9px; vertical-align:-1px;
  box-shadow:0 0 0 1px #0007; }
#samples { display:grid; grid-template-columns:repeat(8,1fr); gap:6px; }
#samples button { min-width:0 !important; padding:0; aspect-ratio:1; overflow:hidden; border-radius:8px; }
#samples button img { width:100%; height:100%; max-width:none; object-fit:cover; margin:0; border-radius:0; }
#samples button:hover { outline:2px solid #3446c9; }
#hint { font-size:14px; }
footer { display:none !important; }
"""


def theme() -> object:
    """The page's colours and sizes, with the system's own fonts."""
    gradio = need("gradio", "demo")
    base = gradio.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        text_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return base.set(
        body_background_fill="#f6f7f9",
        body_text_color="#171a21",
        body_text_color_subdued="#4b5362",
        block_label_text_color="#2b303b",
        block_title_text_color="#171a21",
        block_info_text_color="#4b5362",
        block_background_fill="#ffffff",
        block_border_width="1px",
        block_border_color="#dde1e7",
        border_color_primary="#dde1e7",
        input_border_color="#bcc3ce",
        input_border_width="1px",
        input_placeholder_color="#6b7280",
        button_primary_background_fill="#3446c9",
        button_primary_background_fill_hover="#2a39a8",
        button_primary_text_color="#ffffff",
        button_secondary_border_color="#bcc3ce",
        button_secondary_background_fill="#ffffff",
        button_border_width="1px",
    )


def say(text: str, kind: str = "", aside: str = "") -> str:
    """One line of status as HTML.

    Args:
        text: what is said; a mistake ("bad") is read out at once by screen readers.
        kind: "", "good" or "bad".
        aside: smaller text behind it.
    """
    role = "alert" if kind == "bad" else "status"
    small = f"<small>{escape(aside)}</small>" if aside else ""
    return f'<div class="say {kind}" role="{role}">{escape(text)}{small}</div>'


def summary(found: Found) -> str:
    """How many boxes were found, and what that took, as a line of status."""
    count = len(found.detections.scores)
    if not count:
        return say(
            "Nothing found above this threshold: lower it, or ask with other words.", aside=_took(found)
        )
    return say(f"{count} box{'' if count == 1 else 'es'} found.", "good", _took(found))


def table(found: Found) -> str:
    """The boxes as an HTML table, with each name's colour."""
    rows = found.rows()
    if not rows:
        return ""
    body = "".join(_row(found.names, *row) for row in rows)
    head = "".join(f"<th>{name}</th>" for name in ("name", "score", "x0", "y0", "x1", "y1"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(names: Sequence[str], name: str, score: float, box: Sequence[float]) -> str:
    swatch = "#{:02x}{:02x}{:02x}".format(*color_of(names.index(name)))
    cells = "".join(f"<td>{value:.1f}</td>" for value in box)
    return f'<tr><td><i style="background:{swatch}"></i>{escape(name)}</td><td>{score:.3f}</td>{cells}</tr>'


def _took(found: Found) -> str:
    def part(what: str, seconds: float) -> str:
        return f"{what} {seconds * 1000:.0f} ms" if seconds else f"{what} kept"

    parts = part("picture", found.image_seconds), part("queries", found.query_seconds)
    return f"{parts[0]}, {parts[1]}, scoring {found.seconds * 1000:.1f} ms"
