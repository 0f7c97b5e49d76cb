"""Is the step sound? Decided on all ranks together, before the optimizer moves anything.

Every rank's numbers are looked at, not their mean, which hides whose fault it is.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from mmvit.errors import UserError
from mmvit.types import Batch


class Health:
    """Gathers every rank's scalars once a step; stops the run when one of them is not finite.

    Args:
        accelerator: the run's.
        folder: where the keys of a bad batch are written.
        stop: whether this rank was asked to end; the ranks agree on it in the same exchange.
        chance: the loss of a model that knows nothing, for the warning about a stuck loss; None = no warning.
        patience: steps after which a loss still at chance is worth a warning.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        stop: Callable[[], bool] = lambda: False,
        chance: float | None = None,
        patience: int = 500,
    ):
        self.accelerator, self.folder, self.stop = accelerator, folder, stop
        self.chance, self.patience = chance, patience
        self.stop_agreed = False
        self._recent = math.nan

    def check(
        self, step: int, out: dict[str, Tensor], batch: Batch, suspect: Callable[[], bool]
    ) -> dict[str, float]:
        """Means over the ranks of the scalars in `out`, when all is finite.

        Args:
            step: number of the step about to be taken.
            out: this rank's scalars; "finite" (embeddings), "loss" and "grad_norm" are looked at.
            batch: whose keys are written when it is bad.
            suspect: answers, at the price of a replay, whether this rank's own gradients are bad.

        Raises:
            UserError: something is not finite; names the rank, the number and the file with the batch's keys.
        """
        names = [name for name in out if name != "finite"]
        rows = self._gather([out.get("finite", torch.tensor(True)), *(out[n] for n in names)])
        self.stop_agreed = any(row[0] != 0 for row in rows)
        values = [dict(zip(names, row[2:], strict=True)) for row in rows]
        scaled = self.accelerator.scaler is not None  # fp16 skips steps with infinite gradients by itself
        bad = [r for r, row in enumerate(rows) if row[1] == 0]
        what = "embeddings"
        if not bad:
            bad, what = [r for r, v in enumerate(values) if not math.isfinite(v["loss"])], "loss"
        if not bad and not scaled and not all(math.isfinite(v["grad_norm"]) for v in values):
            flags = self._gather([torch.tensor(suspect())])
            bad, what = [r for r, row in enumerate(flags) if row[1] != 0], "gradients"
            bad = bad or list(range(len(rows)))
        if bad:
            self._halt(step, bad, what, batch, values)
        means = {name: sum(v[name] for v in values) / len(values) for name in names}
        self._watch(step, means["loss"])
        return means

    def _gather(self, values: list[Tensor]) -> list[list[float]]:
        """One row per rank: [asked to stop, *values]."""
        device = self.accelerator.device
        own = torch.stack(
            [
                torch.tensor(float(self.stop()), dtype=torch.float64, device=device),
                *(v.detach().to(device, torch.float64).reshape(()) for v in values),
            ]
        )
        if self.accelerator.num_processes == 1:
            return [own.tolist()]
        rows = [torch.empty_like(own) for _ in range(self.accelerator.num_processes)]
        dist.all_gather(rows, own)
        return torch.stack(rows).tolist()

    def _halt(
        self, step: int, bad: list[int], what: str, batch: Batch, values: list[dict[str, float]]
    ) -> None:
        rank = self.accelerator.process_index
        path = self.folder / f"bad-step-{step:08d}-rank-{rank}.json"
        record = {
            "step": step,
            "rank": rank,
            "bad_ranks": bad,
            "what": what,
            **values[rank],
            "keys": batch.keys,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({k: v if v == v else "nan" for k, v in record.items()}, default=str))
        where = f"rank {bad[0]}" if len(bad) == 1 else f"ranks {', '.join(map(str, bad))}"
        file = self.folder / f"bad-step-{step:08d}-rank-{bad[0]}.json"
        raise UserError(
            f"step {step}: {what} of {where} not finite; nothing was updated. The batch is in {file}: "
            "look at these samples, lower --optim.lr, or use --train.precision fp32"
        )

    def _watch(self, step: int, loss: float) -> None:
        """Warns once, when the mean loss of late has not left chance after `patience` steps."""
        self._recent = loss if math.isnan(self._recent) else 0.98 * self._recent + 0.02 * loss
        if self.chance is not None and step == self.patience and self._recent > 0.98 * self.chance:
            logging.getLogger("mmvit").warning(
                f"the loss is {self._recent:.3f} after {step} steps, at chance ({self.chance:.3f}): look at "
                "the captions and pictures of a batch, --optim.lr, and whether features need centring"
            )
