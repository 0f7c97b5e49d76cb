"""What the processes of benchmarks/owl.py run: one side of one case.

Shape letters: B pictures, Q queries, L = 16 tokens, N grid tokens, E embedding width, M boxes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.owl import COUNTS, SIZES, Case
from benchmarks.timing import Call, serve
from benchmarks.vit import memory_of
from mmvit.data.text_clip import ClipTokenizer
from mmvit.losses import detection_loss
from mmvit.types import Batch

Found = Callable[[], tuple[Tensor, Tensor]]  # logits (B,N,Q) and boxes (B,N,4)
LENGTH = 16
BOXES = 8  # of each picture in training
RATE, STEPS = 2e-4, 10_000  # so many steps that none ends
KINDS = "red green blue old small wooden broken paper glass metal toy winter garden kitchen office sea river"
THINGS = (
    "alligator backpack ball banana basket bed bench bicycle bird blanket boat book boot bottle bowl box "
    "bread bridge brush bucket bus cabinet cake camel camera candle car carrot cat chair clock coat cow "
    "crab cup desk dog door dress drum duck elephant fan fish flag flower fork fox frog glove goat guitar "
    "hammer hat helmet horse house kettle key kite knife ladder lamp laptop lion map mirror monkey mouse "
    "necklace orange owl pan"
)


def main() -> None:
    """Nothing; builds the side that the argument names and serves its call."""
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    peer = build_peer(case).to(case.device)
    call, facts = training(case, peer) if case.work == "train" else inference(case, peer)
    serve(call, facts, case.device)


def build_peer(case: Case) -> Any:
    """An OwlViTForObjectDetection of that size, no parameter at a value that hides mistakes."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    size = SIZES[case.size]
    towers = {"num_hidden_layers": size.depth, "attn_implementation": "sdpa"}
    peer = OwlViTForObjectDetection(
        OwlViTConfig(
            vision_config=_tower(size.width, size.heads)
            | towers
            | {"image_size": case.pixels, "patch_size": size.patch},
            text_config=_tower(size.text_width, size.text_heads) | towers,
            projection_dim=size.text_width,
        )
    )
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return peer


def _tower(width: int, heads: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}


