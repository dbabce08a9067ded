"""Scores the live pool on its skills' validation rows and fills a scorecard.

Knows the model and the card; knows nothing of promotion. Only what moved is computed, and of an
answer only what the pass over the known one did not show: where that one's token has the largest
logit, greedy decoding writes it (the check of speculative decoding, Leviathan et al. 2023, with the
row's own answer as the draft).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dylora_moe.experts.gates import Gates
from dylora_moe.lifecycle.completing import Begun, answer_limit, complete
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.scorecard import RowScore, Scorecard, SkillCard
from dylora_moe.lifecycle.text_pieces import beginning_of
from dylora_moe.model.generation import writes_the_largest
from dylora_moe.routing.routing import Routing
from dylora_moe.scoring.checks import score, settled
from dylora_moe.training.measure import answer_losses, row_routing
from dylora_moe.training.rows import Rows


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
    pinned: Mapping[str, float] | None = None,
) -> ScoringPass:
    """Scores every skill of the live pool.

    Args:
        before: the card to take unmoved rows over from.
        generate: validation rows a skill whose answers are generated and checked.
        changed: experts whose weights are not those of `before`; versions tell too, this is for
            the ones in the making.
        pinned: token-mean losses of experts alone on their skill's rows, where they are known.
    """
    drafts = {
        skill_id: _draft(live, skill, before.skills.get(skill_id), generate, changed)
        for skill_id, skill in live.skills.items()
    }
    checked = _checked(live, drafts)
    cards = {
        skill_id: _card(
            live, live.skills[skill_id], draft, checked[skill_id], changed, pinned or {}
        )
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
        answers: what is known of the answers that are to be scored, by index.
    """

    before: SkillCard | None
    weights: Sequence[dict[str, float]]
    fresh: Mapping[int, tuple[float, int]]
    kept: frozenset[int]
    answers: Mapping[int, Begun]


def _draft(
    live: LivePool,
    skill: LiveSkill,
    before: SkillCard | None,
    generate: int,
    changed: Collection[str],
) -> _Draft:
    if skill.rows is None:
        return _Draft(before, (), {}, frozenset(), {})
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
    to_check = _to_generate(skill, generate)
    asked = [
        index
        for index in to_check
        if len(skill.validation[index].turns) > 1
        and (index in moved or known[skill.rows.encoded[index].key].score is None)
    ]
    fresh, answers = _seen(live, skill.rows, moved, asked, routing)
    return _Draft(before, weights, fresh, frozenset(to_check), answers)


def _card(
    live: LivePool,
    skill: LiveSkill,
    draft: _Draft,
    checked: Mapping[int, float],
    changed: Collection[str],
    pinned: Mapping[str, float],
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
        alone = before.pinned_loss
    elif skill.expert_id in pinned:
        alone = pinned[skill.expert_id]
    else:
        alone = _pinned_loss(live, skill, rows)
    return SkillCard(skill.name, live.ref(skill.expert_id), alone, tuple(rows))


def _pinned_loss(live: LivePool, skill: LiveSkill, rows: Sequence[RowScore]) -> float:
    """Token-mean loss under the skill's own expert alone, which rows that were routed to it and to
    nobody else have already."""
    assert skill.rows is not None
    alone = {live.ref(skill.expert_id): 1.0}
    others = [index for index, row in enumerate(rows) if row.to != alone]
    measured = answer_losses(live.model, skill.rows, expert=skill.expert_id, only=others)
    total = sum(row.total for row in rows if row.to == alone) + float(measured.total.sum())
    return total / max(1, sum(row.tokens for row in rows))


def _weights_by_ref(live: LivePool, routing: Routing) -> list[dict[str, float]]:
    refs = [live.ref(expert) for expert in routing.experts]
    return [
        {ref: round(weight, 6) for ref, weight in zip(refs, row, strict=True) if weight > 1e-6}
        for row in routing.weights.tolist()
    ]


def _seen(
    live: LivePool, rows: Rows, moved: Sequence[int], asked: Sequence[int], routing: Routing
) -> tuple[dict[int, tuple[float, int]], dict[int, Begun]]:
    """One pass over the known answers: losses and tokens of the rows that moved, and how the
    answers begin that are asked for, both by index.

    Decisions for each token do not go into one row of weights: the pass makes them again, and the
    answers are generated whole. So they are where the base asks for more than the largest logit.
    """
    gates = None if live.model.passes.per_token else routing
    drafted = gates is not None and writes_the_largest(live.model)
    chosen = list(dict.fromkeys([*moved, *(asked if drafted else ())]))
    losses = answer_losses(live.model, rows, gates=gates, only=chosen, openings=drafted)
    pairs = zip(losses.total.tolist(), losses.tokens.tolist(), strict=True)
    counted = dict(zip(chosen, pairs, strict=True))
    openings = dict(zip(chosen, losses.openings, strict=True)) if drafted else {}
    answers = {}
    for index in asked:
        row, limit = rows.encoded[index], answer_limit(rows.targets[index])
        own = None if gates is None else Gates(gates.experts, gates.weights[index : index + 1])
        prompt = row.input_ids[: row.prompt_length]
        answers[index] = Begun(prompt, openings.get(index, ()), limit, own)
    return {index: counted[index] for index in moved}, answers


def _to_generate(skill: LiveSkill, count: int) -> list[int]:
    """The rows of the smallest hashes: the same ones every time, whatever came in which order."""
    ranked = sorted(range(len(skill.validation)), key=lambda index: skill.validation[index].key)
    return ranked[:count]


def _checked(live: LivePool, drafts: Mapping[str, _Draft]) -> dict[str, dict[int, float]]:
    """Scores of greedy answers, by skill and row; the rows of all skills are answered together,
    but for those whose score is settled by what is known of them."""
    found: dict[str, dict[int, float]] = {skill_id: {} for skill_id in drafts}
    asked = []
    for skill_id, draft in drafts.items():
        for index, begun in draft.answers.items():
            example = live.skills[skill_id].validation[index]
            beginning = beginning_of(live.base.tokenizer, begun.tokens)
            points = settled(example.check, beginning, example.completion)
            if points is None:
                asked.append((skill_id, index, example, begun))
            else:
                found[skill_id][index] = points
    answers = complete(live.model, [begun for *_, begun in asked])
    for (skill_id, index, example, _), said in zip(asked, answers, strict=True):
        found[skill_id][index] = score(example.check, said, example.completion, example.tests)
    return found
