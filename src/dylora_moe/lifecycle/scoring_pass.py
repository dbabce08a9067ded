"""Scores the live pool on its skills' validation rows and fills a scorecard.

Knows the model and the card; knows nothing of promotion. Only what moved is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dylora_moe.lifecycle.answering import BATCH_ROWS, Sampling, answer
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.scorecard import RowScore, Scorecard, SkillCard
from dylora_moe.routing.routing import Routing
from dylora_moe.scoring.checks import score
from dylora_moe.training.measure import answer_losses, row_routing
from dylora_moe.training.rows import Rows

_LONGEST_ANSWER = 256
"""Tokens."""


@dataclass(frozen=True, slots=True)
class ScoringPass:
    """A new card, and how many rows had to be scored for it."""

    card: Scorecard
    rescored: int


def score_pool(
    live: LivePool,
    before: Scorecard,
    *,
    generate: int,
    changed: Collection[str] = (),
) -> ScoringPass:
    """Scores every skill of the live pool.

    Args:
        before: the card to take unmoved rows over from.
        generate: validation rows a skill whose answers are generated and checked.
        changed: experts whose weights are not those of `before`; versions tell too, this is for
            the ones in the making.
    """
    drafts = {
        skill_id: _draft(live, skill, before.skills.get(skill_id), generate, changed)
        for skill_id, skill in live.skills.items()
    }
    checked = _checked(live, drafts)
    cards = {
        skill_id: _card(live, live.skills[skill_id], draft, checked[skill_id], changed)
        for skill_id, draft in drafts.items()
    }
    return ScoringPass(Scorecard(cards), sum(len(draft.fresh) for draft in drafts.values()))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A skill's rows before their answers are generated.

    Attributes:
        before: its card so far.
        weights: each row's experts now, by reference.
        fresh: losses and tokens of the rows that moved, by index.
        kept: rows whose score is taken over if there is one.
        generate: rows whose answers are to be generated.
    """

    before: SkillCard | None
    weights: Sequence[dict[str, float]]
    fresh: Mapping[int, tuple[float, int]]
    kept: frozenset[int]
    generate: Sequence[int]


def _draft(
    live: LivePool,
    skill: LiveSkill,
    before: SkillCard | None,
    generate: int,
    changed: Collection[str],
) -> _Draft:
    if skill.rows is None:
        return _Draft(before, (), {}, frozenset(), ())
    routing = row_routing(live.model, skill.rows)
    weights = _weights_by_ref(live, routing)
    known = {row.key: row for row in before.rows} if before is not None else {}
    moved = [
        index
        for index, encoded in enumerate(skill.rows.encoded)
        if encoded.key not in known
        or known[encoded.key].moved(weights[index])
        or any(ref.partition("@")[0] in changed for ref in weights[index])
    ]
    # Their experts are read while the first of these rows run.
    live.experts.prefetch([ref.partition("@")[0] for index in moved for ref in weights[index]])
    fresh = _losses(live, skill.rows, moved, routing)
    to_check = _to_generate(skill, generate)
    missing = [
        index
        for index in to_check
        if index in fresh or known[skill.rows.encoded[index].key].score is None
    ]
    return _Draft(before, weights, fresh, frozenset(to_check), missing)


def _card(
    live: LivePool,
    skill: LiveSkill,
    draft: _Draft,
    checked: Mapping[int, float],
    changed: Collection[str],
) -> SkillCard:
    if skill.rows is None:
        return SkillCard(skill.name, skill.expert_id, float("nan"), ())
    before = draft.before
    known = {row.key: row for row in before.rows} if before is not None else {}
    rows = []
    for index, encoded in enumerate(skill.rows.encoded):
        if index in draft.fresh:
            total, tokens = draft.fresh[index]
            score = checked.get(index)
            rows.append(RowScore(encoded.key, draft.weights[index], total, tokens, score))
        else:
            old = known[encoded.key]
            kept = old.score if index in draft.kept else None
            score = checked.get(index, kept)
            rows.append(RowScore(encoded.key, old.to, old.total, old.tokens, score))
    if (
        before is not None
        and {row.key for row in rows} == set(known)
        and before.expert == live.ref(skill.expert_id)
        and skill.expert_id not in changed
    ):
        pinned = before.pinned_loss
    else:
        pinned = answer_losses(live.model, skill.rows, expert=skill.expert_id).mean
    return SkillCard(skill.name, live.ref(skill.expert_id), pinned, tuple(rows))


def _weights_by_ref(live: LivePool, routing: Routing) -> list[dict[str, float]]:
    refs = [live.ref(expert) for expert in routing.experts]
    return [
        {ref: round(weight, 6) for ref, weight in zip(refs, row, strict=True) if weight > 1e-6}
        for row in routing.weights.tolist()
    ]


def _losses(
    live: LivePool, rows: Rows, chosen: Sequence[int], routing: Routing
) -> dict[int, tuple[float, int]]:
    if not chosen:
        return {}
    # Decisions for each token do not go into one row of weights; the pass makes them again.
    gates = None if live.model.passes.per_token else routing
    losses = answer_losses(live.model, rows, gates=gates, only=chosen)
    pairs = zip(losses.total.tolist(), losses.tokens.tolist(), strict=True)
    return {index: (total, tokens) for index, (total, tokens) in zip(chosen, pairs, strict=True)}


def _to_generate(skill: LiveSkill, count: int) -> list[int]:
    """The rows of the smallest hashes: the same ones every time, whatever came in which order."""
    ranked = sorted(range(len(skill.validation)), key=lambda index: skill.validation[index].key)
    return ranked[:count]


def _checked(live: LivePool, drafts: Mapping[str, _Draft]) -> dict[str, dict[int, float]]:
    """Scores of generated answers, by skill and row.

    Rows of all skills are answered together, those with short answers first, since a batch runs as
    long as its longest answer. Rows of one limit alone share a batch: how long an answer may get is
    the row's own, or its score would depend on the others.
    """
    asked = [
        (_limit(_targets(live, skill_id, index)), skill_id, index)
        for skill_id, draft in drafts.items()
        for index in draft.generate
        if len(live.skills[skill_id].validation[index].turns) > 1
    ]
    asked.sort()
    found: dict[str, dict[int, float]] = {skill_id: {} for skill_id in drafts}
    alike = [list(rows) for _, rows in groupby(asked, key=lambda row: row[0])]
    groups = [rows[i : i + BATCH_ROWS] for rows in alike for i in range(0, len(rows), BATCH_ROWS)]
    for group in groups:
        examples = [live.skills[skill_id].validation[index] for _, skill_id, index in group]
        answers = answer(
            live,
            [example.turns[:-1] for example in examples],
            sampling=Sampling(max_new_tokens=group[0][0]),
        )
        for (_, skill_id, index), example, said in zip(group, examples, answers, strict=True):
            points = score(example.check, said.text, example.completion, example.tests)
            found[skill_id][index] = points
    return found


def _limit(targets: int) -> int:
    """The longest answer of a row in tokens: 8 more than it is to have, rounded up to a power of
    two, so that there are few limits and batches stay full."""
    return min(_LONGEST_ANSWER, 1 << (targets + 7).bit_length())


def _targets(live: LivePool, skill_id: str, index: int) -> int:
    rows = live.skills[skill_id].rows
    assert rows is not None
    return rows.targets[index]
