from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dylora_moe.scoring.bootstrap import Paired, macro_bootstrap, mean_ratio, paired_bootstrap


def test_a_system_against_itself_differs_by_exactly_nothing() -> None:
    scores = np.random.default_rng(0).random(50).tolist()
    found = paired_bootstrap(scores, scores)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    ratio = paired_bootstrap(scores, scores, statistic="ratio")
    assert (ratio.low, ratio.high) == (pytest.approx(1), pytest.approx(1))


def test_pairing_makes_a_constant_difference_certain() -> None:
    scores = np.random.default_rng(0).random(50)
    found = paired_bootstrap((scores + 0.25).tolist(), scores.tolist())
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        first, second = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
        found = paired_bootstrap(first.tolist(), second.tolist(), rounds=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = [1.0, 2.0, 4.0], [1.0, 1.0, 5.0]
    assert paired_bootstrap(first, second, seed=3) == paired_bootstrap(first, second, seed=3)


def test_weights_make_the_mean_a_mean_over_tokens() -> None:
    found = paired_bootstrap([1.0, 4.0], [1.0, 2.0], weights=[30, 10], statistic="ratio")
    assert found.value == pytest.approx((30 + 40) / (30 + 20))


def test_the_mean_of_ratios_weighs_skills_alike() -> None:
    pairs = [Paired([2.0] * 10, [1.0] * 10), Paired([1.0] * 500, [1.0] * 500)]
    found = mean_ratio(pairs)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_a_ratio_of_macro_averages_weighs_skills_alike_and_takes_them_before_dividing() -> None:
    pairs = [Paired([1.0] * 10, [0.5] * 10), Paired([0.5] * 500, [0.5] * 500)]
    found = macro_bootstrap(pairs)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)
    unlike = [Paired([1.0] * 4, [0.8] * 4), Paired([0.2] * 4, [0.1] * 4)]
    assert macro_bootstrap(unlike).value == pytest.approx(1.2 / 0.9)
    assert mean_ratio(unlike).value == pytest.approx((1.25 + 2) / 2)
    difference = macro_bootstrap(unlike, statistic="difference")
    assert difference.value == pytest.approx((0.2 + 0.1) / 2)


def test_of_one_skill_the_macro_average_is_the_average() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(40).tolist(), rng.random(40).tolist()
    one = macro_bootstrap([Paired(first, second)])
    plain = paired_bootstrap(first, second, statistic="ratio")
    assert one.value == pytest.approx(plain.value)
    # Its ends are resamples, those of the plain one lie between two of them.
    assert one.low <= plain.low <= plain.high <= one.high
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_a_skill_with_nothing_right_counts_in_a_ratio_of_macro_averages() -> None:
    right, wrong = [1.0, 0.0] * 20, [0.0] * 40
    found = macro_bootstrap([Paired(right, right), Paired(right, wrong)])
    assert found.value == pytest.approx(2)
    assert 1 < found.low <= found.value <= found.high < 4
    with pytest.raises(ValueError, match="take the difference"):
        macro_bootstrap([Paired(right, wrong)])
    above = macro_bootstrap([Paired(right, wrong)], statistic="difference")
    assert above.value == pytest.approx(0.5)
    assert 0.3 < above.low < 0.5 < above.high < 0.7


def test_a_ratio_to_next_to_nothing_has_no_upper_end() -> None:
    one_right = [1.0, *[0.0] * 29]
    found = macro_bootstrap([Paired([1.0] * 30, one_right)])
    assert found.value == pytest.approx(30)
    assert np.isfinite(found.low)
    assert found.high == np.inf
    both = macro_bootstrap([Paired(one_right, one_right)])
    assert (both.value, both.low, both.high) == (1, -np.inf, np.inf)


def test_the_interval_of_a_macro_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        pairs = []
        for first, second in ((0.9, 0.6), (0.5, 0.4)):
            drawn = rng.random(80)  # both systems fail on the same hard rows
            pairs.append(Paired((drawn < first).tolist(), (drawn < second).tolist()))
        found = macro_bootstrap(pairs, rounds=400, seed=seed)
        covered += found.low <= 1.4 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


# -- several seeds -------------------------------------------------------------------------------


