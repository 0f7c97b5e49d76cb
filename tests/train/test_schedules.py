"""The published table of the reciprocal-square-root schedule, and the ends of every schedule."""

import math

import pytest

from mmvit.errors import UserError
from mmvit.train.schedule import ScheduleConfig, build_schedule, cosine, quarter_cosine, rsqrt


@pytest.mark.parametrize(
    ("t", "factor"),
    [
        (5_000, 0.5),
        (10_000, 1.0),
        (20_000, 0.7071),
        (100_000, 0.3162),
        (500_000, 0.1414),
        (950_000, 0.1026),
        (975_000, 0.0506),
        (1_000_000, 0.0),
    ],
)
def test_rsqrt_table(t, factor):
    assert rsqrt(t, 1_000_000, 10_000, 50_000, 10_000) == pytest.approx(factor, abs=5e-5)


def test_cosine_values():
    assert cosine(50, 1000, 100) == pytest.approx(0.5)
    assert cosine(100, 1000, 100) == 1.0
    assert cosine(550, 1000, 100) == pytest.approx(0.5)
    assert cosine(1000, 1000, 100) == pytest.approx(0.0)
    assert cosine(325, 1000, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(
    ("t", "factor"), [(5_000, 0.5), (10_000, 1.0), (255_000, 0.85355), (500_000, 0.5), (600_000, 0.5)]
)
def test_a_quarter_of_a_cosine_down_to_half_the_rate(t, factor):
    assert quarter_cosine(t, 500_000, 10_000, 0.5) == pytest.approx(factor, abs=5e-6)
    # A run's formulas have the total one step behind its last: see build_schedule.
    run = build_schedule(ScheduleConfig(name="quarter_cosine", warmup=10_000), 499_999)
    assert run(t) == quarter_cosine(t, 500_000, 10_000, 0.5)


@pytest.mark.parametrize(("t", "factor"), [(2_500, 0.5), (5_000, 1.0), (252_500, 0.75), (500_000, 0.5)])
def test_half_a_cosine_down_to_half_the_rate(t, factor):
    assert cosine(t, 500_000, 5_000, 0.5) == pytest.approx(factor, abs=5e-6)
    run = build_schedule(ScheduleConfig(name="half_cosine", warmup=5_000), 499_999)
    assert run(t) == cosine(t, 500_000, 5_000, 0.5)


def test_floors():
    for name, function in (("half_cosine", cosine), ("quarter_cosine", quarter_cosine)):
        run = build_schedule(ScheduleConfig(name=name, warmup=2, floor=0.2), 20)
        factors = [run(t) for t in range(1, 21)]
        assert factors == [function(t, 21, 2, 0.2) for t in range(1, 21)]
        assert factors[1:] == sorted(factors[1:], reverse=True)
        assert 0.2 < factors[-1] < 0.3
        assert run(21) == pytest.approx(0.2)
    flat = build_schedule(ScheduleConfig(name="quarter_cosine", warmup=0, floor=1.0), 20)
    assert {flat(t) for t in range(1, 21)} == {1.0}
    assert cosine(325, 1000, 100, 0.0) == cosine(325, 1000, 100)


def test_what_is_no_schedule():
    with pytest.raises(UserError, match=r"--schedule.floor is a share 0..1 of the peak rate, got 1.5"):
        build_schedule(ScheduleConfig(name="half_cosine", floor=1.5), 10)
    with pytest.raises(UserError, match="quarter_cosine or half_cosine, got 'third_cosine'"):
        build_schedule(ScheduleConfig(name="third_cosine"), 10)


@pytest.mark.parametrize("name", ["cosine", "rsqrt", "constant", "quarter_cosine", "half_cosine"])
def test_no_step_is_taken_at_rate_zero(name):
    schedule = build_schedule(ScheduleConfig(name=name, warmup=5, cooldown=5), 20)
    factors = [schedule(step) for step in range(1, 21)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[0] == pytest.approx(0.2, rel=0.1)
    assert max(factors) > 0.8


def test_fractions_of_the_run():
    half = build_schedule(ScheduleConfig(name="constant", warmup=0.5), 100)
    assert half(25) == pytest.approx(0.5)
    assert half(51) == 1.0


def test_a_cooldown_can_be_launched_from_any_step_of_rsqrt():
    long = build_schedule(ScheduleConfig(name="rsqrt", warmup=10, timescale=50), 1000)
    short = build_schedule(ScheduleConfig(name="rsqrt", warmup=10, timescale=50, cooldown=20), 120)
    assert [long(t) for t in range(1, 100)] == [short(t) for t in range(1, 100)]
    assert short(119) < long(119) / 5


def test_ramps_that_do_not_fit():
    with pytest.raises(UserError, match="do not fit into 10 steps"):
        build_schedule(ScheduleConfig(warmup=8, cooldown=4), 10)
