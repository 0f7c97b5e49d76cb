"""The classification loss against a slow one, its balance, what is unknown; mixtures by name."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from mmvit.losses.classification import classification_loss, mixed_rows, mixing_weights


def example(b=6, classes=4, kind="softmax", seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, classes, generator=g, dtype=torch.float64)
    if kind == "softmax":
        return logits, F.one_hot(torch.randint(0, classes, (b,), generator=g), classes).double()
    return logits, (torch.rand(b, classes, generator=g) < 0.4).double()


def slow(logits, targets, known, kind, smoothing, balance):
    """Sample by sample, class by class."""
    b, classes = logits.shape
    total = 0.0
    for i in range(b):
        if not known[i]:
            continue
        loss = 0.0
        denominator = sum(math.exp(v) for v in logits[i].tolist())
        for c in range(classes):
            x, t = float(logits[i, c]), float(targets[i, c])
            if kind == "softmax":
                t = t * (1 - smoothing) + smoothing / classes
                loss -= t * math.log(math.exp(x) / denominator)
            else:
                p = 1 / (1 + math.exp(-x))
                loss -= t * math.log(p) + (1 - t) * math.log(1 - p)
        own = [c for c in range(classes) if targets[i, c]]
        if balance == "own":
            loss /= max(1, len(own))
        if balance == "batch" and own:
            loss /= max(1, sum(float(targets[:, c].sum()) for c in own) / len(own))
        total += loss
    return total / b


@pytest.mark.parametrize("balance", ["none", "own", "batch"])
@pytest.mark.parametrize(("kind", "smoothing"), [("softmax", 0.0), ("softmax", 0.1), ("sigmoid", 0.0)])
def test_equals_a_slow_one(kind, smoothing, balance):
    for seed in range(5):
        logits, targets = example(kind=kind, seed=seed)
        known = torch.tensor([True, True, seed % 2 == 0, True, False, True])
        got = classification_loss(logits, targets, known, kind=kind, smoothing=smoothing, balance=balance)
        assert float(got) == pytest.approx(slow(logits, targets, known, kind, smoothing, balance), rel=1e-12)


def test_known_answers():
    targets = torch.eye(4)
    zero = torch.zeros(4, 4)
    assert float(classification_loss(zero, targets)) == pytest.approx(math.log(4))
    assert float(classification_loss(zero, targets, smoothing=0.1)) == pytest.approx(math.log(4))
    assert float(classification_loss(zero, targets, kind="sigmoid")) == pytest.approx(4 * math.log(2))
    assert float(classification_loss(targets * 100, targets)) == pytest.approx(0, abs=1e-6)
    logits, targets = example()
    want = F.cross_entropy(logits, targets.argmax(1), label_smoothing=0.2)
    assert torch.allclose(classification_loss(logits, targets, smoothing=0.2), want)


def test_what_is_not_known_takes_no_gradient_and_half_precision_is_widened():
    logits, targets = example()
    logits.requires_grad_()
    known = torch.tensor([True, False, True, True, True, True])
    classification_loss(logits, targets, known).backward()
    assert not logits.grad[1].any()
    assert logits.grad[0].any()
    assert float(classification_loss(logits.detach(), targets, torch.zeros(6, dtype=torch.bool))) == 0
    assert classification_loss(logits.detach().bfloat16(), targets).dtype == torch.float32


def test_mixtures_depend_on_names_and_seed_alone():
    names = [f"8 sample-{i}" for i in range(2000)]
    shares = mixing_weights(5.0, names)
    assert torch.equal(shares[[7, 3]], mixing_weights(5.0, [names[7], names[3]]))
    assert not torch.equal(shares, mixing_weights(5.0, names, seed=1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(0.25 / 11, rel=0.15), "the variance of Beta(5, 5)"
    x = torch.arange(3.0)[:, None].expand(3, 2)
    mixed = mixed_rows(x, torch.tensor([1.0, 0.5, 0.0]))
    assert mixed.tolist() == [[0, 0], [0.5, 0.5], [1, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": torch.zeros(6, 3)}, r"must be \(b,C\), got \(6, 4\), \(6, 3\)"),
        ({"smoothing": 1.0}, "smoothing=1.0 must lie in 0..1"),
        ({"smoothing": 0.1, "kind": "sigmoid"}, "at 0 with kind='sigmoid'"),
        ({"kind": "hinge"}, "kind='hinge' must be softmax or sigmoid"),
        ({"balance": "all"}, "balance='all' none, own or batch"),
    ],
)
def test_wrong_inputs(change, said):
    logits, targets = example()
    with pytest.raises(ValueError, match=said):
        classification_loss(**{"logits": logits, "targets": targets, **change})


def _rank(rank, world, folder, results):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group-{world}", rank=rank, world_size=world)
    logits, targets = example(b=12, kind="sigmoid")
    part = slice(rank * 12 // world, (rank + 1) * 12 // world)
    loss = classification_loss(logits[part], targets[part], kind="sigmoid", balance="batch")
    dist.all_reduce(loss)
    results[rank] = float(loss) / world
    dist.destroy_process_group()


def test_labels_are_counted_over_all_ranks(tmp_path):
    logits, targets = example(b=12, kind="sigmoid")
    want = float(classification_loss(logits, targets, kind="sigmoid", balance="batch"))
    with mp.Manager() as manager:
        results = manager.dict()
        mp.start_processes(_rank, (2, str(tmp_path), results), nprocs=2, start_method="fork")
        assert list(results.values()) == pytest.approx([want, want], rel=1e-12)
