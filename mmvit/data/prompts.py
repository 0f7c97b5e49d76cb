"""Named sets of prompt templates: "a photo of a {}." and the lists that papers report with.

`{}` marks the place of a name. Evaluation averages over a set, training of detectors draws from one.
Source: Radford et al. 2021 (CLIP), section 3.1.4; open_clip carries the lists. OWL-ViT (arXiv:2205.06230)
appendix A1.5 for "owl": the bare name or one of CLIP's 80.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmvit.errors import nearest, need

TEMPLATES: dict[str, tuple[str, ...]] = {
    "default": ("{}", "a picture of {}", "a drawing of {}"),
    "plain": ("{}",),
    "photo": ("a photo of a {}.",),
    "motion": ("{}", "something {}", "a thing {}"),
    "sound": ("{}", "the sound of {}", "a recording of {}"),
}
_PUBLISHED = {
    "clip7": ("SIMPLE_IMAGENET_TEMPLATES", ()),
    "clip80": ("OPENAI_IMAGENET_TEMPLATES", ()),
    "owl": ("OPENAI_IMAGENET_TEMPLATES", ("{}",)),
}


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named set, or the given ones checked; `{}` marks the place of the class name.

    Args:
        templates: "default", "plain", "photo", "motion", "sound", "clip7", "clip80", "owl", or a list.

    Raises:
        ValueError: unknown set, empty list, or a template without `{}`.
    """
    if isinstance(templates, str):
        if templates in _PUBLISHED:
            name, more = _PUBLISHED[templates]
            return (*more, *(template("{}") for template in getattr(need("open_clip"), name)))
        if templates not in TEMPLATES:
            hint = nearest(templates, [*TEMPLATES, *_PUBLISHED])
            raise ValueError(
                f"unknown template set '{templates}': {hint}; a single template goes into a list"
            )
        return TEMPLATES[templates]
    if len(templates) == 0:
        raise ValueError('templates is an empty list: give at least one, such as "a photo of a {}."')
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"template {template!r} has no '{{}}' where the class name goes")
    return tuple(templates)
