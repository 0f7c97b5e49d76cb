"""How well a model of video, audio and text finds one by another, while it is being trained.

Letters: N samples, E embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmvit.data.clip import ClipPreprocess
from mmvit.data.loader import read_all
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.evaluators.embed import autocast, gather
from mmvit.evaluators.media import embed_media, modalities_in, who_has
from mmvit.evaluators.pairs import pair_retrieval, possible_pairs, space_of
from mmvit.models.vatt import Vatt

_TEXTS = 256  # that go through the tower together
SPACES = {"video": ("vt", "va"), "audio": ("vt", "va"), "text": ("vt",)}


@torch.no_grad()
def recall_of_pairs(
    model: Vatt,
    tokenizer: Tokenizer,
    urls: str,
    *,
    preprocess: ClipPreprocess,
    batch_size: int = 16,
    precision: str = "fp32",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """{"video-text_recall@1", "video-text_chance@1", …} for every pair of modalities that some sample has.

    "a-b" asks with a for b, in the finest space that holds both; captions that are equal are right for each
    other's clips and sounds, and a clip's own sound alone is right for it.

    Args:
        model: bare, in eval mode, on the device that is to compute.
        tokenizer: the model's own.
        urls: shard pattern(s).
        preprocess: the model's own.
        batch_size: samples decoded and embedded together on this rank.
        precision: fp32, bf16 or fp16.
        workers: processes that decode ahead.
        rank: of this process.
        world_size: processes; their group must be initialised when there are several.

    Raises:
        UserError: no shards, or no usable sample.
    """
    device = next(model.parameters()).device
    names = [name for name in modalities_in(urls) if name in SPACES]
    encoders = {
        "video": lambda x: model.spaces.video(model.video(x.to(device))),
        "audio": lambda x: model.spaces.audio(model.audio(x.to(device))),
    }

    def encode(texts: Sequence[str]) -> Tensor:
        rows = []
        for start in range(0, len(texts), _TEXTS):
            tokens = tokenizer(list(texts[start : start + _TEXTS]))
            with autocast(device, precision):
                found = model.encode_text(tokens.ids.to(device), tokens.mask.to(device))["vt"]
            rows.append(found.float().cpu())
        return torch.cat(rows)

    with (
        autocast(device, precision),
        read_all(
            urls,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            workers=workers,
            fields=[*names, "meta"],
            optional=names,
            clip=preprocess,
        ) as loader,
    ):
        heard_or_seen = {name: encoders[name] for name in names if name in encoders}
        part = embed_media(loader, heard_or_seen, at_once=batch_size)
    found = gather(part)
    if not len(found):
        raise UserError(f"{urls} holds no usable sample; skipped: {found.skipped or 'none'}")
    metrics = {}
    for pair in possible_pairs(SPACES, names, "sample"):
        by_text = "text" in (pair.a, pair.b)
        asked = replace(pair, group_by="text" if by_text else "sample")
        if not who_has(found, *asked.needs).any():
            continue  # clips that turned out to have no sound
        result = pair_retrieval(found, asked, space_of(asked, SPACES), encode=encode, dedup=by_text).metrics
        for asks, answers in ((pair.a, pair.b), (pair.b, pair.a)):
            for name in ("recall@1", "recall@5", "chance@1"):
                metrics[f"{asks}-{answers}_{name}"] = result[f"{answers}_retrieval_{name}"]
    return metrics
