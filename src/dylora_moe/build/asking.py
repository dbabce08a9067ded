"""An answer as it is written: pieces of text while the model works, the whole afterwards."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.results import Answer
from dylora_moe.records import Turn


class _Stopped(Exception):  # noqa: N818 (a signal, not a fault)
    """Raised into the generation when nobody reads its text any more."""


class Stream:
    """Iterates over pieces of one answer; to be iterated once.

    Generation runs in a thread of its own and ends soon after the iteration is given up.
    """

    def __init__(
        self,
        live: LivePool,
        prompt: str | Sequence[Turn],
        expert: str | None,
        sampling: Sampling,
    ) -> None:
        self._live, self._prompt, self._expert, self._sampling = live, prompt, expert, sampling
        self._pieces: queue.Queue[str | None] = queue.Queue()
        self._given_up = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            PoolError: the iteration has not come to its end.
        """
        if self._answer is None:
            raise PoolError("the answer is not finished; iterate over the stream first")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        finally:
            self._given_up.set()
            worker.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            found = answer(
                self._live,
                [self._prompt],
                expert=self._expert,
                sampling=self._sampling,
                on_text=self._take,
            )
            self._answer = found[0]
        except _Stopped:
            pass
        except BaseException as error:
            # Raised again where the stream is read.
            self._error = error
        finally:
            self._pieces.put(None)

    def _take(self, text: str) -> None:
        if self._given_up.is_set():
            raise _Stopped
        if text:
            self._pieces.put(text)
