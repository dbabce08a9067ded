"""The figures of an arm, from what it handed back: accuracy, forgetting, routing, growth, cost.

Knows results alone; knows no model and no goal. Several seeds of an arm are one arm here: an
interval is over test rows, which are the same rows under every seed that answered them, and over
seeds. Accuracies are macro averages, each skill counting the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dylora_moe.evaluation.continual.pairing import (
    ArmResults,
    average,
    by_skill,
    grouped,
    interval,
    mean,
    paired,
)
from dylora_moe.evaluation.continual.results import ArmResult, RowResult, Stage
from dylora_moe.records import Interval
from dylora_moe.scoring import calibration
from dylora_moe.scoring import matrix as transfer
from dylora_moe.scoring.bootstrap import Paired
from dylora_moe.scoring.borders import BordersFound, match_borders


@dataclass(frozen=True)
class ArmFigures:
    """One arm on one stream, over its seeds.

    Attributes:
        accuracy, exact, f1: macro averages after the stream, as shares.
        loss: the mean over skills of the token-mean loss in nats.
        by_skill: accuracy of each skill.
        visits: skills in the order of the first seed's stages; empty where it has but one.
        matrix: of the first seed, scores after each visit by skill; columns in order of `by_skill`.
        backward_transfer: mean change since a skill was learned, as a share.
        forgetting, forward_transfer: as `scoring.matrix`, means over seeds.
        routing: share of the rows whose largest weight is that of their skill's expert.
        routing_distinct, routing_near: of skills without and with a near neighbour.
        calibration_error: of the router's largest probability.
        experts, skills: experts at the end, mean over seeds, and true skills.
        experts_off: experts minus true skills, of the seed in which they differ most.
        new_for_returning: experts made when a skill returned, the most of all seeds.
        borders: what was found of them in the first seed's stream.
        parameters, parameters_in_use, trained_tokens, seconds: means over seeds.
        base_loss: on text of no skill, mean over seeds.
    """

    arm: str
    stream: str
    seeds: tuple[int, ...]
    accuracy: Interval
    exact: Interval
    f1: Interval
    loss: float
    by_skill: Mapping[str, float]
    visits: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    backward_transfer: Interval | None
    forgetting: float | None
    forward_transfer: float | None
    routing: Interval | None
    routing_distinct: Interval | None
    routing_near: Interval | None
    calibration_error: float | None
    experts: float | None
    skills: int
    experts_off: int | None
    new_for_returning: int | None
    borders: BordersFound | None
    parameters: float
    parameters_in_use: float
    trained_tokens: float
    seconds: float
    base_loss: float | None


def figures(
    results: ArmResults,
    *,
    base: ArmResults = (),
    neighbours: Collection[Collection[str]] = (),
) -> ArmFigures:
    """All figures of an arm on a stream.

    Args:
        results: of one arm and stream, one a seed.
        base: of the base alone under the same seeds, which forward transfer is against.
        neighbours: groups of skills that are near each other.

    Raises:
        ValueError: no results, or rows that are not the same at every stage.
    """
    first = results[0]
    near = {skill for group in neighbours for skill in group}
    own = {one.seed: one for one in base}
    stages = visited(first)
    return ArmFigures(
        arm=first.arm,
        stream=first.stream,
        seeds=tuple(one.seed for one in results),
        accuracy=average(results, lambda row: row.score),
        exact=average(results, lambda row: row.exact),
        f1=average(results, _whole_f1),
        loss=mean([_loss(rows) for one in results for rows in by_skill(one.last).values()]),
        by_skill={
            skill: mean([row.score for one in results for row in by_skill(one.last)[skill]])
            for skill in by_skill(first.last)
        },
        visits=tuple(stage.skill for stage in stages),
        matrix=tuple(tuple(line) for line in accuracy_matrix(first)) if stages else (),
        backward_transfer=backward_transfer(results),
        forgetting=_known_mean(_forgetting(one) for one in results),
        forward_transfer=_known_mean(_forward(one, own.get(one.seed)) for one in results),
        routing=routing_accuracy(results),
        routing_distinct=routing_accuracy(results, lambda skill: skill not in near),
        routing_near=routing_accuracy(results, lambda skill: skill in near),
        calibration_error=calibration_error(results),
        experts=_known_mean(one.details.get("experts_grown") for one in results),
        skills=len(by_skill(first.last)),
        experts_off=_furthest(_off(one) for one in results),
        new_for_returning=_most(one.details.get("new_for_returning") for one in results),
        borders=borders_found(first),
        parameters=mean([one.parameters for one in results]),
        parameters_in_use=mean([one.parameters_in_use for one in results]),
        trained_tokens=mean([one.trained_tokens for one in results]),
        seconds=mean([one.seconds for one in results]),
        base_loss=_known_mean(one.base_loss for one in results),
    )


def visited(result: ArmResult) -> tuple[Stage, ...]:
    """The stages after a visit; none where the rows were answered but once."""
    stages = tuple(stage for stage in result.stages if stage.after and stage.skill)
    return stages if len(stages) > 1 else ()


def accuracy_matrix(result: ArmResult) -> list[list[float | None]]:
    """R[i][j]: the mean score of skill j after visit i, columns in the order of the rows."""
    skills = list(by_skill(result.last))
    lines = []
    for stage in visited(result):
        found = by_skill(stage)
        lines.append(
            [mean([row.score for row in found[s]]) if s in found else None for s in skills]
        )
    return lines


def backward_transfer(results: ArmResults) -> Interval | None:
    """GEM's backward transfer with its interval, the same rows before and after; None where
    nothing was answered before the end.

    The mean over skills learned before the last visit of their rows' change since their own visit,
    as `scoring.matrix.backward_transfer`, which it equals.
    """
    pairs: list[Paired] = []
    for one in results:
        stages = visited(one)
        then = {stage.skill: stage for stage in reversed(stages)}
        for skill, stage in then.items():
            if stage.after < one.last.after:
                last = [row for row in one.last.rows if row.skill == skill]
                pairs += paired(last, stage.rows, lambda row: row.score, one.seed)
    return interval(pairs, "difference") if pairs else None


def routing_accuracy(
    results: ArmResults, wanted: Callable[[str], bool] = lambda _: True
) -> Interval | None:
    """Share of the rows that went to their own skill's expert; None where nothing is routed.

    Args:
        results: one a seed.
        wanted: of which skills.
    """
    pairs: list[Paired] = []
    for one in results:
        rows = [row for row in one.last.rows if row.expert is not None and wanted(row.skill)]
        pairs += grouped(rows, lambda row: float(row.expert == row.skill), one.seed)
    return interval(pairs, "difference") if pairs else None


def calibration_error(results: ArmResults) -> float | None:
    """`scoring.calibration.calibration_error` of the largest probability; None where nothing is
    routed with one."""
    rows = [row for one in results for row in one.last.rows if row.confidence is not None]
    if not rows:
        return None
    sure = [row.confidence or 0.0 for row in rows]
    return calibration.calibration_error(sure, [row.expert == row.skill for row in rows])


def borders_found(result: ArmResult) -> BordersFound | None:
    """The borders that an arm named against the true ones; None where it names none."""
    told: Mapping[str, Any] | None = result.details.get("borders")
    if not told:
        return None
    return match_borders(
        told["true"], told["detected"], tolerance=told["tolerance"], early=told["early"]
    )


def _whole_f1(row: RowResult) -> float:
    if row.f1 is None:
        raise ValueError(f"the last answer to a row of {row.skill} was not written to its end")
    return row.f1


def _loss(rows: Sequence[RowResult]) -> float:
    return sum(row.loss for row in rows) / max(1, sum(row.tokens for row in rows))


def _learned_at(result: ArmResult) -> list[int] | None:
    """At which line of the matrix each skill was learned first; None where one never was."""
    order = [stage.skill for stage in visited(result)]
    skills = list(by_skill(result.last))
    if not set(skills) <= set(order):
        return None
    return [order.index(skill) for skill in skills]


def _forgetting(result: ArmResult) -> float | None:
    learned = _learned_at(result)
    if learned is None:
        return None
    return transfer.forgetting(accuracy_matrix(result), learned)


def _forward(result: ArmResult, base: ArmResult | None) -> float | None:
    learned = _learned_at(result)
    if learned is None or base is None:
        return None
    found = by_skill(base.last)
    before = [
        mean([row.score for row in found[skill]]) if skill in found else None
        for skill in by_skill(result.last)
    ]
    return transfer.forward_transfer(accuracy_matrix(result), before, learned)


def _known_mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return mean(known) if known else None


def _off(result: ArmResult) -> int | None:
    grown: int | None = result.details.get("experts_grown")
    return None if grown is None else grown - len(by_skill(result.last))


def _furthest(values: Iterable[int | None]) -> int | None:
    """The one furthest from zero on either side."""
    return max((value for value in values if value is not None), key=abs, default=None)


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
