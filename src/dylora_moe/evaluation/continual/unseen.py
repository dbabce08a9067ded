"""How well the screen tells single inputs of skills that were never learned from those of others.

Each skill is left out in its turn: a screen of all others scores its test prompts against theirs.
Prompts that look like a skill's and are not are held against that skill's own test prompts, under a
screen of all skills. Knows features; loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter
from dylora_moe.records import Interval
from dylora_moe.scoring.detection import auroc_interval
from dylora_moe.skills.library import Skill, SkillLibrary
from dylora_moe.skills.screening import Screen, screen_of

UNSEEN, OUT_OF_SCOPE = "unseen", "out of scope"


@dataclass(frozen=True)
class UnseenResult:
    """AUROC of single inputs.

    Attributes:
        each: of each skill that was left out.
        learned: how many skills the screen had then.
        out_of_scope: of prompts beside a skill, by that skill.
    """

    each: Mapping[str, Interval]
    learned: int
    out_of_scope: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def unseen(self) -> Interval:
        """The mean over the skills; of the intervals' ends too, which is too wide rather than too
        narrow, since the skills do not all err together."""
        return _mean(self.each)

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """What a report's table asks for: `unseen`, and `out of scope` where there is any."""
        found = {UNSEEN: self.unseen}
        if self.out_of_scope:
            found[OUT_OF_SCOPE] = _mean(self.out_of_scope)
        return found

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "learned": self.learned,
            **{name: _plain(one) for name, one in self.intervals.items()},
            "each": {name: _plain(one) for name, one in self.each.items()},
            "beside": {name: _plain(one) for name, one in self.out_of_scope.items()},
        }


def unseen_auroc(
    train: Mapping[str, Float[Tensor, "_ d"]],
    test: Mapping[str, Float[Tensor, "_ d"]],
    own: Float[Tensor, "m d"],
    *,
    out_of_scope: Mapping[str, Float[Tensor, "_ d"]] | None = None,
    seed: int = 0,
) -> UnseenResult:
    """AUROC of the screen's score, each skill left out in its turn.

    Args:
        train: tap features of the prompts that a skill is learned from, by skill.
        test: of other prompts of the same skills.
        own: of the base's own prompts.
        out_of_scope: of prompts that look like a skill's and are not, by that skill.
        seed: of the intervals.

    Raises:
        DataError: fewer than two skills, or not the same ones on both sides.
    """
    if len(train) < 2 or set(train) != set(test):
        raise DataError(
            f"skills to learn ({', '.join(train)}) and to test ({', '.join(test)}) must be the "
            "same, two or more"
        )
    background = FeatureStatistics.from_features(own)
    library = SkillLibrary(capacity=max(len(rows) for rows in train.values()))
    for name, rows in train.items():
        library.add_skill(name, rows, name)
    statistics = {skill.skill_id: skill.statistics for skill in library.skills}
    shared = SharedScatter.of([background, *statistics.values()], background.d_features)
    each = {}
    for name in train:
        skill = library.remove(name)
        shared.subtract(skill.statistics)
        screen = screen_of(library, background, shared=shared)
        others = [score for other in library.skills for score in _scores(screen, test, other)]
        each[name] = auroc_interval(_scores(screen, test, skill), others, seed=seed)
        shared.add(skill.statistics)
        library.put(skill)
    screen = screen_of(library, background, shared=shared)
    beside = {
        name: auroc_interval(
            screen(rows).scores.tolist(), screen(test[name]).scores.tolist(), seed=seed
        )
        for name, rows in (out_of_scope or {}).items()
        if name in test
    }
    return UnseenResult(each, len(train) - 1, beside)


def _scores(screen: Screen, test: Mapping[str, Tensor], skill: Skill) -> list[float]:
    found: list[float] = screen(test[skill.skill_id]).scores.tolist()
    return found


def _mean(found: Mapping[str, Interval]) -> Interval:
    ends = [(one.value, one.low, one.high) for one in found.values()]
    return Interval(*(sum(column) / len(ends) for column in zip(*ends, strict=True)))


def _plain(one: Interval) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high}
