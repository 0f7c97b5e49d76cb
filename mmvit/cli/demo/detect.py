"""mmvit-demo detect: finds what you name in a picture, on a page in the browser or from file to file.

    mmvit-demo detect --model runs/quickstart/detector/model
    mmvit-demo detect --model M --image in.jpg --queries "fox, cup" --out found.png --json found.json
    mmvit-demo detect --model M --image in.jpg --example cup.jpg --box 10 20 110 140 --out found.png

The page is served to this machine alone, and nothing leaves it; see docs/demo.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvit.cli.demo.draw import draw
from mmvit.cli.demo.finder import Finder, Found, Question, Settings
from mmvit.cli.demo.samples import read_samples
from mmvit.cli.demo.uploads import Limits, names_in
from mmvit.cli.pair import find_device
from mmvit.errors import UserError, one_line
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved detector.
        image: search this picture and end, instead of serving the page.
        queries: with --image: names, separated by commas or lines.
        example: with --image: a picture that shows what to look for, instead of names.
        box: with --example: x0 y0 x1 y1 of the thing in pixels of the example; all of it without.
        out: with --image: where to write the picture with its boxes (.png, .jpg, .webp).
        json: with --image: where to write the boxes, in pixels of the picture.
        threshold: lowest score shown, 0..1.
        top_k: most boxes shown.
        nms: of two boxes of one name that overlap by more than this IoU, only the better one; 1 = both.
        samples: pictures to pick on the page: a folder of pictures, or shards; "none" = no pictures, "" =
            test scenes of the default corpus, where it has been built.
        host: address to serve on; 0.0.0.0 lets every machine of the network in.
        port: 0 = any free one.
        max_mb: largest file that is taken, in MiB.
        max_pixels: largest picture that is taken, width x height.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str = "runs/quickstart/detector/model"
    image: str = ""
    queries: str = ""
    example: str = ""
    box: tuple[float, float, float, float] | None = None
    out: str = ""
    json: str = ""
    threshold: float = 0.1
    top_k: int = 30
    nms: float = 0.5
    samples: str = ""
    host: str = "127.0.0.1"
    port: int = 7860
    max_mb: int = 32
    max_pixels: int = 64_000_000
    device: str = "auto"


def open_detector(folder: str, device: str) -> Any:
    """The detector in a folder, on the device that --device names.

    Raises:
        UserError: no such model or device, or a model of another kind.
    """
    from mmvit.detector import Detector

    where = find_device(device)
    if not folder.startswith("hf-hub:") and not Path(folder).is_dir():
        raise UserError(
            f"there is no model folder {folder}: train one (docs/demo.md says how) or name it with --model"
        )
    try:
        return Detector(folder, device=where)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page, or searches --image."""
    config = parse(Config, argv=argv, description=__doc__ or "")
    settings = Settings(config.threshold, config.top_k, config.nms)
    limits = Limits(max_bytes=config.max_mb * 2**20, max_pixels=config.max_pixels)
    if config.image:
        _search(config, settings, limits)
    elif given := [name for name in ("queries", "example", "box", "out", "json") if getattr(config, name)]:
        raise UserError(f"--{given[0]} needs --image FILE; without a file the page is served, and asks there")
    else:
        _serve(config, settings, limits)


def _search(config: Config, settings: Settings, limits: Limits) -> None:
    """Finds, prints a line for each box, and writes the files that were asked for."""
    if bool(config.queries) == bool(config.example):
        raise UserError('say what to look for: --queries "fox, cup", or --example FILE (not both)')
    if config.box and not config.example:
        raise UserError("--box marks a thing in an --example, and there is none")
    suffixes = (".png", ".jpg", ".jpeg", ".webp")
    if config.out and Path(config.out).suffix.lower() not in suffixes:
        raise UserError(f"--out {config.out} must end in {', '.join(suffixes)}")
    names = tuple(names_in(config.queries, limits)) if config.queries else ()
    question = Question(names, config.example or None, config.box or (None, None, None, None))
    finder = Finder(open_detector(config.model, config.device), limits)
    found = finder.find(config.image, question, settings)
    for name, score, box in found.rows():
        print(f"{score:6.3f}  {name}  {' '.join(f'{value:.1f}' for value in box)}")
    if not found.rows():
        print(f"nothing found with a score above {config.threshold:g}: lower --threshold or ask otherwise")
    _write(config, finder, found)


def _write(config: Config, finder: Finder, found: Found) -> None:
    try:
        if config.out:
            picture = draw(finder.read(config.image).pixels, found.detections, names=found.names)
            picture.save(config.out)
            print(f"picture with {len(found.rows())} boxes: {config.out}")
        if config.json:
            text = json.dumps({"image": config.image, **found.to_dict()}, ensure_ascii=False, indent=1)
            Path(config.json).write_text(text + "\n", encoding="utf-8")
            print(f"boxes: {config.json}")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or config.out}: {error.strerror or error}") from None


def _serve(config: Config, settings: Settings, limits: Limits) -> None:
    from mmvit.cli.demo.serve import open_port, private_folder, serve

    # The port comes before the model: a mistake shows at once.
    with open_port(config.host, config.port) as listening, private_folder() as folder:
        finder = Finder(open_detector(config.model, config.device), limits)
        samples = read_samples(config.samples, Path(folder) / "samples", limits)
        from mmvit.cli.demo.page import build_page  # gradio is to find the private folder
        from mmvit.cli.demo.style import CSS, theme

        page = build_page(finder, samples, settings)
        serve(page, listening, theme=theme(), css=CSS, max_bytes=limits.max_bytes)
