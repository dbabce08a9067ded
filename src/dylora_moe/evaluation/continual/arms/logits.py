"""This project's pool with the experts' next-token distributions mixed instead of their LoRA sums.

The pool learns as ever; only rows that its router gives to several experts are answered otherwise:
`p(token) = sum over experts of weight * p_expert(token)`, which takes a whole pass from the tap for
each of them. Rows of one expert, or of none, are those of the arm `ours`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.answers import (
    Decision,
    Questions,
    questions,
    result_of,
    text_losses,
)
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.ours import POOL, Ours
from dylora_moe.evaluation.continual.results import ArmResult, RowResult, TextLoss, mean_loss
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates
from dylora_moe.lifecycle.answering import Sampling, generate_batch
from dylora_moe.lifecycle.completing import answer_limit
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.text_pieces import text_of
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.routing import Routing
from dylora_moe.training.measure import answer_losses, row_routing
from dylora_moe.training.rows import Rows

_COUNTS = 1e-6
"""Weight above which an expert takes part, as in the pool's own scores."""

_COPIES = 128
"""Rows that run at a time, each once for every one of its experts."""


@dataclass(frozen=True)
class OursByLogits:
    """The arm."""

    name: str = "ours-logits"
    title: str = "this project, with the experts' distributions mixed"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "pool"

    def run(self, setting: Setting) -> ArmResult:
        """Answers the test rows at the end of the stream; what the arm `ours` has learned of it
        need not be learned again."""
        if setting.ours_folder is not None and not (setting.folder / POOL).exists():
            _copy_whole(setting.ours_folder, setting.folder)
        learned = Ours().run(replace(setting, every_visit=False))
        start = time.perf_counter()
        path, device, dtype = setting.folder / POOL, setting.device, setting.dtype
        with Pool.open(path, device=device, dtype=dtype) as pool:
            rows, mixed = _answered(pool.live, setting, learned.last.rows)
            neutral = _neutral_losses(pool.live, setting)
        return replace(
            learned,
            arm=self.name,
            stages=(replace(learned.last, rows=rows),),
            seconds=learned.seconds + time.perf_counter() - start,
            base_loss=mean_loss(neutral),
            neutral=neutral,
            details={**learned.details, "rows_of_several_experts": mixed},
        )


def _copy_whole(source: Path, to: Path) -> None:
    """Puts a copy in the place of a folder: all of it or, if interrupted, nothing."""
    staged = to.with_name(f".{to.name}")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(source, staged)
    shutil.rmtree(to, ignore_errors=True)
    staged.replace(to)


def _answered(
    live: LivePool, setting: Setting, before: Sequence[RowResult]
) -> tuple[tuple[RowResult, ...], int]:
    """The rows that `ours` answered, those of several experts anew, and how many these are."""
    asked = questions(live.base, setting.fmt, setting.test_rows, live.scratch)
    routing = row_routing(live.model, asked.rows)
    places = mixed_rows(routing)
    notes: list[Decision] = [(before[place].expert, before[place].confidence) for place in places]
    rows = list(before)
    for place, row in zip(places, answer_mixed(live.model, asked, routing, notes), strict=True):
        rows[place] = row
    return tuple(rows), len(places)


def _neutral_losses(live: LivePool, setting: Setting) -> tuple[TextLoss, ...]:
    if not setting.neutral:
        return ()
    rows = live.encode(setting.neutral)
    routing = row_routing(live.model, rows)
    found = list(text_losses(rows, answer_losses(live.model, rows, gates=routing)))
    places = mixed_rows(routing)
    for place, loss in zip(places, mixture_losses(live.model, rows, routing, places), strict=True):
        found[place] = replace(found[place], loss=loss)
    return tuple(found)


def mixed_rows(gates: Gates | Routing) -> list[int]:
    """The rows that go to more than one expert."""
    several: list[int] = ((gates.weights > _COUNTS).sum(-1) > 1).nonzero().flatten().tolist()
    return several


def answer_mixed(
    model: DyLoRAMoE,
    asked: Questions,
    gates: Gates | Routing,
    notes: Sequence[Decision],
) -> list[RowResult]:
    """Answers the rows of several experts greedily under the mixture of their distributions.

    Args:
        model: base and experts.
        asked: the rows.
        gates: weights of experts for each of them.
        notes: what to note as the routing of each row that is answered.
    """
    places = mixed_rows(gates)
    losses = mixture_losses(model, asked.rows, gates, places)
    texts = mixture_texts(model, asked.rows, gates, places)
    targets = asked.rows.targets
    return [
        result_of(asked, place, text, loss, targets[place], note)
        for place, text, loss, note in zip(places, texts, losses, notes, strict=True)
    ]


