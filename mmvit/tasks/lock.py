"""The two letters of a contrastive run, image first: L locked, U unlocked (both pretrained), u from scratch.

Source: LiT (Zhai et al. 2022), section 3.3. Lu is LiT, LU locks the image tower and starts from a pretrained
text tower, uu is CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmvit.errors import UserError

Letter = Literal["L", "U", "u"]


@dataclass(frozen=True)
class Lock:
    """What happens to the image and the text tower."""

    image: Letter
    text: Letter

    @classmethod
    def parse(cls, letters: str) -> Lock:
        """The lock of two letters such as "Lu".

        Raises:
            UserError: anything else.
        """
        if len(letters) != 2 or any(letter not in "LUu" for letter in letters):
            raise UserError(
                f"--model.lock takes two letters of L (locked), U (pretrained, learns), u (from scratch), "
                f"image first, like Lu; got '{letters}'"
            )
        return cls(letters[0], letters[1])  # type: ignore[arg-type]

    def check(self, image_pretrained: bool, text_pretrained: bool) -> None:
        """Compares the letters with where the weights come from.

        Raises:
            UserError: L or U without pretrained weights, or u with them.
        """
        for side, letter, pretrained in (
            ("image", self.image, image_pretrained),
            ("text", self.text, text_pretrained),
        ):
            if letter in "LU" and not pretrained:
                raise UserError(
                    f"lock '{letter}' of the {side} tower needs pretrained weights: "
                    f"give --model.{side} the folder of a saved tower, or use 'u'"
                )
            if letter == "u" and pretrained:
                raise UserError(
                    f"lock 'u' starts the {side} tower from scratch, but --model.{side} is a folder of "
                    f"weights: use 'L' (locked) or 'U' (learns), or give --model.{side} a preset name"
                )

    def rules(self) -> list[tuple[str, float | None]]:
        """Ordered (pattern, multiplier or None) over the pair's parameter names.

        Only what precedes the pooled features is locked: a head, where there is one, learns.
        """
        rules: list[tuple[str, float | None]] = [(r"(.*\.)?(image|text)\.head\..*", 1.0)]
        for side, letter in (("image", self.image), ("text", self.text)):
            rules.append((rf"(.*\.)?{side}\..*", None if letter == "L" else 1.0))
        return [*rules, (r"(.*\.)?logit_(scale|bias)", 1.0)]

    def __str__(self) -> str:
        return self.image + self.text
