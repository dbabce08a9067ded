"""Results of arms that never ran, with scores made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dylora_moe.evaluation.continual.results import ArmResult, RowResult, Stage, TextLoss

SKILLS = ("sums", "hats", "moods")


def rows(
    scores: Mapping[str, Sequence[float]],
    *,
    routed: Mapping[str, Sequence[str]] | None = None,
    confidence: float = 1.0,
) -> tuple[RowResult, ...]:
    """Rows by skill; `routed` says to whose expert each went."""
    found = []
    for skill, values in scores.items():
        for place, value in enumerate(values):
            found.append(
                RowResult(
                    skill=skill,
                    key=f"{skill}-{place}",
                    score=value,
                    exact=float(value == 1),
                    f1=value,
                    loss=2.0,
                    tokens=4,
                    expert=None if routed is None else routed[skill][place],
                    confidence=None if routed is None else confidence,
                )
            )
    return tuple(found)


def result(
    stages: Sequence[tuple[str, tuple[RowResult, ...]]],
    *,
    arm: str = "ours",
    stream: str = "hard",
    seed: int = 0,
    base_loss: float | None = 2.0,
    neutral: Sequence[float] = (),
    tokens: int = 100,
    **details: Any,
) -> ArmResult:
    """An arm with a stage for each (skill, rows); `neutral`: nats a token of rows of no skill."""
    return ArmResult(
        arm=arm,
        stream=stream,
        seed=seed,
        stages=tuple(Stage(n, skill, found) for n, (skill, found) in enumerate(stages, 1)),
        trained_tokens=tokens,
        seconds=1.0,
        parameters=30,
        parameters_in_use=10.0,
        base_loss=sum(neutral) / len(neutral) if neutral else base_loss,
        neutral=tuple(TextLoss(f"n{n}", 4 * nats, 4) for n, nats in enumerate(neutral)),
        details=details,
    )


def at_once(
    scores: Mapping[str, Sequence[float]], *, stream: str = "hard", **more: Any
) -> ArmResult:
    """An arm that was asked at the end only."""
    asked = {key: more.pop(key) for key in ("routed", "confidence") if key in more}
    return result([("", rows(scores, **asked))], stream=stream, **more)
