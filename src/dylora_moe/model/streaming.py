"""A generation as an iterator: pieces while the model works, the whole afterwards.

Knows threads and what `generate` tells on the way; knows nothing of texts, requests or servers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from jaxtyping import Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import Generation, generate
from dylora_moe.model.row_tokens import OnTokens, RowTokens
from dylora_moe.routing.routing import Routing

P = TypeVar("P")
R = TypeVar("R")


class _GivenUp(Exception):  # noqa: N818 (a signal, not a fault)
    """Raised into the work when nobody reads its pieces any more."""


class Streamed(Generic[P, R]):
    """Iterates over the pieces that some work hands out; to be iterated once.

    The work runs in a thread of its own, begun with the iteration, and ends at its next piece after
    the iteration is given up. What it raises is raised where the pieces are read.

    Args:
        work: gets what to call with each piece; returns the whole.
    """

    def __init__(self, work: Callable[[Callable[[P], None]], R]) -> None:
        self._work = work
        self._pieces: queue.Queue[P | None] = queue.Queue()
        self._given_up = threading.Event()
        self._result: list[R] = []
        self._error: BaseException | None = None

    @property
    def finished(self) -> bool:
        """Whether the work came to its end."""
        return bool(self._result)

    @property
    def result(self) -> R:
        """What the work returned.

        Raises:
            RoutingError: the iteration has not come to its end.
        """
        if not self._result:
            raise RoutingError("the generation is not finished; iterate over the stream first")
        return self._result[0]

    def __iter__(self) -> Generator[P, None, None]:
        worker = threading.Thread(target=self._run, daemon=True)
        worker.start()
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        finally:
            self._given_up.set()
            worker.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._take))
        except _GivenUp:
            pass
        except BaseException as error:
            # Raised again where the pieces are read.
            self._error = error
        finally:
            self._pieces.put(None)

    def _take(self, piece: P) -> None:
        if self._given_up.is_set():
            raise _GivenUp
        self._pieces.put(piece)


def stream_tokens(
    model: DyLoRAMoE,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"] | None = None,
    *,
    expert: str | None = None,
    gates: Gates | Routing | None = None,
    **options: Any,
) -> Streamed[RowTokens, Generation]:
    """The tokens of every row as they fall; the `Generation` is the `result` afterwards.

    A row's tokens together are its answer up to and with its stop token, or the token that
    completed a stop string. Arguments, and what is raised in the iteration, are those of
    `generate`; only one thread may use the model at a time.
    """

    def work(on_tokens: OnTokens) -> Generation:
        return generate(
            model,
            input_ids,
            attention_mask,
            expert=expert,
            gates=gates,
            on_tokens=on_tokens,
            **options,
        )

    return Streamed(work)
