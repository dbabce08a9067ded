"""Scores the live pool on its skills' validation rows and fills a scorecard.

Knows the model and the card; knows nothing of promotion. Only what moved is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.scorecard import RowScore, Scorecard, SkillCard
from dylora_moe.routing.routing import Routing
from dylora_moe.scoring.checks import score
from dylora_moe.training.measure import answer_losses, row_routing
from dylora_moe.training.rows import Rows

_LONGEST_ANSWER = 256


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
    cards, rescored = {}, 0
    for skill_id, skill in live.skills.items():
        card, count = _score_skill(live, skill, before.skills.get(skill_id), generate, changed)
        cards[skill_id] = card
        rescored += count
    return ScoringPass(Scorecard(cards), rescored)


def _score_skill(
    live: LivePool,
    skill: LiveSkill,
    before: SkillCard | None,
    generate: int,
    changed: Collection[str],
) -> tuple[SkillCard, int]:
    if skill.rows is None:
        return SkillCard(skill.name, skill.expert_id, float("nan"), ()), 0
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
    checked = _checked(
        live,
        skill,
        [i for i in to_check if i in fresh or known[skill.rows.encoded[i].key].score is None],
    )
    rows = []
    for index, encoded in enumerate(skill.rows.encoded):
        if index in fresh:
            total, tokens = fresh[index]
            row = RowScore(encoded.key, weights[index], total, tokens, checked.get(index))
        else:
            old = known[encoded.key]
            kept = old.score if index in to_check else None
            row = RowScore(encoded.key, old.to, old.total, old.tokens, checked.get(index, kept))
        rows.append(row)
    same_rows = before is not None and {r.key for r in rows} == set(known)
    if (
        before is not None
        and same_rows
        and before.expert == live.ref(skill.expert_id)
        and skill.expert_id not in changed
    ):
        pinned = before.pinned_loss
    else:
        pinned = answer_losses(live.model, skill.rows, expert=skill.expert_id).mean
    return SkillCard(skill.name, live.ref(skill.expert_id), pinned, tuple(rows)), len(moved)


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


def _checked(live: LivePool, skill: LiveSkill, chosen: Sequence[int]) -> dict[int, float]:
    assert skill.rows is not None
    examples = {index: skill.validation[index] for index in chosen}
    with_prompt = [index for index in chosen if len(examples[index].turns) > 1]
    if not with_prompt:
        return {}
    longest = max(skill.rows.targets[index] for index in with_prompt) + 8
    answers = answer(
        live,
        [examples[index].turns[:-1] for index in with_prompt],
        sampling=Sampling(max_new_tokens=min(longest, _LONGEST_ANSWER)),
    )
    return {
        index: score(
            examples[index].check, found.text, examples[index].completion, examples[index].tests
        )
        for index, found in zip(with_prompt, answers, strict=True)
    }
