"""What was found -> HTML: a shelf for every modality, on it a card for everything, that plays or shows it."""
# ruff: noqa: E501  (a style sheet, not prose)

from __future__ import annotations

from html import escape

from mmvit.cli.demo.collection import Hit
from mmvit.cli.demo.seeker import Answer
from mmvit.cli.demo.style import say

TITLES = {"video": "Clips", "audio": "Sounds", "image": "Pictures"}

CSS = """
#shelves .html-container { padding:0 !important; }
#shelves .shelf { margin:0 0 20px; }
#shelves h3 { font-size:17px; font-weight:650; margin:2px 0 9px; color:var(--body-text-color); }
#shelves h3 small { font-weight:400; font-size:13.5px; opacity:.72; margin-left:8px; }
#shelves .cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(198px,1fr)); gap:12px; }
#shelves figure { margin:0; background:var(--block-background-fill); border:1px solid var(--border-color-primary); border-radius:12px; overflow:hidden; display:flex; flex-direction:column; }
#shelves figure:hover { border-color:#3446c9; box-shadow:0 2px 10px #3446c91f; }
#shelves video, #shelves .still { display:block; width:100%; aspect-ratio:4/3; object-fit:contain; background:#eceff4; margin:0; }
#shelves .still { padding:8px; }
#shelves .player { position:relative; }
#shelves .player::after { content:""; position:absolute; left:10px; bottom:10px; width:30px; height:30px; border-radius:50%; pointer-events:none;
  background:#171a21b8 url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 30 30'%3E%3Cpath d='M12 9l10 6-10 6z' fill='white'/%3E%3C/svg%3E"); }
#shelves .player:hover::after, #shelves .player:focus-within::after { display:none; }
#shelves .player.mute::after { display:none; }
#shelves .player.mute::before { content:"this browser cannot play it"; position:absolute; inset:0; display:grid; place-items:center; font-size:13.5px; opacity:.7; }
#shelves .wave { display:block; width:100%; height:74px; margin:0; padding:8px 12px 0; object-fit:fill; }
#shelves audio { display:block; width:calc(100% - 16px); height:38px; margin:6px 8px 0; }
#shelves figcaption { padding:8px 12px 10px; font-size:14.5px; line-height:1.35; color:var(--body-text-color); display:flex; gap:10px; align-items:baseline; }
#shelves figcaption span { flex:1; overflow-wrap:anywhere; display:-webkit-box; -webkit-line-clamp:3; -webkit-box-orient:vertical; overflow:hidden; }
#shelves figcaption b { font-weight:600; font-size:13px; font-variant-numeric:tabular-nums; color:#3446c9; background:#eceefb; border-radius:7px; padding:1px 7px; }
#tries { display:flex; flex-wrap:wrap; gap:6px; }
#tries button { min-width:0 !important; flex:0 0 auto !important; width:auto !important; font-size:13.5px; font-weight:500; padding:4px 11px; border-radius:99px; }
"""


def shelves(answer: Answer, counts: dict[str, int]) -> str:
    """All that was found as HTML.

    Args:
        answer: what was found.
        counts: modality -> how many things there are to find.
    """
    return "".join(
        f'<section class="shelf"><h3>{TITLES[name]}<small>the best {len(hits)} of {counts[name]:,}</small></h3>'
        f'<div class="cards">{"".join(map(card, hits))}</div></section>'
        for name, hits in answer.hits.items()
        if hits
    )


def card(hit: Hit) -> str:
    """One thing: its player or picture, what it shows, and the cosine of the question and it."""
    source, title = f"/media/{hit.row}", escape(hit.caption or hit.key, quote=True)
    shown = {
        # Controls lie over the picture: they come when the pointer or the focus does.
        "video": f'<div class="player"><video src="{source}" loop playsinline preload="metadata" tabindex="0" '
        f'title="{title}" onmouseenter="this.controls=true" onfocus="this.controls=true" '
        'onmouseleave="if(this.paused)this.controls=false" '
        "onerror=\"this.parentNode.classList.add('mute')\"></video></div>",
        "audio": f'<img class="wave" src="/wave/{hit.row}" alt="" loading="lazy"><audio src="{source}" controls '
        f'preload="metadata" title="{title}"></audio>',
        "image": f'<img class="still" src="{source}" alt="{title}" loading="lazy">',
    }[hit.modality]
    return (
        f'<figure class="card {hit.modality}" data-key="{escape(hit.key, quote=True)}">{shown}'
        f"<figcaption><span>{title}</span><b>{hit.score:.3f}</b></figcaption></figure>"
    )


def summary(answer: Answer) -> str:
    """What was asked, how much was found, and what that took, as a line of status."""
    count = sum(map(len, answer.hits.values()))
    took = f"encoded in {answer.seconds * 1000:.0f} ms" if answer.seconds else "question kept"
    aside = f"{took}, searched in {answer.search_seconds * 1000:.1f} ms"
    asked = answer.asked if answer.asked.startswith("this ") else f"“{answer.asked}”"
    if not count:
        return say(f"Nothing of that kind is here for {asked}.", aside=aside)
    return say(f"{count} thing{'' if count == 1 else 's'} nearest to {asked}.", "good", aside)


def wave(peaks: list[float]) -> str:
    """The loudness of a sound over time as an SVG picture.

    Args:
        peaks: largest |x| of equal stretches, 0..1.
    """
    high = max([*peaks, 1e-3])
    bars = "".join(
        f'<rect x="{4 * i}" y="{30 - (h := max(1.0, 28 * p / high)):.1f}" width="2.6" height="{2 * h:.1f}" rx="1.3"/>'
        for i, p in enumerate(peaks)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {4 * len(peaks)} 60" preserveAspectRatio="none" '
        f'fill="#5b6be0">{bars}</svg>'
    )
