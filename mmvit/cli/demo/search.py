"""mmvit-demo search: finds clips, sounds and pictures by words, by a sound, by a picture or by a clip.

    mmvit-demo search --model runs/vatt/shared/model --data 'data/corpus/val/clips::data/corpus/val/sounds'
    mmvit-demo search --model runs/vatt/shared/model --data ~/Videos --keep videos.emb

What --data holds is embedded first; with --keep once only. The page is served to this machine alone, and
nothing leaves it; see docs/demo.md. On the command line, mmvit-search does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmvit.cli import embed
from mmvit.cli.demo.uploads import Limits
from mmvit.errors import UserError, one_line
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model that embeds clips, sounds or pictures.
        data: what can be found: shards, or folders of files; several are separated by "::".
        modality: video, audio or image; auto = all that the model embeds.
        keep: folder for the embeddings, used again at the next start; "" = computed at every start.
        views: windows of a clip or a sound whose embeddings are averaged.
        tries: questions to click on the page, separated by "|"; "" = some captions of the data, none = none.
        k: results of each kind at first, 1..48.
        batch_size: things embedded at once.
        host: address to serve on; 0.0.0.0 lets every machine of the network in.
        port: 0 = any free one.
        max_mb: largest file that is taken, in MiB.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str
    data: str
    modality: Literal["auto", "image", "video", "audio"] = "auto"
    keep: str = ""
    views: int = 1
    tries: str = ""
    k: int = 4
    batch_size: int = 64
    host: str = "127.0.0.1"
    port: int = 7861
    max_mb: int = 64
    device: str = "auto"


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Embeds --data where that has not been done, and serves the page."""
    config = parse(Config, argv=argv, description=__doc__ or "")
    if not 1 <= config.k <= 48:
        raise UserError(f"--k {config.k} must be 1..48")
    if config.views < 1:
        raise UserError(f"--views {config.views} must be at least 1")
    from mmvit.cli.demo.serve import open_port, private_folder, serve

    # The port comes before the model: a mistake shows at once.
    with open_port(config.host, config.port) as listening, private_folder() as folder:
        from mmvit.cli.demo.collection import gather
        from mmvit.cli.demo.seeker import Seeker

        model = embed.open_model(config.model, config.device)
        home = Path(config.keep or Path(folder) / "embeddings")
        how = embed.Config(
            config.model,
            config.data,
            "",
            modality=config.modality,
            views=config.views,
            batch_size=config.batch_size,
        )
        collection = gather(model, config.data, home, how)
        seeker = Seeker(model, collection, Limits(max_bytes=config.max_mb * 2**20))
        from mmvit.cli.demo.cards import CSS as CARDS
        from mmvit.cli.demo.media import routes
        from mmvit.cli.demo.search_page import build_page  # gradio is to find the private folder
        from mmvit.cli.demo.style import CSS, theme

        page = build_page(seeker, _tries(config.tries, collection.captions()), config.k)
        serve(
            page, listening, theme=theme(), css=CSS + CARDS, max_bytes=seeker.limits.max_bytes,
            routes=routes(collection),
        )  # fmt: skip


def _tries(given: str, captions: Sequence[str]) -> list[str]:
    """Questions to click: those given, or captions."""
    if given == "none":
        return []
    return [text.strip() for text in given.split("|") if text.strip()] or list(captions)
