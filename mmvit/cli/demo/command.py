"""mmvit-demo: pages in the browser that show what a saved model can do.

    mmvit-demo detect --model runs/quickstart/detector/model
    mmvit-demo search --model runs/vatt/shared/model --data 'data/corpus/val/clips::data/corpus/val/sounds'

Each page has a name, a file of its own and its own options: mmvit-demo NAME --help.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mmvit.errors import UserError, nearest, one_line

# name -> (module with a `main`, what it shows)
PAGES = {
    "detect": ("mmvit.cli.demo.detect", "find named things in a picture, with boxes"),
    "search": ("mmvit.cli.demo.search", "find clips, sounds and pictures by words, or by one of them"),
}


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the page that the first word names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip() + "\n\npages:")
        for name, (_, what) in PAGES.items():
            print(f"  {name:10s}{what}")
        if not words:
            raise UserError(f"which page? valid: {', '.join(PAGES)}")
        return
    if words[0] not in PAGES:
        raise UserError(f"there is no page {words[0]!r}: {nearest(words[0], PAGES)}")
    importlib.import_module(PAGES[words[0]][0]).main(words[1:])


if __name__ == "__main__":
    main()
