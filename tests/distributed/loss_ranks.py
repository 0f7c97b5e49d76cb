"""Runs on every rank: losses, DDP-averaged gradients and hits against a plain formula on one process.

Called by step_ranks.py.
"""

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvit.losses import contrastive_terms, gather_with_grad


def plain(z_a, z_b, scale, bias, kind, ids, duplicates):
    """The whole batch at once, with dense matrices."""
    logits = scale.exp() * F.normalize(z_a, dim=-1) @ F.normalize(z_b, dim=-1).T + bias
    eye = torch.eye(len(z_a), dtype=torch.bool)
    twins = ids[:, None] == ids[None]
    positive = twins if duplicates == "positive" else eye
    out = twins & ~eye if duplicates == "mask" else torch.zeros_like(eye)
    if kind == "sigmoid":
        terms = F.logsigmoid(torch.where(positive, logits, -logits))
        return -terms.masked_fill(out, 0).sum() / len(z_a)
    logits = logits.masked_fill(out, -torch.inf)
    target = positive.double() / positive.sum(1, keepdim=True)
    rows = logits.logsumexp(1) - (target * logits.masked_fill(out, 0)).sum(1)
    columns = logits.logsumexp(0) - (target.T * logits.masked_fill(out, 0)).sum(0)
    return (rows.mean() + columns.mean()) / 2


class Towers(nn.Module):
    def __init__(self, locked, **options):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
        self.a.requires_grad_(not locked)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        sigmoid = options["kind"] == "sigmoid"
        self.bias = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64)) if sigmoid else None
        self.options = options

    def forward(self, x, y, ids):
        return contrastive_terms(self.a(x), self.b(y), self.scale, self.bias, same=ids, **self.options)


def check(rank, world, b, locked, **options):
    """Largest differences of (loss, gradients), and whether the hits agree."""
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(world * b, 5, generator=g, dtype=torch.float64) for _ in range(2))
    ids = torch.randint(0, world * b // 2 + 1, (world * b,), generator=g)
    own = slice(rank * b, (rank + 1) * b)
    towers = Towers(locked, **options)
    wrapped = DistributedDataParallel(towers)  # must outlive the backward: its hooks average the gradients
    terms = wrapped(x[own], y[own], ids[own])
    terms.loss.backward()
    loss = terms.loss.detach().clone()
    dist.all_reduce(loss)
    alone = Towers(locked, **options)
    bias = alone.bias if alone.bias is not None else torch.zeros((), dtype=torch.float64)
    want = plain(alone.a(x), alone.b(y), alone.scale, bias, options["kind"], ids, options["duplicates"])
    want.backward()
    pairs = zip(towers.parameters(), alone.parameters(), strict=True)
    worst = max((p.grad - q.grad).abs().max().item() for p, q in pairs if q.grad is not None)
    z_a, z_b = F.normalize(alone.a(x), dim=-1), F.normalize(alone.b(y), dim=-1)
    rivals = (z_a @ z_b.T).masked_fill(ids[:, None] == ids[None], -9)
    bar = (z_a * z_b).sum(-1) - 1e-6
    hits = torch.equal(terms.hits_a, (rivals.amax(1) < bar)[own])
    hits = hits and torch.equal(terms.hits_b, (rivals.amax(0) < bar)[own])
    return abs(loss.item() / world - want.item()), worst, hits


def measure():
    """{"rows": [kind, duplicates, block, locked, loss error, gradient error, hits agree], "flags": […]}."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = []
    grid = itertools.product(
        ("softmax", "sigmoid"), ("negative", "mask", "positive"), (None, 2), (False, True)
    )
    for kind, duplicates, block, locked in grid:
        found = check(rank, world, 5, locked, kind=kind, duplicates=duplicates, block=block)
        rows.append([kind, duplicates, block, locked, *found])
    z = torch.full((2, 3), float(rank + 1), requires_grad=True)
    everyone = gather_with_grad(z)
    (everyone * (rank + 1)).sum().backward()
    order = everyone[:, 0].tolist() == [float(r + 1) for r in range(world) for _ in range(2)]
    summed = bool((z.grad == world * (world + 1) / 2).all())
    flags = torch.tensor([float(r[-1] is True) for r in rows] + [order, summed])
    dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    return {"rows": rows, "flags": flags.tolist()}
