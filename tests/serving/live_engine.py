"""An engine with a pool in memory for what needs the model; its answers are the double's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dylora_moe.build.reader import PoolReader
from dylora_moe.records import Turn
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.serving.engine.prompts import Prompts
from tests.serving.doubles import DoubleEngine

if TYPE_CHECKING:
    from dylora_moe.lifecycle.live import LivePool

T = TypeVar("T")


class LiveEngine(DoubleEngine):
    """Answers as the double does; routes as the pool does."""

    def __init__(self, pool: PoolReader, **options: Any) -> None:
        super().__init__(cast("Any", pool), **options)
        self._reader, self._one = pool, threading.Lock()

    def encode(self, prompt: str | Sequence[Turn] | Sequence[int]) -> tuple[int, ...]:
        return Prompts(self._reader.live, Limits()).encode(prompt)

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        done: Future[T] = Future()
        with self._one:
            try:
                done.set_result(work(self._reader.live))
            except Exception as error:
                done.set_exception(error)
        return done