def queries(count: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (count,16) of "a photo of a KIND THING", all different, padded with 0 as both sides do."""
    pairs = product(THINGS.split(), KINDS.split())
    names = [f"a photo of a {kind} {thing}" for thing, kind in pairs][:count]
    assert len(names) == count
    batch = ClipTokenizer(context_length=LENGTH)(names)
    return batch.ids, batch.mask


def pictures(case: Case) -> Tensor:
    """(B,3,S,S) float32, as a processor hands them over: normalised."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(case.batch, 3, case.pixels, case.pixels, generator=generator).to(case.device)


def autocast(case: Case) -> AbstractContextManager[None]:
    """bfloat16 where the case asks for it."""
    return torch.autocast(case.device, torch.bfloat16, enabled=case.half)


def inference(case: Case, peer: Any) -> tuple[Call, dict[str, Any]]:
    """(logits and boxes of one batch of pictures, facts)."""
    x = pictures(case)
    ids, mask = (t.to(case.device) for t in queries(case.queries))
    side = {"ours": ours, "transformers": theirs, "by_hand": by_hand}[case.side]
    with torch.inference_mode():
        find = side(case, peer, x, ids, mask)
        logits, boxes = find()

    def call() -> None:
        with torch.inference_mode(), autocast(case):
            find()

    return call, {"values": _some(logits), "boxes": _some(boxes)}


def ours(case: Case, peer: Any, x: Tensor, ids: Tensor, mask: Tensor) -> Found:
    """Our detector; for following pictures, with the queries' embeddings kept."""
    from mmvit.hub import from_transformers

    model: Any = from_transformers(peer).eval().to(case.device)

    def first() -> tuple[Tensor, Tensor]:
        found = model(x, ids, mask)
        return found.logits, found.boxes

    if case.work == "first":
        return first
    kept = model.encode_queries(ids, mask)

    def following() -> tuple[Tensor, Tensor]:
        found = model.encode_image(x)
        return model.score(found, kept), found.boxes

    return following


def theirs(case: Case, peer: Any, x: Tensor, ids: Tensor, mask: Tensor) -> Found:
    """The forward of transformers, which reads the queries of every picture each time."""
    peer.eval()
    rows = {"input_ids": ids.repeat(len(x), 1), "attention_mask": mask.long().repeat(len(x), 1)}

    def find() -> tuple[Tensor, Tensor]:
        found = peer(pixel_values=x, **rows)
        return found.logits, found.pred_boxes

    return find


def by_hand(case: Case, peer: Any, x: Tensor, ids: Tensor, mask: Tensor) -> Found:
    """What somebody who knows transformers' parts can call, to keep the queries' embeddings."""
    peer.eval()
    kept = peer.owlvit.get_text_features(ids, attention_mask=mask.long())
    kept = getattr(kept, "pooler_output", kept)[None]

    def find() -> tuple[Tensor, Tensor]:
        grid = peer.image_embedder(x)[0]
        tokens = grid.flatten(1, 2)
        logits = peer.class_predictor(tokens, kept.expand(len(x), -1, -1))[0]
        return logits, peer.box_predictor(tokens, grid)

    return find


def training(case: Case, peer: Any) -> tuple[Call, dict[str, Any]]:
    """(one training step of all parameters, facts); memory is counted from before the gradients are there."""
    step, model, facts = (our_step if case.side == "ours" else their_step)(case, peer, annotated(case))

    def without_gradients() -> None:
        step()
        model.zero_grad(set_to_none=True)

    return step, facts | memory_of(without_gradients, case.device)


def annotated(case: Case) -> Batch:
    """B pictures with boxes, each asking queries of its own, the first of which its boxes answer."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = queries(max(COUNTS))
    asked = torch.stack([torch.randperm(len(ids), generator=generator) for _ in range(case.batch)])
    asked = asked[:, : case.queries]
    centre, half = torch.rand(2, case.batch, BOXES, 2, generator=generator) * torch.tensor(0.2)
    boxes = torch.cat([0.5 + centre - half - 0.05, 0.5 + centre + half + 0.05], dim=-1).clamp(0, 1)
    return Batch(
        keys=[str(i) for i in range(case.batch)],
        image=pictures(case),
        queries=ids[asked],
        queries_mask=mask[asked],
        query_mask=torch.ones_like(asked, dtype=torch.bool),
        boxes=boxes,
        box_mask=torch.ones(case.batch, BOXES, dtype=torch.bool),
        box_labels=torch.eye(case.queries, dtype=torch.bool)[:BOXES].expand(case.batch, -1, -1),
    ).to(case.device)


def our_step(case: Case, peer: Any, batch: Batch) -> tuple[Call, nn.Module, dict[str, Any]]:
    """(a step as recipes/owl.py takes it, what learns, facts)."""
    from mmvit.hub import from_transformers
    from mmvit.tasks.detection import DetectionTask
    from mmvit.train.freeze import freeze
    from mmvit.train.optim import OptimConfig, build_optimizer
    from mmvit.train.prepare import prepare
    from mmvit.train.schedule import ScheduleConfig, build_schedule
    from mmvit.train.setup import TrainConfig, start
    from mmvit.train.step import train_step

    precision: Any = "bf16" if case.half else "fp32"
    train = TrainConfig(steps=STEPS, batch_size=case.batch, precision=precision, threads=case.threads)
    task = DetectionTask(cast(Any, from_transformers(peer)))
    del peer
    frozen = freeze(task, [(".*", 1.0)])
    optim = OptimConfig(lr=RATE, weight_decay=0.0)
    run = start(optim, train, tempfile.mkdtemp(), name="bench")
    engine = prepare(
        run, task, frozen, build_optimizer(task, frozen, optim), build_schedule(ScheduleConfig(), STEPS)
    )
    with torch.no_grad():
        _, boxes, *_ = embeddings = task.embed(batch)
        value = task.loss(embeddings, batch)["loss"]
    return lambda: train_step(engine, batch), task, {"values": [value.item()], "boxes": _some(boxes)}


def their_step(case: Case, peer: Any, batch: Batch) -> tuple[Call, nn.Module, dict[str, Any]]:
    """(forward of transformers, our loss, clipping and AdamW as its Trainer has them, what learns, facts)."""
    peer.train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    assert batch.queries is not None and batch.queries_mask is not None  # noqa: PT018
    assert batch.box_labels is not None and batch.boxes is not None  # noqa: PT018
    rows = {
        "input_ids": batch.queries.flatten(0, 1),
        "attention_mask": batch.queries_mask.flatten(0, 1).long(),
    }
    pairs = zip(batch.box_labels, batch.boxes, strict=True)
    targets = [{"labels": labels, "boxes": boxes} for labels, boxes in pairs]

    def forward() -> tuple[Tensor, Tensor]:
        found = peer(pixel_values=batch.image, **rows)
        return detection_loss(found.logits, found.pred_boxes, targets)["loss"], found.pred_boxes

    def step() -> None:
        optimizer.zero_grad()
        with autocast(case):
            loss, _ = forward()
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()

    with torch.no_grad():
        value, boxes = forward()
    return step, peer, {"values": [value.item()], "boxes": _some(boxes)}


def _some(values: Tensor, count: int = 64) -> list[float]:
    """Numbers spread evenly over a tensor."""
    flat = values.detach().float().flatten()
    return flat[:: max(1, len(flat) // count)].tolist()
