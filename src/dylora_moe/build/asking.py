"""An answer as it is written: pieces of text while the model works, the whole afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.results import Answer
from dylora_moe.model.streaming import Streamed
from dylora_moe.records import Turn


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
        def work(on_piece: Callable[[str], None]) -> Answer:
            def on_text(_: int, text: str) -> None:
                on_piece(text)

            return answer(live, [prompt], expert=expert, sampling=sampling, on_text=on_text)[0]

        self._streamed = Streamed(work)

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            PoolError: the iteration has not come to its end.
        """
        if not self._streamed.finished:
            raise PoolError("the answer is not finished; iterate over the stream first")
        return self._streamed.result

    def __iter__(self) -> Iterator[str]:
        # Closed by hand: giving this iteration up has to stop the generation at once.
        with closing(iter(self._streamed)) as pieces:
            for piece in pieces:
                if piece:
                    yield piece
