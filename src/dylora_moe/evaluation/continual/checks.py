"""Is the bench itself right: what must fail fails, and what knows the truth is perfect.

Knows results; a check whose arms did not run is not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dylora_moe.evaluation.continual.measures import borders_found
from dylora_moe.evaluation.continual.pairing import ArmResults, average

SHUFFLED, ORACLE = "shuffled", "oracle-bank"
MOST_BY_CHANCE = 0.5
"""Of the oracle's accuracy, the most that the bank may have with its ids shuffled."""


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison with what has to come out, in the form of the scoreboard.

    Attributes:
        what: was compared, in words.
        difference: what came out.
        tolerance: the most that is let through.
        holds: whether it is not more.
    """

    what: str
    difference: float
    tolerance: float
    holds: bool


def checks(results: Mapping[tuple[str, str], ArmResults]) -> tuple[Check, ...]:
    """Every check that the results allow.

    Args:
        results: by stream and arm, one a seed.
    """
    found = []
    for stream in dict.fromkeys(stream for stream, _ in results):
        shuffled, oracle = (results.get((stream, arm)) for arm in (SHUFFLED, ORACLE))
        if shuffled and oracle:
            found.append(_shuffled(stream, shuffled, oracle))
    for (stream, arm), some in results.items():
        if any(one.details.get("borders") for one in some):
            found.append(_truth(f"{arm} on {stream}", some))
    return tuple(found)


def _shuffled(stream: str, shuffled: ArmResults, oracle: ArmResults) -> Check:
    """As a product, not a quotient: an oracle may be right nowhere."""
    least = average(shuffled, lambda row: row.score).value
    most = MOST_BY_CHANCE * average(oracle, lambda row: row.score).value
    what = f"accuracy on {stream} with shuffled ids, beside half of the oracle's"
    return Check(what, least, most, least <= most)


def _truth(where: str, results: ArmResults) -> Check:
    """How far precision, recall and delay are from perfect where the true borders are named."""
    worst = 0.0
    for one in results:
        told = one.details.get("borders")
        if not told:
            continue
        perfect = replace(one, details={"borders": {**told, "detected": told["true"]}})
        found = borders_found(perfect)
        if found is None or found.precision is None or found.recall is None:
            worst = max(worst, 1.0)
            continue
        worst = max(
            worst, 1 - found.precision, 1 - found.recall, *(abs(m.delay) for m in found.matches)
        )
    what = f"a detector that is told the borders, scored as {where}, short of perfect"
    return Check(what, worst, 0.0, worst <= 0)
