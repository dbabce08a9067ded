"""What an arm of the bench hands back: every test row it answered, at every stage, as plain JSON.

Knows rows, stages and files; knows no model, no stream and no figure that is made of them. A file
holds one arm on one stream under one seed and the fingerprint of all that decided it, so a file
that is there under the same fingerprint need not be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dylora_moe.evaluation.files import write_whole

FORMAT = 1
"""Of the files; a file of another one is made again."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """One test row, answered greedily by an arm at a stage.

    Attributes:
        skill: whose row it is.
        key: of the row, as `Example.key`.
        score: 0 to 1, as the row's check says.
        exact: 1 where the answer is the reference, but for white space around it.
        f1: of the answer's tokens; None where the answer was not written to its end, since its
            score was certain before, as between the visits of a stream.
        loss: nats summed over the reference's tokens, which are given (teacher forcing).
        tokens: how many these are.
        expert: true skill whose expert has the largest weight, "" for none of them; None where the
            arm routes nothing.
        confidence: that weight as a probability.
    """

    skill: str
    key: str
    score: float
    exact: float
    f1: float | None
    loss: float
    tokens: int
    expert: str | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Stage:
    """Test rows after some visits.

    Attributes:
        after: visits that were learned; 0 before anything.
        skill: the last visit's true skill; "" at 0 and where a stream has no visits.
        rows: of the skills learned so far and of the next; of all test skills in the last stage.
    """

    after: int
    skill: str
    rows: tuple[RowResult, ...]


@dataclass(frozen=True, slots=True)
class TextLoss:
    """A row of `Setting.neutral`, text of no skill, after the stream.

    Attributes:
        key: of the row.
        loss: nats summed over its second half's tokens.
        tokens: how many these are.
    """

    key: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class ArmResult:
    """What became of one arm.

    Attributes:
        arm: its name in the catalogue.
        stream: kind of the stream.
        seed: of the rows, the stream and the training.
        stages: in their order, the last one after the whole stream.
        trained_tokens: real tokens of all training passes, each epoch counted.
        seconds: wall time, training and scoring.
        parameters: of all adapters; 0 for none.
        parameters_in_use: the mean over the test rows of those that answered a row.
        base_loss: token-mean loss in nats on text of no skill; None where it was not measured.
        neutral: the same row by row; empty where it was not measured.
        details: JSON values that only this arm has.
    """

    arm: str
    stream: str
    seed: int
    stages: tuple[Stage, ...]
    trained_tokens: int
    seconds: float
    parameters: int
    parameters_in_use: float
    base_loss: float | None = None
    neutral: tuple[TextLoss, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Stage:
        """The stage after the whole stream."""
        return self.stages[-1]


def mean_loss(rows: Sequence[TextLoss]) -> float | None:
    """The token mean in nats; None of no rows."""
    return sum(row.loss for row in rows) / sum(row.tokens for row in rows) if rows else None


def to_json(result: ArmResult, fingerprint: str) -> str:
    """The file's text.

    Args:
        result: of an arm.
        fingerprint: of all that decided it.

    Raises:
        ValueError: a number that JSON has no word for; NaN and infinity have no place in a result.
    """
    body = {"format": FORMAT, "fingerprint": fingerprint, **asdict(result)}
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def from_json(text: str) -> tuple[ArmResult, str]:
    """The result and its fingerprint.

    Raises:
        ValueError: not such a file, or one of another format.
    """
    body = json.loads(text)
    if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
        raise ValueError(f"no result of format {FORMAT}")
    try:
        fingerprint = str(body.pop("fingerprint"))
        stages = tuple(
            Stage(stage["after"], stage["skill"], tuple(RowResult(**row) for row in stage["rows"]))
            for stage in body.pop("stages")
        )
        neutral = tuple(TextLoss(**row) for row in body.pop("neutral", ()))
        return ArmResult(stages=stages, neutral=neutral, **body), fingerprint
    except (KeyError, TypeError) as error:
        raise ValueError(f"no result of format {FORMAT}: {error}") from None


def write_result(path: Path, result: ArmResult, fingerprint: str) -> None:
    """Writes the file; it appears whole or not at all."""
    write_whole(path, to_json(result, fingerprint))


def read_result(path: Path, fingerprint: str | None = None) -> ArmResult | None:
    """The result in a file; None where there is no such file, it cannot be read, or another
    fingerprint decided it."""
    try:
        result, found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if fingerprint in (None, found) else None
