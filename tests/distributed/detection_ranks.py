"""Runs on every rank: the detection loss against one process, then steps of its task at one global batch.

Some batches have boxes on some ranks only, one has none at all. Called by step_ranks.py.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvit.boxes import to_xyxy
from mmvit.losses import Targets, detection_terms
from mmvit.models.config import DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.owl import OwlDetector
from mmvit.tasks.detection import DetectionTask
from mmvit.types import Batch

BOXES = {"all": 1.0, "some": 0.5, "none": 0.0}  # share of the pictures, the last ones, that have boxes


class Heads(nn.Module):
    """Logits, boxes and objectness of tokens (b,N,3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.logits, self.boxes, self.objectness = (nn.Linear(3, n).double() for n in (5, 4, 1))

    def forward(self, x):
        return self.logits(x), self.boxes(x).sigmoid(), self.objectness(x).squeeze(-1)


def draw(B, share, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(B, 4, 5, generator=g, dtype=torch.float64) > 0.6
    corners = to_xyxy(torch.rand(B, 4, 4, generator=g, dtype=torch.float64))
    mask = torch.rand(B, 4, generator=g) > 0.3
    mask[: B - round(share * B)] = False
    queries = torch.rand(B, 5, generator=g) > 0.2
    tokens = torch.rand(B, 6, generator=g) > 0.2
    return torch.randn(B, 6, 3, generator=g, dtype=torch.float64), (labels, corners, mask), queries, tokens


def check(rank, world, b, share, normalization):
    """Largest differences of (loss, its parts, gradients, mean overlap) from one process with the batch."""

    def terms_of(heads, own):
        x, targets, queries, tokens = draw(world * b, share)
        logits, boxes, objectness = heads(x[own])
        return detection_terms(
            logits,
            boxes,
            Targets(*(t[own] for t in targets)),
            query_mask=queries[own],
            token_mask=tokens[own],
            normalization=normalization,
            objectness=objectness,
            objectness_weight=0.5,
            group=alone if own == slice(None) else None,
        )

    alone = dist.new_subgroups(1)[0]
    own = slice(rank * b, (rank + 1) * b)
    heads, single = Heads(), Heads()
    wrapped = DistributedDataParallel(heads)  # must outlive the backward: its hooks average the gradients
    found, want = terms_of(wrapped, own), terms_of(single, slice(None))
    found.loss.backward()
    want.loss.backward()
    numbers = []
    for t in (found, want):
        parts = [t.loss, t.loss_class, t.loss_box, t.loss_giou, t.loss_objectness, (t.iou * t.share).sum()]
        numbers.append(torch.stack(parts).detach())
    dist.all_reduce(numbers[0])
    worst = (numbers[0] / world - numbers[1]).abs().max().item()
    pairs = zip(heads.parameters(), single.parameters(), strict=True)
    return worst, max((p.grad - q.grad).abs().max().item() for p, q in pairs)


def measure():
    """[normalization, boxes, largest difference of the loss and its parts, of the gradients] of each case."""
    rank, world = dist.get_rank(), dist.get_world_size()
    cases = [(n, boxes) for n in ("global", "per_example") for boxes in BOXES]
    return [[n, boxes, *check(rank, world, 4, BOXES[boxes], n)] for n, boxes in cases]


def task_of(normalization):
    """A small detector with objectness, in float64."""
    torch.manual_seed(0)
    image = ImageTowerConfig(
        core=CoreConfig(width=16, depth=2, num_heads=2, mlp_dim=32),
        image_size=(16, 16),
        patch_size=4,
        pool="cls",
    )
    text = TextTowerConfig(
        core=CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32, causal=True),
        vocab_size=40,
        context_length=6,
        embed_dim=8,
    )
    model = OwlDetector(DetectorConfig(image=image, text=text, objectness=True))
    return DetectionTask(model, normalization, objectness_weight=0.2).double()


def batch_of(step, size):
    """The global batch of a step: boxes on all pictures, on the last half, or on none."""
    g = torch.Generator().manual_seed(step)
    share = list(BOXES.values())[step % 3]
    mask = torch.rand(size, 3, generator=g) > 0.3
    mask[: size - round(share * size)] = False
    return Batch(
        keys=[f"{step}-{i}" for i in range(size)],
        image=torch.randint(0, 256, (size, 3, 16, 16), generator=g, dtype=torch.uint8),
        queries=torch.randint(1, 40, (size, 5, 6), generator=g),
        queries_mask=torch.ones(size, 5, 6, dtype=torch.bool),
        query_mask=torch.rand(size, 5, generator=g) > 0.2,
        boxes=to_xyxy(torch.rand(size, 3, 4, generator=g)),
        box_mask=mask,
        box_labels=torch.rand(size, 3, 5, generator=g) > 0.6,
        regions=torch.tensor([[[0.0, 0.0, 1.0, 0.75]]]).repeat(size, 1, 1),
    )
