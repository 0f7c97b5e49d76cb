"""A toy task that follows the protocol of train/step.py, and engines around it."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from mmvit.losses import contrastive_terms
from mmvit.train.freeze import freeze
from mmvit.train.meters import Meters
from mmvit.train.optim import OptimConfig, build_optimizer
from mmvit.train.prepare import prepare
from mmvit.train.schedule import ScheduleConfig, build_schedule
from mmvit.train.setup import Run, TrainConfig
from mmvit.train.signals import StopRequest
from mmvit.types import Batch


class Toy(nn.Module):
    """Two small towers on `image_embedding` and on one-hot text ids."""

    def __init__(self, dropout=0.0, width=6, vocab=12):
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.right = nn.Sequential(nn.Embedding(vocab, width), nn.Dropout(dropout), nn.Linear(width, width))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def precompute(self, batch):
        return batch

    def embed(self, batch):
        left = self.left(batch.image_embedding.to(self.logit_scale.dtype))
        return F.normalize(left, dim=-1), F.normalize(self.right(batch.text).mean(1), dim=-1)

    def loss(self, embeddings, batch):
        terms = contrastive_terms(*embeddings, self.logit_scale)
        return {"loss": terms.loss, "in_batch_top1": terms.hits_a.float().mean()}

    def forward(self, batch):
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self):
        return [self.logit_scale] if self.logit_scale.requires_grad else []

    @torch.no_grad()
    def after_step(self):
        self.logit_scale.clamp_(0.0, 4.6052)


def toy_batch(step, size=8):
    g = torch.Generator().manual_seed(1000 + step)
    return Batch(
        keys=[f"k{step}-{i}" for i in range(size)],
        image_embedding=torch.randn(size, 5, generator=g),
        text=torch.randint(0, 12, (size, 4), generator=g),
        position=step * size,
    )


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def toy():
    return Toy


@pytest.fixture
def batch_of():
    return toy_batch


@pytest.fixture
def make_engine(tmp_path):
    """make_engine(task, rules=…, optim=…, **train options) -> (engine, meters)."""

    def make(task, rules=((".*", 1.0),), optim=None, **options):
        train = TrainConfig(**{"steps": 10, "batch_size": 8, "precision": "fp32", **options})
        run = Run(Accelerator(cpu=True), tmp_path, None, StopRequest(), train, "fp32")
        frozen = freeze(task, rules)
        optimizer = build_optimizer(task, frozen, optim or OptimConfig(lr=1e-2))
        schedule = build_schedule(ScheduleConfig(warmup=2), train.steps)
        return prepare(run, task, frozen, optimizer, schedule), Meters()

    return make
