"""The verdict on an arrival: the detector's measurement and the nearest experts' losses.

Knows the live pool and a detector; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dylora_moe.lifecycle.fit import (
    FEWEST,
    WORST_APART,
    WORST_HOME,
    Home,
    does_badly_by_t,
    relative_loss,
)
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import BASE_NAME, Interval, Verdict
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import NoveltyDetector, side_of
from dylora_moe.training.measure import RowLosses, answer_losses
from dylora_moe.training.rows import Rows

_ROWS = 64
"""Rows whose answers are scored for the second axis: enough for an interval, cheap to score."""
_GLANCE = 16
"""Of these, what everyone is first looked at on."""
_USUAL, _SURE = 0.95, 0.99
"""Level of the interval, and of one over few rows, which would be too narrow: that of a glance (one
of two looks besides), and of an arrival that is small."""
_AS_AT_HOME = 0.1
"""Relative loss up to which nothing is to be gained by asking another expert."""
_PERFECT, _NOTHING = Interval(0.0, 0.0, 0.0), Interval(math.inf, math.inf, math.inf)
"""Fits of an expert that does as at home, and of one that does worse than any limit."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with what it rests on.

    Attributes:
        skill_id: the skill it would be learned into; None in an empty pool.
        base_loss: token-mean loss of the base on the rows that were looked at.
        losses: the same of the nearest experts that count for the verdict, by id.
        rows: how many rows were looked at.
    """

    verdict: Verdict
    skill_id: str | None
    base_loss: float | None
    losses: Mapping[str, float]
    rows: int = 0


def judge(
    live: LivePool,
    card: Scorecard,
    observation: Observation,
    detector: NoveltyDetector,
    *,
    library: SkillLibrary | None = None,
    features: torch.Tensor | None = None,
    both: bool = False,
) -> Judgement:
    """Measures both axes and decides.

    Answer passes are most of a verdict's cost. So where the rows may be new everyone is first
    looked at on a few of them, and these are enough where they settle it: rows told apart from
    every skill, which the nearest expert does badly by its whole 99% interval, with as many answer
    tokens as an arrival needs. The second-nearest expert is asked only where it can change the
    verdict, or whom it names; first on half a glance, since most often it does badly by far
    (`does_badly_by_t`). At the limit itself, with losses that spread evenly, the first look ends
    the matter too early in 1.3% of the cases and the second in 0.5%; where a few rows are long and
    answered well, more often (the second in 3 to 10% for a lognormal skew of 0.5 to 1). What it
    then costs is an expert too many.

    Args:
        card: the pool's scores; an expert's own validation loss is read from it.
        library, features: what the detector compares, where it is not the tap features (a cosine
            test looks at last-layer states).
        both: scores the second-nearest expert in any case, for what is to start from both.
    """
    measured = detector.measure(
        observation.all_features if features is None else features,
        live.library if library is None else library,
    )
    tokens = observation.answer_tokens
    if not measured.nearest:
        return Judgement(detector.verdict(measured, tokens=tokens), None, None, {})
    sample = _Sample(live.model, observation.train)
    apart = side_of(measured.separability, detector.threshold) if measured.separability else None
    worst = WORST_APART if apart else WORST_HOME

    def home(skill_id: str) -> Home:
        return _home(live, card, skill_id, worst)

    limits = detector.limits
    few = bool(limits.lacking(measured.samples, tokens))
    # Few rows can be more of the nearest skill, and nothing else.
    skills = [skill_id for skill_id, _ in measured.nearest][: 1 if few and not both else None]
    first, *others = dict.fromkeys(live.skills[s].expert_id for s in skills)

    def fits(
        look: Callable[[str], RowLosses], *experts: str, level: float = _USUAL
    ) -> tuple[str, Interval]:
        losses = {expert: look(expert) for expert in experts}
        return _best_fit(live, home, skills, look(BASE_NAME), losses, level)

    def decided(fit: Interval) -> Verdict:
        return detector.verdict(measured, fit=fit, tokens=tokens)

    def does_badly(fit: Interval) -> bool:
        return side_of(fit, limits.fit) is True

    def settles(expert: str) -> bool:
        if int(sample.glance(BASE_NAME).tokens.sum()) < limits.tokens:
            return False
        return does_badly(fits(sample.glance, expert, level=_SURE)[1])

    def is_out(expert: str) -> bool:
        """Whether an expert that has a look at fewer rows than a glance needs no other."""
        base = sample.half(BASE_NAME)
        if len(base.total) < FEWEST or int(base.tokens.sum()) < limits.tokens:
            return False
        homes = [home(s) for s in skills if live.skills[s].expert_id == expert]
        seen = sample.half(expert)
        return all(does_badly_by_t(seen, base, own, limits.fit) for own in homes)

    look, scored = sample.whole, [first]
    # Rows that are not told apart cannot be new: a glance would only cut their pass in two.
    may_be_new = decided(_NOTHING).name == "novel"
    if (
        may_be_new
        and not both
        and settles(first)
        and decided(fits(sample.glance, first)[1]).name == "novel"
    ):
        look = sample.glance
    skill_id, fit = fits(look, first, level=_SURE if few else _USUAL)
    if others and (both or _is_open(decided, fit)):
        second = others[0]
        if both or not (is_out(second) or settles(second)):
            look, scored = sample.whole, [first, second]
            skill_id, fit = fits(look, *scored)
    verdict = decided(fit)
    if verdict.name in ("known", "revised"):
        # Not told apart from the nearest skill: it is that one, whoever answers better.
        skill_id = skills[0]
    return Judgement(
        verdict,
        skill_id,
        look(BASE_NAME).mean,
        {expert: look(expert).mean for expert in scored},
        len(look(BASE_NAME).total),
    )


def _is_open(decided: Callable[[Interval], Verdict], fit: Interval) -> bool:
    """Whether an expert that does better than `fit` would change the verdict, or whom it names."""
    best = decided(_PERFECT)
    if decided(fit).name != best.name:
        return True
    return best.name == "covered" and fit.value > _AS_AT_HOME


class _Sample:
    """The losses of experts on some rows of an arrival, each row's answer scored once.

    Args:
        model: with the experts.
        rows: the arrival's, of which the first are the sample.
    """

    def __init__(self, model: DyLoRAMoE, rows: Rows) -> None:
        self._model, self._rows = model, rows
        self._all = range(min(_ROWS, len(rows)))
        self._spread = _spread(len(self._all))
        self._seen: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    def half(self, expert: str) -> RowLosses:
        """On every second row of a glance."""
        return self._on(self._spread[::2], expert)

    def glance(self, expert: str) -> RowLosses:
        """On rows evenly from the sample."""
        return self._on(self._spread, expert)

    def whole(self, expert: str) -> RowLosses:
        """On the whole sample."""
        return self._on(self._all, expert)

    def _on(self, rows: Sequence[int], expert: str) -> RowLosses:
        seen = self._seen.setdefault(expert, {})
        missing = [row for row in rows if row not in seen]
        if missing:
            found = answer_losses(self._model, self._rows, expert=expert, only=missing)
            seen.update(zip(missing, zip(found.total, found.tokens, strict=True), strict=True))
        totals, tokens = zip(*(seen[row] for row in rows), strict=True)
        return RowLosses(torch.stack(totals), torch.stack(tokens))


def _spread(count: int) -> list[int]:
    """The rows of a glance, evenly over a sample: files are often sorted by kind."""
    seen = min(_GLANCE, count)
    return [place * count // seen for place in range(seen)]


def _best_fit(
    live: LivePool,
    home: Callable[[str], Home],
    skills: list[str],
    base: RowLosses,
    losses: Mapping[str, RowLosses],
    level: float,
) -> tuple[str, Interval]:
    """The nearest skill whose expert does best on the rows, and how well."""
    found = []
    for skill_id in skills:
        expert = live.skills[skill_id].expert_id
        if expert not in losses:
            continue
        fit = relative_loss(losses[expert], base, home(skill_id), level=level)
        found.append((skill_id, fit))
    # The nearest skill's own expert wins ties, since `min` keeps the first.
    return min(found, key=lambda pair: pair[1].value)


def _home(live: LivePool, card: Scorecard, skill_id: str, worst: float) -> Home:
    loss = card.skills[skill_id].pinned_loss if skill_id in card.skills else float("nan")
    # Of an adapter that was trained elsewhere nobody knows it.
    base = live.version(live.skills[skill_id].expert_id).history.get("base_loss")
    return Home(loss, float(base) if base is not None else None, worst)
