"""Two watches for the person at the keyboard: a live one on a terminal, lines elsewhere.

Implements `lifecycle.watch.Watch`; knows nothing of learning. Everything goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dylora_moe.cli.wording import duration, numbers, result_line, verdict_line
from dylora_moe.records import Verdict

if TYPE_CHECKING:
    from dylora_moe.lifecycle.results import LearnResult

LINE_SECONDS = 5.0
"""Without a terminal, progress makes at most one line in this time."""


@runtime_checkable
class CommandWatch(Protocol):
    """A Watch that is opened and closed by the command, and that takes remarks of its own."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def note(self, message: str) -> None: ...

    def stage(self, name: str, detail: str = "") -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None: ...

    def verdict(self, arrival: str, verdict: Verdict) -> None: ...

    def result(self, result: LearnResult) -> None: ...

    def warning(self, message: str) -> None: ...


def watch_on(console: Console, names: Sequence[str] = ()) -> CommandWatch:
    """The watch that fits the console.

    Args:
        console: on stderr.
        names: the arrivals in order, so that `3/7` can be said.
    """
    return LiveWatch(console, names) if console.is_terminal else LineWatch(console, names)


class LineWatch:
    """Plain lines: every verdict, result and warning; progress once in a while."""

    def __init__(
        self,
        console: Console,
        names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._names, self._clock = console, names, clock
        self._stage, self._said = "", clock()
        self._began, self._total, self._first = clock(), 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def note(self, message: str) -> None:
        self._say(Text(message))

    def stage(self, name: str, detail: str = "") -> None:
        self._stage, self._total = f"{name} {detail}".strip(), 0
        if self._due():
            self._say(Text(f"    {self._stage} ..."))

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        if total != self._total:
            # Another phase of the same stage: its steps take their own time.
            self._began, self._total, self._first = self._clock(), total, done
        if not self._due():
            return
        line = f"    {self._stage}: {done}/{total}"
        told = numbers(values)
        if told:
            line += f"  {told}"
        if self._first < done < total:
            left = (self._clock() - self._began) / (done - self._first) * (total - done)
            line += f"  {duration(left)} left"
        self._say(Text(line))

    def verdict(self, arrival: str, verdict: Verdict) -> None:
        self._say(verdict_line(self._names, arrival, verdict))

    def result(self, result: LearnResult) -> None:
        self._say(result_line(result))

    def warning(self, message: str) -> None:
        self._say(Text(f"warning: {message}"))

    def _due(self) -> bool:
        return self._clock() - self._said >= LINE_SECONDS

    def _say(self, line: Text) -> None:
        self._said = self._clock()
        self._console.print(line, soft_wrap=True)


class LiveWatch:
    """A bar for the stage at hand and one for the stream, with the time that is left."""

    def __init__(self, console: Console, names: Sequence[str] = ()) -> None:
        self._console, self._names = console, names
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[told]}"),
            console=console,
            transient=True,
        )
        self._stream: TaskID | None = None
        self._stage: TaskID | None = None
        self._total = 0
        self._began = time.monotonic()
        self._finished = 0

    def __enter__(self) -> Self:
        self._progress.start()
        if len(self._names) > 1:
            self._stream = self._progress.add_task("stream", total=len(self._names), told="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, message: str) -> None:
        self._say(Text(message, "dim"))

    def stage(self, name: str, detail: str = "") -> None:
        if self._stage is not None:
            self._progress.remove_task(self._stage)
        self._total = 0
        words = Text(f"{name} {detail}".strip()).markup
        self._stage = self._progress.add_task(words, total=None, told="")

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        if self._stage is None:
            self.stage("working")
        assert self._stage is not None
        if total != self._total:
            # Another phase of the same stage: its steps take their own time.
            self._progress.reset(self._stage, total=total)
            self._total = total
        self._progress.update(self._stage, completed=done, told=numbers(values))

    def verdict(self, arrival: str, verdict: Verdict) -> None:
        self._say(verdict_line(self._names, arrival, verdict))

    def result(self, result: LearnResult) -> None:
        self._say(result_line(result))
        self._finished += 1
        if self._stream is not None:
            left = len(self._names) - self._finished
            each = (time.monotonic() - self._began) / self._finished
            told = f"{left} to come, about {duration(left * each)}" if left > 0 else ""
            self._progress.update(self._stream, completed=self._finished, told=told)

    def warning(self, message: str) -> None:
        self._say(Text(f"warning: {message}", "yellow"))

    def _say(self, line: Text) -> None:
        self._progress.console.print(line)
