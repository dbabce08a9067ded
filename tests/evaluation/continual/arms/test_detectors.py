"""The pool with another novelty test is the pool with another novelty test, and nothing else."""

from __future__ import annotations

import pytest

from dylora_moe.config import ExpertSettings, LearnSettings, NoveltySettings
from dylora_moe.evaluation.continual.arms.detectors import DETECTORS
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.replay import DETECTORS as REPLAYED

NAMES = {arm.name: arm for arm in DETECTORS}


def test_there_is_an_arm_for_every_detector_that_is_replayed_but_the_pool_s_own() -> None:
    assert {f"ours-{name}" for name in REPLAYED} == {*NAMES, "ours-classifier"}
    assert {arm.kind for arm in DETECTORS} == {"pool"}


def test_only_the_novelty_test_is_another() -> None:
    learn = LearnSettings(
        expert=ExpertSettings(rank=3), novelty=NoveltySettings(min_cluster=9, threshold=0.7)
    )
    assert Ours().learning(learn) == learn
    for arm in DETECTORS:
        found = arm.learning(learn)
        assert found.novelty.detector != learn.novelty.detector
        assert found.novelty.min_cluster == 9
        # A bound of the run's own test is none of another's.
        assert found.novelty.threshold != 0.7
        assert found.model_copy(update={"novelty": learn.novelty}) == learn


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ours-cosine-0.85", ("cosine-maximum", 0.85, 0.0)),
        ("ours-cosine-0.75", ("cosine-maximum", 0.75, 0.0)),
        ("ours-cosine-median", ("cosine-median", 0.85, 0.0)),
        ("ours-cosine-adaptive", ("cosine-maximum", 0.95, 0.05)),
        ("ours-gradient-mahalanobis", ("gradient-mahalanobis", None, 0.0)),
    ],
)
def test_each_has_its_test_and_bound(name: str, settings: tuple[object, ...]) -> None:
    found = NAMES[name].learning(LearnSettings()).novelty
    assert (found.detector, found.threshold, found.delta) == settings


def test_a_run_s_own_similarity_settings_do_not_reach_tests_that_compare_none() -> None:
    moving = LearnSettings(
        novelty=NoveltySettings(detector="cosine-maximum", delta=0.1, smoothing=0.5)
    )
    for arm in DETECTORS:
        found = arm.learning(moving).novelty
        assert found.smoothing == 0.0
        assert found.delta in (0.0, 0.05)
