import itertools

import pytest
import torch

from mmvit.tokens.lengths import length_groups


def masks(lengths, L):
    return torch.arange(L) < torch.tensor(lengths)[:, None]


def cost_of(groups, cost):
    return sum(len(rows) * width + cost for rows, width in groups)


@pytest.mark.parametrize("cost", [0, 3, 20, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_groups_are_the_cheapest_of_all(seed, cost):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (11,), generator=g).tolist()
    groups = length_groups(masks(lengths, 12), cost)
    assert sorted(torch.cat([rows for rows, _ in groups]).tolist()) == list(range(11))
    for rows, width in groups:
        assert max(lengths[i] for i in rows) == width
    widths = sorted(set(lengths))
    cheapest = min(
        sum(
            cost + high * sum(low < n <= high for n in lengths)
            for low, high in itertools.pairwise([0, *cuts, widths[-1]])
        )
        for k in range(len(widths))
        for cuts in itertools.combinations(widths[:-1], k)
    )
    assert cost_of(groups, cost) == cheapest
    assert len(groups) == {0: len(widths), 1000: 1}.get(cost, len(groups))


def test_holes_and_empty_rows_keep_a_place():
    mask = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert [(rows.tolist(), width) for rows, width in length_groups(mask, 0)] == [([0, 2], 1), ([1], 3)]
