"""Answers test rows greedily with a model of adapters, and scores the answers.

As the pool scores itself (`lifecycle.scoring_pass`): one pass over the known answers gives each
row's loss and how far greedy decoding would have written the same, so that a row that is right
costs no generation; the rest is generated up to the same limits. Where scores alone are asked for,
so does none whose score its beginning settles. Knows a model, rows and weights of
experts for them; knows nothing of arms or of how the weights were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.results import RowResult, TextLoss
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.completing import Begun, answer_limit, complete
from dylora_moe.lifecycle.text_pieces import beginning_of
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import writes_the_largest
from dylora_moe.records import BASE_NAME, Example
from dylora_moe.routing.routing import Routing
from dylora_moe.scoring.checks import exact, score, settled, token_f1
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.measure import RowLosses, answer_losses
from dylora_moe.training.rows import Rows

_AT_A_TIME, _ON_A_GPU = 128, 512
"""Answers that are finished at a time: nobody waits for the first, and on a CPU a step of 128 rows
of SmolLM2 takes 1.2 ms a row where one of 32 takes 2.3 ms."""

Decision = tuple[str | None, float | None]
"""Of a row: whose expert has the largest weight, and its probability, as in `RowResult`."""

UNROUTED: Decision = (None, None)
"""Nobody decided anything."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Test rows as a model reads them.

    Attributes:
        skills: whose row each is.
        examples: the rows.
        rows: the same with their tokens and trunk states.
    """

    skills: tuple[str, ...]
    examples: tuple[Example, ...]
    rows: Rows

    def __len__(self) -> int:
        return len(self.examples)


def encoded(
    base: Base, fmt: PromptFormat, examples: Sequence[Example], scratch: Path | None = None
) -> Rows:
    """Token ids and trunk states of rows.

    Args:
        scratch: folder that large trunk states are mapped from.

    Raises:
        DataError: a row longer than the base's context.
    """
    found, _ = encode_all(examples, base.tokenizer, fmt, base.context_length)
    return Rows(tuple(found), TrunkCache(base, found, folder=scratch))


def questions(
    base: Base,
    fmt: PromptFormat,
    asked: Sequence[tuple[str, Example]],
    scratch: Path | None = None,
) -> Questions:
    """Rows with their skills' names, made ready.

    Raises:
        DataError: a row without a prompt, or one longer than the base's context.
    """
    for skill, row in asked:
        if len(row.turns) < 2:
            raise DataError(
                f"{skill}: the test row {row.origin or row.key[:8]} has no prompt to answer; bring "
                "rows with a prompt and a completion"
            )
    examples = tuple(row for _, row in asked)
    return Questions(
        tuple(skill for skill, _ in asked), examples, encoded(base, fmt, examples, scratch)
    )


def pinned(experts: Sequence[str]) -> Gates:
    """Each row's own expert at weight one.

    Args:
        experts: of each row; `base` for none.
    """
    names = tuple(dict.fromkeys(name for name in experts if name != BASE_NAME))
    weights = torch.zeros(len(experts), len(names))
    for place, name in enumerate(experts):
        if name != BASE_NAME:
            weights[place, names.index(name)] = 1.0
    return Gates(names, weights)


def decisions(routing: Routing, owners: Mapping[str, str]) -> list[Decision]:
    """What a routing says of each row: the expert of the largest weight, by its skill's name, with
    the probability that the router gives it; the empty name for *no expert*.

    Args:
        routing: one decision a row.
        owners: an expert's true skill; who is not in it goes by its id.
    """
    found: list[Decision] = []
    nobody, none = routing.to_none.tolist(), routing.none.tolist()
    best = routing.weights.argmax(-1).tolist() if routing.experts else [0] * len(nobody)
    for row, (away, share) in enumerate(zip(nobody, none, strict=True)):
        if away:
            found.append(("", share))
        else:
            expert = routing.experts[best[row]]
            probability = float(routing.probabilities[row, best[row]])
            found.append((owners.get(expert, expert), probability))
    return found


def answer_rows(
    model: DyLoRAMoE,
    asked: Questions,
    gates: Gates | Routing | None,
    *,
    only: Sequence[int] | None = None,
    decided: Sequence[Decision] | None = None,
    whole: bool = True,
) -> tuple[RowResult, ...]:
    """Answers rows and scores the answers; rows of different experts share the passes.

    Args:
        model: base, experts and router.
        asked: the rows.
        gates: weights of experts for each row of `asked`: one alone (`pinned`), all of several
            (`Gates.all_of`), or what a router says; none in it for the base. Where None, the model
            routes by itself, which is for routers that decide for each token.
        only: these rows alone; the results come in their order.
        decided: what to note of each of these rows as its routing; nothing where None.
        whole: write every answer to its end. Where False, rows whose score is certain by how their
            answer begins are not written on, and have no token F1; all else is the same.

    Raises:
        ExpertError: an expert that the model has not.
        DataError: a reference that its check cannot read.
    """
    chosen = list(range(len(asked)) if only is None else only)
    noted = decided if decided is not None else [UNROUTED] * len(chosen)
    drafted = gates is not None and writes_the_largest(model)
    losses = answer_losses(model, asked.rows, gates=gates, only=chosen, openings=drafted)
    totals, tokens = losses.total.tolist(), losses.tokens.tolist()
    begun, targets = dict[int, Begun](), asked.rows.targets
    found: dict[int, RowResult] = {}
    for place, index in enumerate(chosen):
        row = asked.rows.encoded[index]
        own = None if gates is None else _of_row(gates, index, model.device)
        start = losses.openings[place] if drafted else ()
        score = None if whole else _settled(model, asked, index, start)
        if score is None:
            limit = answer_limit(targets[index])
            begun[place] = Begun(row.input_ids[: row.prompt_length], start, limit, own)
        else:
            # Less than the whole score: it is not the reference.
            marks = {"score": score, "exact": 0.0, "f1": None}
            found[place] = _noted(asked, index, marks, totals[place], tokens[place], noted[place])
    at_a_time = _ON_A_GPU if model.device.type == "cuda" else _AT_A_TIME
    texts = complete(model, list(begun.values()), rows=at_a_time)
    for place, text in zip(begun, texts, strict=True):
        of = totals[place], tokens[place], noted[place]
        found[place] = result_of(asked, chosen[place], text, *of)
    return tuple(found[place] for place in range(len(chosen)))


def _settled(model: DyLoRAMoE, asked: Questions, index: int, start: Sequence[int]) -> float | None:
    """The score of an answer that begins so, where that is certain and less than all of it."""
    example = asked.examples[index]
    points = settled(example.check, beginning_of(model.base.tokenizer, start), example.completion)
    return points if points is not None and points < 1 else None


def _of_row(gates: Gates | Routing, index: int, device: torch.device) -> Gates:
    return Gates(gates.experts, gates.weights[index : index + 1].to(device))


def result_of(
    asked: Questions, index: int, text: str, loss: float, tokens: int, decision: Decision
) -> RowResult:
    """Scores one answer.

    Args:
        asked: the rows.
        index: of the row.
        text: that was answered.
        loss: nats summed over the reference's tokens.
        tokens: how many these are.
        decision: what to note as the row's routing.

    Raises:
        DataError: a reference that its check cannot read.
    """
    example = asked.examples[index]
    marks = {
        "score": score(example.check, text, example.completion, example.tests),
        "exact": exact(text, example.completion),
        "f1": token_f1(text, example.completion),
    }
    return _noted(asked, index, marks, loss, tokens, decision)


def _noted(
    asked: Questions,
    index: int,
    marks: Mapping[str, Any],
    loss: float,
    tokens: int,
    decision: Decision,
) -> RowResult:
    return RowResult(
        skill=asked.skills[index],
        key=asked.examples[index].key,
        loss=loss,
        tokens=tokens,
        expert=decision[0],
        confidence=decision[1],
        **marks,
    )


def text_losses(rows: Rows, losses: RowLosses) -> tuple[TextLoss, ...]:
    """What `answer_losses` gave for rows of no skill, row by row."""
    measured = zip(rows.encoded, losses.total.tolist(), losses.tokens.tolist(), strict=True)
    return tuple(TextLoss(row.key, loss, tokens) for row, loss, tokens in measured)
