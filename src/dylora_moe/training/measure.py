"""The loss of the answers, row by row, under the base, one expert, given gates or the router.

Knows a model and rows with their trunk states; trains nothing and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError, TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.routing import Routing, joined
from dylora_moe.text.batching import length_grouped
from dylora_moe.text.template import Encoded
from dylora_moe.training.memory import is_out_of_memory, release
from dylora_moe.training.rows import Rows
from dylora_moe.training.updates import halved, pass_tokens


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Cross entropy of the answers in nats, in the order of the rows, on the CPU.

    Attributes:
        total: sum over each row's trained tokens.
        tokens: trained tokens of each row.
        openings: what greedy decoding begins each row's last answer with: its tokens as far as
            they are right, its stop token too, and the first that would be written instead; none
            where they were not asked for.
    """

    total: Float[Tensor, n]
    tokens: Int[Tensor, n]
    openings: tuple[tuple[int, ...], ...] = ()

    @property
    def mean(self) -> float:
        """The token mean over all rows."""
        return float(self.total.double().sum() / self.tokens.sum().clamp(min=1))

    @property
    def per_row(self) -> Float[Tensor, n]:
        """The token mean of each row."""
        return self.total / self.tokens.clamp(min=1)


@torch.no_grad()
def answer_losses(
    model: DyLoRAMoE,
    rows: Rows,
    *,
    expert: str | None = None,
    gates: Gates | Routing | None = None,
    batch_tokens: int = 2048,
    limit: int | None = None,
    only: Sequence[int] | None = None,
    openings: bool = False,
) -> RowLosses:
    """Measures the loss of each row's answers, starting at the tap.

    Rows of like length run together; where memory runs out, in passes of half the tokens.

    Args:
        model: in any mode; it runs in eval mode and is put back.
        rows: what to measure.
        expert: one expert at weight one, or `base` for none; the router decides where None.
        gates: weights for each row of `rows`, instead of `expert`; not for each token.
        batch_tokens: padded tokens of one forward pass; a longer row runs alone.
        limit: only the first so many rows.
        only: these rows alone; the losses come in their order.
        openings: look for the largest logit of each trained token too, a seventh of what the head
            takes.

    Raises:
        RoutingError: both `expert` and `gates`, or gates for another number of rows.
        ExpertError: no such expert.
        TrainingError: memory does not take one row.
    """
    chosen = list(range(len(rows)) if only is None else only)[:limit]
    n = len(chosen)
    if expert is not None and gates is not None:
        raise RoutingError("both gates and an expert are given; pass one of the two")
    if gates is not None and gates.weights.shape[0] <= max(chosen, default=-1):
        raise RoutingError(
            f"gates for {gates.weights.shape[0]} rows of {len(rows)}; give one per row"
        )
    total, tokens = torch.zeros(n), torch.zeros(n, dtype=torch.long)
    begun: dict[int, tuple[int, ...]] = {}
    if n == 0:
        return RowLosses(total, tokens)
    lengths = [rows.lengths[index] for index in chosen]
    groups = length_grouped(lengths, max_tokens=max(batch_tokens, *lengths))
    with _evaluating(model):
        # Longest first: memory runs out at once or never.
        waiting = sorted(groups, key=lambda group: sum(lengths[i] for i in group))
        while waiting:
            group = waiting.pop()
            if waiting and expert is None:
                _prefetch(model, rows, [chosen[place] for place in waiting[-1]], gates)
            try:
                numbers = [chosen[place] for place in group]
                found = _group_losses(model, rows, numbers, expert, gates, openings)
                total[group], tokens[group] = found.total, found.tokens
                if openings:
                    begun.update(zip(group, found.openings, strict=True))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if len(group) == 1:
                raise TrainingError(
                    "one row alone does not fit into memory; shorten the rows (max_length)"
                )
            release()
            # The others that are as large would fail too.
            room = pass_tokens(group, lengths) // 2
            waiting = [part for each in [*waiting, group] for part in halved(each, lengths, room)]
    return RowLosses(total, tokens, tuple(begun[place] for place in range(n if openings else 0)))


def _group_losses(
    model: DyLoRAMoE,
    rows: Rows,
    group: list[int],
    expert: str | None,
    gates: Gates | Routing | None,
    openings: bool,
) -> RowLosses:
    pad_id = model.base.tokenizer.pad_token_id
    batch, trunk = rows.batch(group, pad_id=pad_id, device=model.device)
    given: Gates | Routing | None = None
    if gates is not None:
        given = Gates(gates.experts, gates.weights[group].to(model.device))
    elif expert is None:
        # Named, not left to the model: an expert that is pinned there would win.
        given = model.passes.decided(trunk, batch)
    output = model(
        **batch, trunk=trunk, gates=given, expert=expert, loss_only=True, greedy=openings
    )
    counts = output.row_tokens.cpu()
    begun: tuple[tuple[int, ...], ...] = ()
    if openings:
        greedy = output.greedy.cpu().split(counts.tolist())
        begun = tuple(
            _opening(rows.encoded[index], written.tolist())
            for index, written in zip(group, greedy, strict=True)
        )
    return RowLosses(output.row_losses.float().cpu() * counts, counts, begun)


def _opening(row: Encoded, greedy: Sequence[int]) -> tuple[int, ...]:
    """The last answer up to its first token that greedy decoding would not write, as it would.

    Args:
        row: whose last answer.
        greedy: the token of the largest logit in the place of each trained token.
    """
    answer = row.input_ids[row.prompt_length :]
    if not answer or not all(row.trained[row.prompt_length :]):
        return ()
    written = greedy[-len(answer) :]
    wrong = (place for place, token in enumerate(answer) if token != written[place])
    return tuple(written[: next(wrong, len(answer)) + 1])


def _prefetch(
    model: DyLoRAMoE, rows: Rows, group: list[int], gates: Gates | Routing | None
) -> None:
    """Begins to read the experts of the group after the one that runs now."""
    if not model.experts.offloaded:
        return
    if gates is None:
        if model.passes.per_token:
            # What each token needs is known with the states of the whole trunk alone.
            return
        gates = model.router(rows.features[group].to(model.device))
        group = list(range(len(group)))
    chosen = Gates.chosen(gates.experts, gates.weights[group])
    model.experts.prefetch(() if chosen is None else chosen.experts)


@torch.no_grad()
def row_routing(model: DyLoRAMoE, rows: Rows, *, batch_tokens: int = 2048) -> Routing:
    """Where the router sends each row, on the model's device.

    Where it decides for each token, a row stands for all of its tokens, the answer's too: their
    mean (`Routing.over_tokens`).

    Args:
        model: base, experts and router.
        rows: at least one.
        batch_tokens: padded tokens that are looked at at once; a longer row alone.
    """
    if not model.passes.per_token:
        routing: Routing = model.router(rows.features.to(model.device))
        return routing
    groups = length_grouped(rows.lengths, max_tokens=max(batch_tokens, *rows.lengths))
    found = []
    for group in groups:
        pad_id = model.base.tokenizer.pad_token_id
        batch, trunk = rows.batch(group, pad_id=pad_id, device=model.device)
        mask = batch["attention_mask"].bool()
        found.append(model.passes.decided(trunk, batch).over_tokens(mask))
    places = torch.tensor([row for group in groups for row in group], device=model.device)
    return joined(found, lambda parts: torch.cat(list(parts))[places.argsort()])


@contextmanager
def _evaluating(model: DyLoRAMoE) -> Iterator[None]:
    training = model.training
    try:
        model.train(False)
        yield
    finally:
        model.train(training)
