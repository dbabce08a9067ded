"""The rows that are being answered, in one batch: they join, get a token each step, and leave.

Each row has experts of its own; the weights of all rows are one matrix, as in `generate`. Knows the
model, its cache and rows; knows no queue and no threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.cache_name import CACHE
from dylora_moe.foundation.tap import Hiddens, pool_features
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.serving.engine.by_token import token_gates
from dylora_moe.serving.engine.kv_rows import RowsCache
from dylora_moe.serving.engine.requests import Reason
from dylora_moe.serving.engine.row import Row
from dylora_moe.serving.engine.versions import Ref, Versions
from dylora_moe.text.batching import left_padded


class Screen(Protocol):
    """Tells prompts that are strange to every skill."""

    def strange(self, features: Float[Tensor, "n d_features"]) -> Sequence[bool]:
        """Of each prompt."""
        ...


class Batch:
    """The running batch.

    Args:
        live: the pool in memory.
        versions: which adapter is which version.
        on_end: told of every row that ends, and why.

    Attributes:
        rows: in the order of the cache.
        screen: of the pool as it is; nothing is screened where None.
    """

    def __init__(
        self,
        live: LivePool,
        versions: Versions,
        on_end: Callable[[Row, Reason], None],
    ) -> None:
        self._live, self._versions, self._on_end = live, versions, on_end
        self.rows: list[Row] = []
        self.screen: Screen | None = None
        self._cache = RowsCache()
        self._gates: Gates | None = None
        self._is_stale = True
        signature = inspect.signature(live.model.model.forward).parameters
        self._keeps_last = "logits_to_keep" in signature
        self._has_positions = "position_ids" in signature

    @property
    def cached_tokens(self) -> int:
        """Places in the cache that are taken, padding included."""
        return self._cache.rows * self._cache.columns

    @property
    def used(self) -> set[Ref]:
        """Versions that rows are answered by."""
        return {ref for row in self.rows for ref in row.weights}

    def join(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of new rows in one pass, and gives each its first token.

        Raises:
            PoolError: the files of an expert that one of them needs are missing or damaged; none
                has joined then, and nobody was told anything.
        """
        ids, mask = left_padded([row.asked.prompt for row in rows], self._pad)
        ids, mask = ids.to(self._device), mask.to(self._device)
        # Told nothing of windows, it keeps every key; the masks know of them.
        cache = DynamicCache()

        def at_the_tap(hiddens: Hiddens) -> None:
            self._live.model.passes.give(self._decide(rows, hiddens, mask.bool()))

        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._pass(ids, mask, positions, cache, None, at_the_tap)
        self._cache.take_in(cache, [row.length for row in rows])
        self.rows.extend(rows)
        self._is_stale = True
        self._tell(rows, logits)

    def step(self) -> None:
        """One token for every row; those that end leave."""
        real = self._cache.before_step()
        ids = torch.tensor([[row.last] for row in self.rows], device=self._device)
        positions = torch.tensor([[row.length] for row in self.rows], device=self._device)
        rows = self.rows
        by_token = any(row.by_token for row in rows)
        at_the_tap: Callable[[Hiddens], None] | None = None
        if by_token:

            def at_the_tap(hiddens: Hiddens) -> None:
                every = torch.ones(hiddens[0].shape[:2], dtype=torch.bool, device=self._device)
                self._live.model.passes.give(token_gates(rows, hiddens, every, self._versions))

        gates = None if by_token else self._row_gates()
        mask = real.long().to(self._device)
        logits = self._pass(ids, mask, positions, self._cache, gates, at_the_tap)
        self._cache.after_step()
        for row in rows:
            row.length += 1
        self._tell(list(rows), logits)

    def end(self, row: Row, reason: Reason, message: str = "") -> None:
        """Takes a row out and tells of its end."""
        index = self.rows.index(row)
        self._cache.leave(index)
        last = self.rows.pop()
        if index < len(self.rows):
            self.rows[index] = last
        self._is_stale = True
        self._told_end(row, reason, message)

    def end_all(self, reason: Reason, message: str = "") -> None:
        """Takes every row out, without looking at the cache, which may be in any state."""
        rows, self.rows = self.rows, []
        self._cache = RowsCache()
        self._is_stale = True
        for row in rows:
            self._told_end(row, reason, message)

    def refuse(self, row: Row, message: str) -> None:
        """Tells of the end of a row that did not come in."""
        self._told_end(row, "error", message)

    def _told_end(self, row: Row, reason: Reason, message: str) -> None:
        row.end(reason, message)
        self._on_end(row, reason)

    def moved(self) -> None:
        """The pool became another revision; rows go on with the versions that they have."""
        self._is_stale = True

    @property
    def _device(self) -> torch.device:
        return self._live.base.device

    @property
    def _pad(self) -> int:
        return int(self._live.base.tokenizer.pad_token_id)

    def _pass(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Cache,
        gates: Gates | None,
        at_the_tap: Callable[[Hiddens], None] | None,
    ) -> Float[Tensor, "rows vocabulary"]:
        """Logits of each row's last token."""
        model = self._live.model
        inputs: dict[str, Any] = {"attention_mask": mask, CACHE: cache}
        if self._has_positions:
            inputs["position_ids"] = positions
        if self._keeps_last:
            inputs["logits_to_keep"] = 1
        with torch.no_grad(), model.passes.bound(gates):
            if at_the_tap is None:
                output = model.model(input_ids=ids, use_cache=True, **inputs)
            else:
                with model.tap.listening(at_the_tap):
                    output = model.model(input_ids=ids, use_cache=True, **inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _decide(self, rows: Sequence[Row], hiddens: Hiddens, mask: Tensor) -> Gates | None:
        """What each new row is answered by."""
        routed = [i for i, row in enumerate(rows) if row.asked.routed]
        screened = self._screened(rows)
        if routed or screened:
            features = pool_features(hiddens, mask)
            self._look(rows, screened, features)
        if not routed:
            return self._gates_of(rows)
        if self._live.router.granularity == "token":
            return token_gates(rows, hiddens, mask, self._versions, begin=True)
        routing = self._live.router(features[routed])
        given = zip(
            routed,
            routing.weights.tolist(),
            routing.none.tolist(),
            routing.entropy.tolist(),
            strict=True,
        )
        for index, weights, none, entropy in given:
            named = dict(zip(routing.experts, weights, strict=True))
            rows[index].routed_by(named, none, entropy)
        return self._gates_of(rows)

    def _screened(self, rows: Sequence[Row]) -> list[int]:
        if self.screen is None:
            return []
        return [i for i, row in enumerate(rows) if row.asked.routed and row.asked.request.screened]

    def _look(self, rows: Sequence[Row], screened: Sequence[int], features: Tensor) -> None:
        if self.screen is None or not screened:
            return
        found = self.screen.strange(features[list(screened)].cpu())
        for index, strange in zip(screened, found, strict=True):
            rows[index].novel = strange

    def _row_gates(self) -> Gates | None:
        """Of the rows as they are; made anew only where rows or versions moved."""
        if self._is_stale:
            self._gates = self._gates_of(self.rows)
            self._is_stale = False
        return self._gates

    def _gates_of(self, rows: Sequence[Row]) -> Gates | None:
        # In an order of their own, whoever came first: layers keep the stack of one set of experts.
        refs = sorted({ref for row in rows for ref in row.weights})
        if not refs:
            return None
        names = tuple(self._versions.adapter(ref) for ref in refs)
        if len(refs) == 1 and all(row.weights.get(refs[0]) == 1.0 for row in rows):
            return Gates.only(names[0], len(rows), self._device)
        weights = [[row.weights.get(ref, 0.0) for ref in refs] for row in rows]
        return Gates.chosen(names, torch.tensor(weights, device=self._device))

    def _tell(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Gives each row its next token; those that end leave."""
        largest = logits.argmax(-1).tolist()
        ended = []
        for index, row in enumerate(rows):
            known = logits[index].float().log_softmax(-1) if row.wants_logprobs else None
            token = largest[index] if row.draws.is_greedy else row.draws.pick(logits[index])
            reason = row.take(token, known)
            if reason is not None:
                ended.append((row, reason))
        for row, reason in ended:
            self.end(row, reason)
