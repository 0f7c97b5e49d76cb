"""One of several processes: a batch norm whose ranks have different counts of rows, one of them none.

Usage: norm_ranks.py RANK WORLD RENDEZVOUS OUT. Rank 0 writes the largest differences from one process.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mmvit.heads.batch_norm import GlobalBatchNorm

COUNTS, C = (5, 2, 0), 4  # rows of each rank


def main(rank: int, world: int, rendezvous: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    generator = torch.Generator().manual_seed(0)
    ends = [sum(COUNTS[: r + 1]) for r in range(world)]
    own = slice(ends[rank] - COUNTS[rank], ends[rank])
    norm, plain = GlobalBatchNorm(C).double(), nn.BatchNorm1d(C).double()
    for p, q in zip(norm.parameters(), plain.parameters(), strict=True):
        p.data.copy_(torch.randn(C, generator=generator))
        q.data.copy_(p)
    worst = 0.0
    for step in range(3):
        x = torch.randn(ends[-1], C, dtype=torch.float64, generator=generator) * 2 + 7
        weights = torch.randn(ends[-1], C, dtype=torch.float64, generator=generator)
        real = torch.ones(ends[-1], dtype=torch.bool)
        if step == 1:
            real[:5] = False  # no row of rank 0 counts
        mine, whole = x[own].clone().requires_grad_(), x.clone().requires_grad_()
        (norm(mine[real[own]]) * weights[own][real[own]]).sum().backward()
        kept = whole[real]
        (plain(kept) * weights[real]).sum().backward()
        for p, q in zip(norm.parameters(), plain.parameters(), strict=True):
            dist.all_reduce(p.grad)
            worst = max(worst, float((p.grad - q.grad).abs().max()))
            p.grad = q.grad = None
        if len(mine):
            worst = max(worst, float((mine.grad - whole.grad[own])[real[own]].abs().sum()))
        for name in ("running_mean", "running_var"):
            worst = max(worst, float((getattr(norm, name) - getattr(plain, name)).abs().max()))
    found = torch.tensor(worst)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if rank == 0:
        Path(out).write_text(json.dumps({"world": world, "worst": float(found)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
