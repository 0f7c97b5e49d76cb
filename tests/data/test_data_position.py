import numpy as np
import pytest

from mmvit.data.mixture import Mixture
from mmvit.data.position import Order, permutation
from mmvit.errors import UserError


@pytest.mark.parametrize("sizes", [[5, 0, 3, 10], [1], [7] * 9, [100, 1, 1]])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_every_epoch_is_a_permutation(sizes, block):
    order, n = Order(sizes, seed=3, shuffle_block=block), sum(sizes)
    for epoch in range(3):
        drawn = [order.sample(epoch * n + p) for p in range(n)]
        assert {e for e, _ in drawn} == {epoch}
        assert sorted(i for _, i in drawn) == list(range(n))


def test_order_is_pure_and_differs_between_epochs_and_seeds():
    sizes = [10] * 12
    one = [Order(sizes, 0, 16).sample(p)[1] for p in range(240)]
    again = Order(sizes, 0, 16)
    assert [again.sample(p)[1] for p in reversed(range(240))] == one[::-1]
    assert one[:120] != one[120:]
    assert one[:120] != [Order(sizes, 1, 16).sample(p)[1] for p in range(120)]
    starts = [[i // 10 for i in one[e : e + 120 : 10]] for e in (0, 120)]
    assert starts[0] != starts[1], "the order of the shards must change, not only the order inside blocks"


def test_blocks_keep_reading_local():
    order = Order([100] * 50, 0, shuffle_block=200)
    touched = {order.sample(p)[1] // 100 for p in range(200)}
    assert len(touched) <= 3


def test_permutation_is_fixed_for_ever():
    assert permutation(8, "0:0:0").tolist() == EXPECTED
    big = permutation(65536, "x")
    assert np.array_equal(np.sort(big), np.arange(65536))
    assert abs(np.corrcoef(big, np.arange(65536))[0, 1]) < 0.02


EXPECTED = [0, 1, 2, 5, 7, 6, 4, 3]


def test_no_samples_is_an_error():
    with pytest.raises(UserError, match="no samples"):
        Order([0, 0], 0)
    with pytest.raises(UserError, match="shuffle_block"):
        Order([1], 0, 0)


def test_mixture_proportions_are_exact_and_positions_run_on():
    mixture = Mixture([0.5, 0.3, 0.2])
    cycle = len(mixture.slots)
    drawn = [mixture.locate(p) for p in range(7 * cycle)]
    for source, share in enumerate((0.5, 0.3, 0.2)):
        inner = [p for s, p in drawn if s == source]
        assert inner == list(range(len(inner))), "a source's own positions must run without gaps"
        assert len(inner) == share * len(drawn)
    for p in range(0, 6 * cycle, 5):
        share = sum(s == 0 for s, _ in drawn[p : p + cycle]) / cycle
        assert share == pytest.approx(0.5)


def test_mixture_of_odd_weights_is_close():
    mixture = Mixture([1 / 3, np.pi, 7.1, 0.0001])
    counts = np.array(mixture.per_cycle) / len(mixture.slots)
    weights = np.array([1 / 3, np.pi, 7.1, 0.0001])
    assert np.abs(counts - weights / weights.sum()).max() < 2e-4
    assert counts.min() > 0


def test_mixture_unit_keeps_batches_pure():
    mixture = Mixture([2, 1], unit=4)
    for batch in range(30):
        located = [mixture.locate(4 * batch + j) for j in range(4)]
        assert len({s for s, _ in located}) == 1
    inner = [p for s, p in (mixture.locate(i) for i in range(120)) if s == 1]
    assert inner == list(range(40))


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_mixture_refuses_bad_weights(weights):
    with pytest.raises(UserError, match="weights"):
        Mixture(weights)
