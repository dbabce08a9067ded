"""What a command prints: its result on stdout, as text or as one JSON document; all else on stderr.

Knows how an error becomes one line and an exit code. While a command runs, `sys.stdout` is
stderr, so that no library can put a line into the result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from dylora_moe.cli.failure import Failure, failure_of

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """The one way of a command to stdout.

    Attributes:
        as_json: whether `show` prints the document instead of the text.
        stream: the real stdout.
    """

    def __init__(self, as_json: bool, stream: TextIO) -> None:
        self.as_json = as_json
        self.stream = stream
        self._shown = False

    @property
    def console(self) -> Console:
        """A rich console on the real stdout."""
        from dylora_moe.cli.console import console_on

        return console_on(self.stream)

    def show(self, document: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """Prints the result, once: the document with `--json`, else what `render` draws."""
        if self.as_json:
            self._document(document)
        else:
            render(self.console)
        self.stream.flush()

    def fail(self, failure: Failure) -> None:
        """Prints the error's line on stderr and, with `--json`, a document on stdout."""
        if failure.line:
            print(failure.line, file=sys.stderr, flush=True)
        if self.as_json and not self._shown and not failure.quiet:
            self._document({"error": failure.document()})
            self.stream.flush()

    def _document(self, document: Mapping[str, Any]) -> None:
        if self._shown:
            raise RuntimeError("a command prints one JSON document, and this one has")
        self._shown = True
        json.dump(plain(document), self.stream, ensure_ascii=False, indent=2, allow_nan=False)
        self.stream.write("\n")


@contextmanager
def command(as_json: bool) -> Iterator[Output]:
    """Runs a command's body: stdout guarded, every error one line and its exit code.

    Raises:
        typer.Exit: with the code, after an error was printed.
    """
    output = Output(as_json, sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield output
    except typer.Exit:
        raise
    except BaseException as error:
        failure = failure_of(error)
        output.fail(failure)
        raise typer.Exit(failure.code) from None


def plain(value: Any) -> Any:
    """`value` as JSON values: dataclasses become objects, paths text, numbers that are not finite
    null (JSON has none), scalars of numpy and torch Python's."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a result holds a {type(value).__name__}, which is no JSON value")