def runs(rng: np.random.Generator, seeds: int, spread: float) -> list[Paired]:
    """Runs whose truth is 0.5, of two skills of 40 rows, the same under each seed; how far seeds
    differ by themselves is `spread`."""
    found = []
    moved = rng.normal(0, spread, seeds)
    for skill in ("sql", "shell"):
        rows = rng.normal(0.5, 0.3, 40)
        for seed, by in enumerate(moved):
            told = (rows + by + rng.normal(0, 0.05, 40)).tolist()
            found.append(Paired(told, [0.0] * 40, seed=seed, skill=skill))
    return found


def width(pairs: list[Paired]) -> float:
    found = macro_bootstrap(pairs, statistic="difference")
    return found.high - found.low


def test_the_same_answers_under_more_seeds_make_no_narrower_interval() -> None:
    rng = np.random.default_rng(0)
    one = [Paired(rng.random(60).tolist(), rng.random(60).tolist(), skill=s) for s in "ab"]
    more = [replace(pair, seed=seed) for seed in range(5) for pair in one]
    for statistic in ("ratio", "difference"):
        alone = macro_bootstrap(one, statistic=statistic)  # type: ignore[arg-type]
        together = macro_bootstrap(more, statistic=statistic)  # type: ignore[arg-type]
        assert together.value == pytest.approx(alone.value)
        assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    # As rows of their own they would be five times as many.
    apart = [replace(pair, skill=None, seed=0) for pair in more]
    assert width(apart) < 0.5 * width(more)


def test_an_interval_is_as_wide_as_seeds_differ() -> None:
    rng, seeds, spread = np.random.default_rng(1), 20, 0.1
    moved = rng.normal(0, spread, seeds)
    pairs = [
        Paired([0.5 + by] * 30, [0.0] * 30, seed=seed, skill="sql")
        for seed, by in enumerate(moved.tolist())
    ]
    standard_error = np.std(moved, ddof=1) / np.sqrt(seeds)
    assert width(pairs) == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    # Three of them, and the variance is that of three, not two thirds of it.
    error_of_three = np.std(moved[:3], ddof=1) / np.sqrt(3)
    found = macro_bootstrap(pairs[:3], statistic="difference", confidence=0.6)
    assert found.high - found.low >= error_of_three


def test_over_seeds_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered, narrow, wider = 0, 0, 0
    for _ in range(120):
        pairs = runs(rng, 8, 0.1)
        found = macro_bootstrap(pairs, statistic="difference", rounds=400)
        apart = [replace(pair, skill=None, seed=0) for pair in pairs]
        before = macro_bootstrap(apart, statistic="difference", rounds=400)
        covered += found.low <= 0.5 <= found.high
        narrow += before.low <= 0.5 <= before.high
        wider += found.high - found.low > before.high - before.low
    assert 0.85 <= covered / 120 <= 1
    assert narrow / 120 < 0.6
    assert wider == 120


def test_seeds_that_share_some_rows_are_resampled_with_them() -> None:
    rng = np.random.default_rng(4)
    score = rng.random(90)
    names = [f"row {n}" for n in range(90)]

    def pair(seed: int, first: int) -> Paired:
        chosen = slice(first, first + 60)
        told = score[chosen].tolist()
        return Paired(told, [0.0] * 60, seed=seed, skill="sql", rows=names[chosen])

    same, half = [pair(0, 0), pair(1, 0)], [pair(0, 0), pair(1, 30)]
    found = macro_bootstrap(half, statistic="difference")
    assert found.value == pytest.approx((score[:60].mean() + score[30:].mean()) / 2)
    assert width(half) > 0
    # The order of a seed's rows means nothing.
    turned = replace(half[1], first=half[1].first[::-1], rows=names[30:][::-1])
    again = macro_bootstrap([half[0], turned], statistic="difference")
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=0.01)
    assert width(same) == pytest.approx(width([same[0]]))
    with pytest.raises(ValueError, match="name each once"):
        macro_bootstrap([replace(same[0], rows=["one"] * 60)], statistic="difference")


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="unpaired"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_no_pairs_and_no_rounds_are_refused() -> None:
    for bootstrap in (mean_ratio, macro_bootstrap):
        with pytest.raises(ValueError, match="at least one pair"):
            bootstrap([])
        with pytest.raises(ValueError, match="rounds must be positive"):
            bootstrap([Paired([1.0], [1.0])], rounds=0)
