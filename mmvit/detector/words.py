"""Words -> prompts -> a bank of text queries.

Shape letters: C queries, T prompts a query, P = C*T prompts, E embedding width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmvit.data.annotations import canonical
from mmvit.data.tokenizer import Tokenizer
from mmvit.detector.bank import Ensemble, QueryBank
from mmvit.evaluators.prompts import resolve_templates
from mmvit.models.owl import OwlDetector

log = logging.getLogger(__name__)


def word_bank(
    words: Sequence[str],
    embed: Callable[[list[str]], Tensor],
    *,
    templates: str | Sequence[str],
    ensemble: Ensemble,
    canonicalise: bool,
    batch_size: int,
    text_fingerprint: str,
) -> QueryBank:
    """The bank of C words, in their order, the same one twice included.

    Args:
        words: C.
        embed: P prompts -> (P,E) float32, not normalised.
        templates: a named set or a list, see `evaluators.prompts`.
        ensemble: "embed" averages the prompts of a word, each with length 1; else all T are kept.
        canonicalise: embed the words in the form in which labels are compared, see `canonical`.
        batch_size: prompts embedded at a time.
        text_fingerprint: of the tower behind `embed`.

    Raises:
        ValueError: no word, one that is empty or no text, or templates that are none.
    """
    filled = resolve_templates(templates)
    if not words:
        raise ValueError('there is no query: name at least one thing to find, such as ["a red fox"]')
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"query {i} is a {type(word).__name__}, expected str (pictures go into images=)")
        if not word.strip():
            raise ValueError(f"query {i} is empty ({word!r}): name a thing to find, or leave it out")
    said = [canonical(word) for word in words] if canonicalise else words
    prompts = [template.replace("{}", word) for word in said for template in filled]
    starts = range(0, len(prompts), batch_size)
    rows = torch.cat([embed(prompts[i : i + batch_size]) for i in starts])
    embeddings = rows.unflatten(0, (len(words), len(filled)))
    if ensemble == "embed" and len(filled) > 1:
        embeddings = normalize(embeddings, dim=-1).mean(dim=1, keepdim=True)
    return QueryBank(
        names=tuple(words),
        embeddings=embeddings,
        kinds=("text",) * len(words),
        templates=filled,
        ensemble=ensemble,
        text_fingerprint=text_fingerprint,
    )


def embed(model: OwlDetector, tokenizer: Tokenizer, prompts: list[str], device: torch.device) -> Tensor:
    """(P,E) float32 on the CPU, not normalised; how many prompts had to be cut is logged.

    Args:
        model: on `device`.
        tokenizer: of its text tower.
        prompts: P texts.
        device: where to compute.
    """
    tokens = tokenizer(prompts)
    if tokens.truncated:
        limit = tokenizer.context_length
        log.warning("%d of %d queries were cut to %d tokens", tokens.truncated, len(prompts), limit)
    if model.text.ignores_padding:
        tokens = tokens.trim()
    return model.encode_queries(tokens.ids.to(device), tokens.mask.to(device)).float().cpu()
