"""The line that separates: each detector's own, where it is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dylora_moe.evaluation.figures import arrivals
from dylora_moe.evaluation.figures.canvas import Panel
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.steps import Step
from dylora_moe.records import Interval

AUC = Interval(0.9, 0.85, 0.95)
NEAR = Interval(0.2, 0.2, 0.2)
"""As of a test that measures 1 - cosine."""


def panel(*steps: dict[str, Any], fit: Interval | None = None) -> Panel:
    made = [
        Step(number, "arrival", f"a{number}", verdict="novel", fit=fit, **step)
        for number, step in enumerate(steps, start=1)
    ]
    figure = arrivals.arrival_verdicts(cast(History, SimpleNamespace(steps=made)))
    assert figure.panels[0].name == "separability"
    return figure.panels[0]


def lines(svg: str) -> int:
    return svg.count("stroke-dasharray")


def labels(svg: str) -> list[str]:
    return [text for text in ("0.15", "0.70", "0.80") if f">{text}<" in svg]


@pytest.mark.parametrize("detector", ["classifier", ""])
def test_the_classifiers_line_stands_where_an_older_event_tells_none(detector: str) -> None:
    step = {"detector": detector, "separability": AUC}
    found = panel(step, step)
    assert lines(found.svg) == 1
    assert labels(found.svg) == ["0.80"]
    assert "(AUC)" in found.alt


def test_a_line_is_where_the_detector_had_its_threshold() -> None:
    chosen = panel({"detector": "classifier", "separability": AUC, "threshold": 0.7})
    assert labels(chosen.svg) == ["0.70"]
    other = panel({"detector": "cosine-maximum", "separability": NEAR, "threshold": 0.15})
    assert labels(other.svg)[0] == "0.15"
    assert "(AUC)" not in other.alt


def test_of_another_detector_without_a_threshold_there_is_no_line() -> None:
    found = panel({"detector": "cosine-maximum", "separability": NEAR})
    assert lines(found.svg) == 0


def test_each_arrival_has_its_own_line_where_they_differ() -> None:
    """Not the others': one that falls with the number of experts, or another detector's."""
    found = panel(
        {"detector": "classifier", "separability": AUC},
        {"detector": "cosine-maximum", "separability": NEAR, "threshold": 0.15},
        {"detector": "cosine-maximum", "separability": NEAR, "threshold": 0.15},
        {"detector": "cosine-maximum", "separability": NEAR},
    )
    assert lines(found.svg) == 3
    assert {"0.15", "0.80"} <= set(labels(found.svg))
