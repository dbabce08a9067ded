"""Rank against quality: the curve, and the smallest rank that is enough."""

from __future__ import annotations

import random

import pytest

from dylora_moe.config import ExpertSettings, LearnSettings, learn_settings
from dylora_moe.tuning.ranks import RankCurve, rank_curve
from dylora_moe.tuning.search import Trial
from dylora_moe.tuning.space import RANK
from dylora_moe.tuning.trials import Trained

START = LearnSettings()


def trial(rank: int, watched: float, judged: float, whole: bool = True) -> Trial:
    """A skill whose rows differ much in loss, by the same amounts at every rank, and a little by
    chance."""
    rng = random.Random(rank)
    rows = tuple(judged * (1 + index / 10) * rng.uniform(0.97, 1.03) for index in range(40))
    trained = Trained(watched, rows, (1,) * 40, (True,) * 40, 1, 2.0, 1000 * rank)
    return Trial(rank, {RANK: rank}, {"a": trained, "b": trained}, watched, whole)


def curve(*trials: Trial, start: LearnSettings = START) -> RankCurve:
    found = rank_curve(trials, start)
    assert found is not None
    return found


def test_the_smallest_rank_that_the_best_beats_by_chance_alone_is_suggested() -> None:
    found = curve(trial(8, 1.0, 1.0), trial(2, 1.3, 1.3), trial(4, 1.01, 1.0), trial(16, 0.99, 1.0))
    assert [one.rank for one in found.points] == [2, 4, 8, 16]
    assert [one.parameters for one in found.points] == [2000, 4000, 8000, 16000]
    assert [one.is_enough for one in found.points] == [False, True, True, True]
    assert (found.best, found.suggested) == (16, 4)
    assert found.points[0].against.value == pytest.approx(1.3, abs=0.02)
    assert found.points[-1].against.low == found.points[-1].against.high == 1.0
    assert found.settings == {RANK: 4, "expert.alpha": 8.0}
    assert "suggested rank: 4" in found.message
    assert "may be chance" in found.message


def test_where_every_lower_rank_does_worse_the_best_is_suggested() -> None:
    found = curve(trial(8, 1.0, 1.0), trial(4, 1.2, 1.2), trial(16, 0.9, 0.9))
    assert found.suggested == found.best == 16
    assert "every lower one tried does worse" in found.message


def test_a_rank_that_judged_rows_prefer_is_no_worse_than_the_best() -> None:
    # Which is best is said by the watched rows, that it is better by others.
    found = curve(trial(2, 1.1, 0.8), trial(8, 1.0, 1.0))
    assert (found.best, found.suggested) == (8, 2)


def test_alpha_goes_with_the_rank() -> None:
    start = LearnSettings(expert=ExpertSettings(rank=8, alpha=8.0))
    assert curve(trial(8, 1.0, 1.0), trial(2, 1.0, 1.0), start=start).settings == {
        RANK: 2, "expert.alpha": 2.0,
    }  # fmt: skip


def test_what_to_learn_with_is_all_that_was_measured() -> None:
    start = learn_settings(["consolidation.epochs=5", "seed=3"])
    assert curve(trial(8, 1.0, 1.0), trial(2, 1.0, 1.0), start=start).settings == {
        RANK: 2, "expert.alpha": 4.0, "consolidation.epochs": 5.0, "seed": 3,
    }  # fmt: skip


def test_of_ranks_below_the_lowest_one_tried_nothing_is_said() -> None:
    found = curve(trial(8, 1.0, 1.0), trial(2, 0.9, 0.9))
    assert found.suggested == found.best == 2
    assert found.message == "suggested rank: 2, the lowest one tried; none above it does better"


def test_there_is_no_curve_of_one_rank_or_of_ranks_that_differ_in_more() -> None:
    assert rank_curve([trial(8, 1.0, 1.0)], START) is None
    assert rank_curve([trial(8, 1.0, 1.0), trial(4, 1.0, 1.0, whole=False)], START) is None
    other = Trial(1, {RANK: 4, "consolidation.epochs": 2.0}, trial(4, 1.0, 1.0).skills, 1.0, True)
    assert rank_curve([trial(8, 1.0, 1.0), other], START) is None
