"""How the pool does on every skill's validation rows, row by row.

Experts are isolated, so a row's score changes only when its routing or an expert it uses does: rows
that stayed are taken over from the card before. Knows numbers and their JSON form; the scoring
itself is in `scoring_pass`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dylora_moe.records import BASE_NAME, SkillScore
from dylora_moe.scoring.bootstrap import Paired

_MOVED = 0.01
"""A row is scored again when the weight of an expert moved by more than this."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """One validation row under the router's own choice.

    Attributes:
        key: the example's content hash.
        to: weight of each expert version (`expert_1@2`) that took part; the rest is the base.
        total: summed loss over the answer's tokens.
        tokens: trained tokens of the row.
        score: the generated answer's score by its check; None where none was generated.
    """

    key: str
    to: Mapping[str, float]
    total: float
    tokens: int
    score: float | None = None

    def moved(self, to: Mapping[str, float]) -> bool:
        """Whether these weights differ from the ones the row was scored with."""
        names = {*self.to, *to}
        return any(abs(self.to.get(n, 0.0) - to.get(n, 0.0)) > _MOVED for n in names)


@dataclass(frozen=True, slots=True)
class SkillCard:
    """A skill's validation rows; `pinned_loss` is its own expert's at weight one."""

    name: str
    expert: str
    pinned_loss: float
    rows: tuple[RowScore, ...]

    @property
    def loss(self) -> float:
        """Token-mean answer loss of the routed pool."""
        tokens = sum(row.tokens for row in self.rows)
        return sum(row.total for row in self.rows) / tokens if tokens else float("nan")

    @property
    def accuracy(self) -> float | None:
        scored = [row.score for row in self.rows if row.score is not None]
        return sum(scored) / len(scored) if scored else None

    @property
    def shares(self) -> dict[str, float]:
        """Mean weight of each expert (by id) and of the base over the rows."""
        totals: dict[str, float] = {}
        for row in self.rows:
            for ref, weight in row.to.items():
                expert = ref.partition("@")[0]
                totals[expert] = totals.get(expert, 0.0) + weight
            totals[BASE_NAME] = totals.get(BASE_NAME, 0.0) + 1.0 - sum(row.to.values())
        return {name: total / len(self.rows) for name, total in totals.items() if total > 1e-6}

    @property
    def summary(self) -> SkillScore:
        return SkillScore(self.loss, self.accuracy, len(self.rows))


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Cards by skill id, in order of appearance."""

    skills: Mapping[str, SkillCard]

    def compared(self, after: Scorecard) -> dict[str, Paired]:
        """Row losses by skill name in a later card (`first`) and in this one (`second`), of the
        rows that both have: what makes a skill worse, and not merely measured on other rows."""
        found = {}
        for skill, card in self.skills.items():
            if skill not in after.skills:
                continue
            later = {row.key: row for row in after.skills[skill].rows}
            rows = [row for row in card.rows if row.key in later and row.tokens]
            if rows:
                found[card.name] = Paired(
                    [later[row.key].total / row.tokens for row in rows],
                    [row.total / row.tokens for row in rows],
                    [row.tokens for row in rows],
                )
        return found

    def by_name(self) -> dict[str, SkillScore]:
        return {card.name: card.summary for card in self.skills.values()}

    def to_bytes(self, arrival: str | None) -> bytes:
        """JSON of the summary by skill, with every row, so that it can be taken up again."""
        body = {
            "arrival": arrival,
            "skills": {
                skill: {
                    "name": card.name,
                    "expert": card.expert,
                    "loss": _finite(card.loss),
                    "pinned_loss": _finite(card.pinned_loss),
                    "accuracy": card.accuracy,
                    "rows": len(card.rows),
                    "to": card.shares if card.rows else {},
                    "scores": [
                        [row.key, dict(row.to), row.total, row.tokens, row.score]
                        for row in card.rows
                    ],
                }
                for skill, card in self.skills.items()
            },
        }
        return json.dumps(body).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Scorecard:
        stored: dict[str, Any] = json.loads(body)["skills"]
        return cls(
            {
                skill: SkillCard(
                    name=card["name"],
                    expert=card["expert"],
                    pinned_loss=_number(card["pinned_loss"]),
                    rows=tuple(RowScore(*row) for row in card["scores"]),
                )
                for skill, card in stored.items()
            }
        )


def _finite(value: float) -> float | None:
    # JSON has no NaN; a skill without validation rows has no loss.
    return value if value == value else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
