"""The novelty test that the settings name, made for a live pool and what has happened in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

from dylora_moe.config import SIMILARITIES, NoveltySettings
from dylora_moe.lifecycle.earlier import last_separability
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.ports import Registry
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.cosine import Cosine
from dylora_moe.skills.mahalanobis import Mahalanobis
from dylora_moe.skills.novelty import Limits, NoveltyDetector
from dylora_moe.skills.projection import ContrastiveProjection, ProjectedCosine
from dylora_moe.skills.router_entropy import RouterEntropy
from dylora_moe.skills.smoothing import Smoothed, smoothed_name

_AUC, _SIMILARITY, _PROJECTED, _ENTROPY = 0.80, 0.85, 0.95, 0.5
"""Thresholds where none is given."""
_NEVER = float("inf")
"""Separability that settles a fit in doubt, of tests whose scale has no near certainty."""


def representation_of(settings: NoveltySettings) -> Representation:
    """What the test compares."""
    if settings.detector == "gradient-mahalanobis":
        return "gradient"
    return "last-layer" if settings.detector.startswith("cosine") else "tap"


def make_detector(
    settings: NoveltySettings, seed: int
) -> Callable[[LivePool, Registry], NoveltyDetector]:
    """What makes the test for an arrival. It is asked anew for each: some go by the pool's size, or
    by what came before."""

    @cache
    def projection(live: LivePool) -> ContrastiveProjection:
        return ContrastiveProjection(live.own, seed)

    def make(live: LivePool, registry: Registry) -> NoveltyDetector:
        if settings.detector not in SIMILARITIES:
            return _by_distribution(settings, seed, live)
        rule = _cosine(settings, len(live.revision.experts))
        found: NoveltyDetector = rule
        if settings.detector == "projection":
            found = ProjectedCosine(rule, projection(live))
        if settings.smoothing == 0:
            return found
        before = last_separability(registry.events(), smoothed_name(found.name))
        return Smoothed(found, settings.smoothing, before)

    return make


def _by_distribution(settings: NoveltySettings, seed: int, live: LivePool) -> NoveltyDetector:
    """Tests that hold rows against rows, or ask the router about each."""
    limits = Limits(settings.badly, settings.min_examples, settings.min_tokens)
    if settings.detector == "entropy":
        return RouterEntropy(
            lambda features: live.router(features.to(live.base.device)).entropy,
            _or_default(settings.threshold, _ENTROPY),
            Limits(limits.fit, limits.samples, limits.tokens, settled=_NEVER),
        )
    threshold = _or_default(settings.threshold, _AUC)
    if settings.detector == "classifier":
        return ClassifierTwoSample(threshold, limits, seed=seed)
    return Mahalanobis(threshold, limits, name=settings.detector)


def _cosine(settings: NoveltySettings, experts: int) -> Cosine:
    mode: Literal["maximum", "median"] = (
        "median" if settings.detector == "cosine-median" else "maximum"
    )
    limits = Limits(settings.badly, settings.min_examples, settings.min_tokens, settled=_NEVER)
    usual = _PROJECTED if settings.detector == "projection" else _SIMILARITY
    bound = _or_default(settings.threshold, usual)
    return Cosine(bound, mode, limits, delta=settings.delta, experts=experts)


def _or_default(threshold: float | None, default: float) -> float:
    return default if threshold is None else threshold
