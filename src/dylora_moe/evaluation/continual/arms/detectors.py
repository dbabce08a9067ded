"""This project's pool with each other novelty test of its own as the one that decides.

All else is the arm `ours`: sorting, training, router, gate. The tests and their bounds are those
that `evaluation.continual.replay` replays on stored features; here each one's verdicts have the
experts that follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dylora_moe.evaluation.continual.arms.ours import Ours

_TESTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cosine-0.85": ("cosine, maximum, 0.85", {"detector": "cosine-maximum", "threshold": 0.85}),
    "cosine-0.75": ("cosine, maximum, 0.75", {"detector": "cosine-maximum", "threshold": 0.75}),
    "cosine-median": ("cosine, median, 0.85", {"detector": "cosine-median", "threshold": 0.85}),
    "cosine-adaptive": (
        "cosine, 0.95 - 0.05 log(1 + k)",
        {"detector": "cosine-maximum", "threshold": 0.95, "delta": 0.05},
    ),
    "entropy": ("the router's entropy", {"detector": "entropy"}),
    "mahalanobis": ("Mahalanobis of features", {"detector": "mahalanobis"}),
    "gradient-mahalanobis": ("Mahalanobis of gradients", {"detector": "gradient-mahalanobis"}),
    "projection": ("cosine in a learned projection", {"detector": "projection"}),
}

_NONE = {"threshold": None, "delta": 0.0, "smoothing": 0.0}
"""What a run's own test may have been given, and another must not inherit."""

DETECTORS: tuple[Ours, ...] = tuple(
    Ours(f"ours-{name}", f"this project, novelty by {title}", novelty=_NONE | dict(settings))
    for name, (title, settings) in _TESTS.items()
)
"""An arm for each test."""
