"""When a difference is a regression, on numbers made up for the purpose and on simulated noise."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.bench.regression.noise import noise_of
from vram_plan.bench.regression.robust import (
    coefficient_of_variation,
    lag_1,
    median_interval,
    sigma,
)
from vram_plan.bench.regression.rules import (
    allocated_limit,
    judge_history,
    judge_memory,
    judge_pairs,
    judge_prediction,
)
from vram_plan.bench.regression.simulate import Machine, flagged

CALM = [1.0, 1.01, 0.99, 1.0, 1.005] * 4
MIB, GIB = 2**20, 2**30


def test_a_slowdown_is_suspect_once_and_a_regression_twice() -> None:
    assert judge_history([*CALM, 1.1, 1.1, 1.1]).status == "suspect"
    verdict = judge_history([*CALM, *[1.1] * 6])
    assert verdict.status == "regression"
    assert verdict.change == pytest.approx(0.1)
    assert verdict.runs == (20, 6)


def test_what_goes_away_again_is_no_regression() -> None:
    assert judge_history([*CALM, 1.1, 1.1, 1.1, 1.0, 1.0, 1.0]).status == "ok"
    assert judge_history([*CALM, 1.0, 1.0, 1.3]).status == "ok"


def test_faster_is_said_and_is_none() -> None:
    assert judge_history([*CALM, 0.9, 0.9, 0.9]).status == "improvement"


def test_few_runs_say_nothing() -> None:
    assert judge_history([*CALM[:9], 2.0, 2.0, 2.0]).status == "insufficient"
    assert judge_history([]).status == "insufficient"


def test_noise_raises_the_threshold() -> None:
    noisy = [1.0, 1.05, 0.95, 1.02, 0.97] * 4
    assert judge_history([*noisy, *[1.05] * 6]).status == "ok"
    assert judge_history([*CALM, *[1.05] * 6]).status == "regression"


def test_pairs_need_a_majority_and_a_confirmation() -> None:
    slow, same = [1.05] * 5, [1.0] * 5
    assert judge_pairs(same, slow).status == "suspect"
    assert judge_pairs(same, slow, confirmation=(same, slow)).status == "regression"
    assert judge_pairs(same, slow, confirmation=(same, same)).status == "ok"
    assert judge_pairs(same, [1.02] * 5).status == "ok"
    assert judge_pairs(same, [0.9] * 5).status == "improvement"
    assert judge_pairs([1.0], [2.0]).status == "insufficient"
    with pytest.raises(ValueError, match="as many runs of each side: 5 and 1"):
        judge_pairs(same, [1.0])


def test_pairs_of_a_busy_machine_tell_nothing() -> None:
    same, noisy = [1.0] * 5, [0.8, 1.2, 1.3, 1.1, 0.9]
    assert judge_pairs(same, noisy).status == "suspect"
    assert judge_pairs(same, noisy, confirmation=(same, noisy)).status == "ok"
    assert judge_pairs(same, [0.7, 0.8, 1.3, 0.9, 0.9]).status == "ok"


@pytest.mark.parametrize(
    ("baseline", "limit"),
    [
        (1 * GIB, 0.02 * GIB),  # 2 % is less than 256 MiB
        (20 * GIB, 256 * MIB),
        (80 * GIB, 0.01 * 80 * GIB),
    ],
)
def test_allocated_bytes_may_grow_a_little(baseline: int, limit: float) -> None:
    assert allocated_limit(baseline) == pytest.approx(limit)
    assert judge_memory([baseline], [baseline + 0.99 * limit]).status == "ok"
    assert judge_memory([baseline], [baseline + 1.01 * limit]).status == "regression"


def test_reserved_bytes_may_grow_by_5_percent_and_never_count_near_the_capacity() -> None:
    assert judge_memory([100], [104], reserved=True).status == "ok"
    assert judge_memory([100], [106], reserved=True).status == "regression"
    assert judge_memory([100], [106], reserved=True, censored=True).status == "censored"


def test_a_prediction_may_be_off_by_two_points_more() -> None:
    assert judge_prediction([0.01, -0.01], [-0.029]).status == "ok"
    assert judge_prediction([0.01, -0.01], [-0.031]).status == "regression"
    assert judge_prediction([-0.05], [0.01]).status == "improvement"


#: Of 2,000 trials; the command runs 20,000. False alarms ≤ 0.1 % would be 2.
TRIALS = 2000


@pytest.mark.parametrize("rule", ["history, confirmed", "A/B pairs, confirmed"])
@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_false_alarms_are_rare(rule: str, noise: float) -> None:
    assert flagged(rule, noise, 0.0, trials=TRIALS, seed=1) <= 0.001 * TRIALS


@pytest.mark.parametrize(
    ("rule", "noise", "share"),
    [
        ("A/B pairs, confirmed", 0.01, 0.95),
        ("A/B pairs, confirmed", 0.02, 0.80),
        ("history, confirmed", 0.01, 0.95),
    ],
)
def test_a_slowdown_of_5_percent_is_found(rule: str, noise: float, share: float) -> None:
    assert flagged(rule, noise, 0.05, trials=TRIALS, seed=1) >= share * TRIALS


def test_the_previous_run_plus_5_percent_is_what_not_to_do() -> None:
    assert flagged("previous run + 5 %", 0.01, 0.0, trials=TRIALS, seed=1) > 0.01 * TRIALS


def test_simulated_noise_is_what_it_says() -> None:
    machine = Machine(0.02, random.Random(3))
    seen = [machine.run() for _ in range(20_000)]
    assert coefficient_of_variation(seen) == pytest.approx(0.02, rel=0.1)
    assert 0.1 < lag_1(seen) < 0.3  # of 30 % drift with a memory of 0.8, less the slow outliers


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=12))
def test_single_outliers_do_not_move_the_spread(values: list[float]) -> None:
    assert sigma([*values, *values]) == pytest.approx(sigma(values))
    assert sigma(values) >= 0


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """By counting: every order of 7 values below and above the median is as likely."""
    low, high, share = median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) or (0.0, 0.0, 0.0)
    assert (low, high) == (1.0, 7.0)
    misses = sum(len(set(signs)) == 1 for signs in itertools.product((-1, 1), repeat=7))
    assert share == pytest.approx(1 - misses / 2**7)
    assert median_interval([1.0, 2.0, 3.0]) is None


def test_a_quiet_machine_keeps_the_floor_and_a_noisy_one_raises_it() -> None:
    dice = random.Random(1)
    quiet = noise_of([1 + dice.gauss(0, 0.005) for _ in range(30)])
    noisy = noise_of([1 + dice.gauss(0, 0.04) for _ in range(30)])
    assert quiet.floor == 0.03
    assert noisy.floor == pytest.approx(3 * 0.67 * noisy.variation)
    assert noisy.detectable > noisy.floor > quiet.detectable > quiet.floor
    with pytest.raises(ValueError, match="two runs"):
        noise_of([1.0])
