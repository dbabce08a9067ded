"""What is new about given examples: a verdict by the pool that answers, which changes nothing.

Runs in the engine's thread, so whoever asks bounds the rows, and their tokens are bounded here.
Unlike `dylora plan` it leaves out the rows that wait in the pool: they may be any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import LearnSettings
from dylora_moe.errors import DataError
from dylora_moe.lifecycle.change import Stores, load_card
from dylora_moe.lifecycle.judgement import judge
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import observe
from dylora_moe.lifecycle.representations import compared
from dylora_moe.records import Arrival, Example, Interval, VerdictName
from dylora_moe.text.template import encode

MOST_TOKENS = 16_384
"""Of all examples of one verdict: four passes through the trunk, while everybody else waits."""


@dataclass(frozen=True, slots=True)
class SkillVerdict:
    """The answer.

    Attributes:
        verdict: its name.
        reason: one line.
        separability, fit: as of `records.Verdict`.
        nearest: experts by alias with their separability, nearest first.
        rows: that were looked at.
        revision: of the pool that was asked.
    """

    verdict: VerdictName
    reason: str
    separability: Interval | None
    fit: Interval | None
    nearest: tuple[tuple[str, float], ...]
    rows: int
    revision: int


def skill_verdict(live: LivePool, stores: Stores, examples: Sequence[Example]) -> SkillVerdict:
    """The verdict on examples, under the settings that learning has by itself.

    Raises:
        DataError: a row that is longer than the model's context; more than `MOST_TOKENS` in all.
    """
    _refuse_longer(live, examples)
    recipe = make_recipe(LearnSettings())
    arrival = Arrival("examples", tuple(examples))
    seen = observe(live, arrival, fraction=recipe.validation_fraction)
    against = compared(live, seen, recipe.representation)
    verdict = judge(
        live,
        load_card(live, stores.artifacts),
        seen,
        recipe.detector(live, stores.registry),
        library=against.library,
        features=against.features,
    ).verdict
    names = {skill.skill_id: live.alias(skill.expert_id) for skill in live.skills.values()}
    nearest: dict[str, float] = {}
    for skill, value in verdict.nearest:
        nearest.setdefault(names[skill], value)
    return SkillVerdict(
        verdict=verdict.name,
        reason=verdict.reason,
        separability=verdict.separability,
        fit=verdict.fit,
        nearest=tuple(nearest.items()),
        rows=seen.rows,
        revision=live.revision.number,
    )


def _refuse_longer(live: LivePool, examples: Sequence[Example]) -> None:
    tokens = 0
    for number, example in enumerate(examples, 1):
        tokens += len(encode(example, live.base.tokenizer, live.fmt))
        if tokens > MOST_TOKENS:
            raise DataError(
                f"the first {number} of {len(examples)} examples have {tokens} tokens, and a "
                f"verdict is given on {MOST_TOKENS} at most; send fewer or shorter ones"
            )