@torch.no_grad()
def mixture_losses(
    model: DyLoRAMoE, rows: Rows, gates: Gates | Routing, only: Sequence[int]
) -> list[float]:
    """Nats of each row's answer under the mixture, summed over its tokens.

    Args:
        model: base and experts.
        rows: with their answers.
        gates: weights of experts for each of them.
        only: these rows.
    """
    found: dict[int, float] = {}
    pad = model.base.tokenizer.pad_token_id
    for copies in _batches(gates, only):
        batch, trunk = rows.batch(copies.rows, pad_id=pad, device=model.device)
        output = model(**batch, trunk=trunk, gates=copies.gates(model), trained_logits_only=True)
        labels = batch["labels"][:, 1:]
        targets = labels[labels != -100]
        chosen = output.logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        counts = [rows.targets[row] for row in copies.rows]
        parts = chosen.cpu().split(counts)
        for row in dict.fromkeys(copies.rows):
            own = [place for place, other in enumerate(copies.rows) if other == row]
            weighed = torch.stack([parts[place] + copies.weights[place].log() for place in own])
            found[row] = -float(weighed.logsumexp(0).sum())
    return [found[row] for row in only]


def mixture_texts(
    model: DyLoRAMoE, rows: Rows, gates: Gates | Routing, only: Sequence[int]
) -> list[str]:
    """Greedy answers under the mixture, each up to its row's own limit.

    Every row stands in the batch once for each of its experts, and all of its copies get the token
    that is likeliest under their mixture.

    Args:
        model: base and experts.
        rows: whose prompts are answered.
        gates: weights of experts for each of them.
        only: these rows.
    """
    limits = {row: answer_limit(rows.targets[row]) for row in only}
    found: dict[int, str] = {}
    for copies in _batches(gates, sorted(only, key=lambda row: limits[row])):
        prompts = [rows.encoded[row] for row in copies.rows]
        generation = generate_batch(
            model,
            [row.input_ids[: row.prompt_length] for row in prompts],
            Sampling(max_new_tokens=max(limits[row] for row in copies.rows)),
            gates=copies.gates(model),
            logits_processor=LogitsProcessorList([_Mixed(copies)]),
        )
        for row, tokens in zip(copies.rows, generation.answers.tolist(), strict=True):
            found[row] = text_of(model.base.tokenizer, tokens[: limits[row]], ())
    return [found[row] for row in only]


@dataclass(frozen=True, eq=False)
class _Copies:
    """Rows that stand in a batch once for each of their experts.

    Attributes:
        rows: of each copy.
        experts: all of the gates', in their order.
        column: the copy's expert.
        weights: the mixture's weight of each copy; a row's sum to one.
    """

    rows: list[int]
    experts: tuple[str, ...]
    column: Int[Tensor, " copies"]
    weights: Float[Tensor, " copies"]

    def gates(self, model: DyLoRAMoE) -> Gates:
        """Each copy's expert alone."""
        alone = torch.nn.functional.one_hot(self.column, len(self.experts)).float()
        return Gates(self.experts, alone.to(model.device))

    @property
    def owner(self) -> Int[Tensor, " copies"]:
        """Which row of the batch each copy is of, counted from 0."""
        order = {row: place for place, row in enumerate(dict.fromkeys(self.rows))}
        return torch.tensor([order[row] for row in self.rows])


def _batches(gates: Gates | Routing, only: Sequence[int]) -> Iterator[_Copies]:
    """The copies of some rows, those of one row together."""
    batch: list[tuple[int, int, float]] = []
    for row in only:
        weights = gates.weights[row].tolist()
        own = [(row, column, weight) for column, weight in enumerate(weights) if weight > _COUNTS]
        if batch and len(batch) + len(own) > _COPIES:
            yield _copies(gates.experts, batch)
            batch = []
        batch += own
    if batch:
        yield _copies(gates.experts, batch)


def _copies(experts: tuple[str, ...], batch: Sequence[tuple[int, int, float]]) -> _Copies:
    rows, columns, weights = zip(*batch, strict=True)
    return _Copies(list(rows), experts, torch.tensor(columns), torch.tensor(weights))


class _Mixed(LogitsProcessor):
    """Gives all copies of a row the logarithm of their mixed probabilities."""

    def __init__(self, copies: _Copies) -> None:
        self._owner, self._weights = copies.owner, copies.weights

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        owner, weights = self._owner.to(scores.device), self._weights.to(scores.device)
        shares = scores.float().softmax(-1) * weights[:, None]
        mixed = shares.new_zeros(int(owner.max()) + 1, shares.shape[1])
        mixed.index_add_(0, owner, shares)
        return mixed.log()[owner]
