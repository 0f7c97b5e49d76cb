"""Freezing by pattern: first match wins, nothing uncovered, locked for good."""

import copy

import pytest
import torch
from torch import nn

from mmvit.errors import UserError
from mmvit.train.freeze import fingerprint, freeze, table


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.text = nn.ModuleDict({"core": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        self.scale = nn.Parameter(torch.zeros(()))


RULES = [(r"text\.head\..*", 0.5), (r"(image|text)\..*", None), ("scale", 1.0)]


def test_first_match_wins_and_modules_lock():
    pair = Pair()
    frozen = freeze(pair, RULES)
    assert frozen.multipliers["text.head.weight"] == 0.5
    assert frozen.multipliers["text.core.weight"] is None
    assert frozen.trainable() == ["scale", "text.head.weight", "text.head.bias"]
    assert frozen.locked == ("image", "text.core")
    assert frozen.is_locked("image.1.running_mean")
    assert not frozen.is_locked("text.head.weight")
    assert not pair.text["core"].weight.requires_grad


def test_a_locked_module_is_deaf_to_train():
    pair = Pair()
    freeze(pair, RULES)
    before = {n: b.clone() for n, b in pair.image.named_buffers()}
    x = torch.randn(2, 3, 8, 8)
    pair.train()
    pair.image.train()
    pair.image[2].train(True)
    first, second = pair.image(x), pair.image(x)
    assert torch.equal(first, second)
    assert all(torch.equal(b, before[n]) for n, b in pair.image.named_buffers())
    assert pair.text["head"].training
    assert not any(m.training for m in pair.image.modules())
    twin = copy.deepcopy(pair).train()
    assert not twin.image[2].training


def test_uncovered_parameters_and_bad_rules_are_errors():
    with pytest.raises(UserError, match="covered by no pattern, first 'scale'"):
        freeze(Pair(), RULES[:2])
    with pytest.raises(UserError, match="not a regular expression"):
        freeze(Pair(), [("(", 1.0)])
    with pytest.raises(UserError, match="above 0"):
        freeze(Pair(), [(".*", 0.0)])


def test_unused_patterns_are_told():
    assert freeze(Pair(), [*RULES, ("imge.*", None)]).unused == ("imge.*",)


def test_shared_parameters_are_decided_once():
    pair = Pair()
    pair.twin = pair.text
    frozen = freeze(pair, [(r"text\..*", None), (".*", 1.0)])
    assert frozen.multipliers["twin.core.weight"] is None
    assert not pair.text["core"].weight.requires_grad


def test_the_table_counts_every_parameter():
    pair = Pair()
    text = table(pair, freeze(pair, RULES))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["image.0"][:2] == ["112", "0"]
    assert rows["image.0"][2] == "locked"
    assert rows["text.head"] == ["10", "10", "0.5"]
    assert rows["total"] == [str(sum(p.numel() for p in pair.parameters())), "11"]


def test_fingerprint_sees_every_bit_and_buffers():
    pair = Pair()
    first = fingerprint(pair, ["image"])
    assert fingerprint(copy.deepcopy(pair), ["image"]) == first
    with torch.no_grad():
        pair.text["core"].weight[0, 0] += 1
    assert fingerprint(pair, ["image"]) == first
    pair.image[1].running_mean[0] += 1e-6
    assert fingerprint(pair, ["image"]) != first
