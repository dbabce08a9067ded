"""What jobs do, as command lines of `dylora`; and what those say in the end, for whoever asked.

Pure. Nothing of the server's insides is passed on: no paths, no process numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["learn", "rollback", "promote", "retire"]

INTERRUPTED = 130
"""Exit code of a command that was told to stop."""

_OF_A_RESULT = (
    "arrival", "verdict", "action", "expert", "version", "skill", "reason", "message", "revision",
)  # fmt: skip
_QUIET = {
    "PoolLockedError": "another process is changing the pool; try again when it is done",
    "DatabaseUnavailableError": "the pool's database cannot be used now; try again",
    "StorageFullError": "the server's disk is full; nothing of the pool was changed",
}


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done.

    Attributes:
        kind: which command.
        subject: what it is about, for people: an expert's name.
        arguments: of the command, after the pool.
        rows: file of rows that it reads, the first argument; None where it reads none.
    """

    kind: Kind
    subject: str
    arguments: tuple[str, ...] = ()
    rows: Path | None = None


def learning(
    rows: Path,
    *,
    name: str | None = None,
    into: str | None = None,
    as_new: bool = False,
    mixed: bool = False,
    settings: Sequence[str] = (),
) -> Work:
    """Learning a file of rows; the overrules are those of `dylora learn`."""
    options = [f"--name={name}"] if name is not None else []
    options += [f"--into={into}"] if into is not None else []
    options += ["--as-new"] if as_new else []
    options += ["--mixed"] if mixed else []
    options += [f"--set={each}" for each in settings]
    return Work("learn", name or into or rows.stem, tuple(options), rows)


def command_line(work: Work, pool: Path, learn_options: Sequence[str] = ()) -> list[str]:
    """The words after `dylora`; `learn_options` are those of whatever is learned."""
    if work.kind == "learn":
        return ["learn", str(pool), str(work.rows), *work.arguments, *learn_options, "--json"]
    verb = "remove" if work.kind == "retire" else work.kind
    return ["experts", verb, str(pool), *work.arguments, "--json"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command: one line, and its numbers where it went well."""

    message: str
    result: Any = None


def outcome(kind: Kind, code: int, output: str) -> Outcome:
    """Reads what a command printed.

    Args:
        kind: which command.
        code: its exit code.
        output: its stdout.
    """
    document = _document(output)
    if code != 0:
        error = document.get("error", {})
        found = str(error.get("type", ""))
        # What a person can mend may be said; of all else only that it was.
        if code == 2 and found not in _QUIET and "/" not in str(error.get("message", "/")):
            return Outcome(str(error["message"]))
        told = "it ended without a result; the server's folder of this job holds its log"
        return Outcome(_QUIET.get(found, told))
    if kind == "learn":
        results = [
            {key: each[key] for key in _OF_A_RESULT if key in each}
            for each in document.get("results", [])
        ]
        lines = [
            f"{each.get('verdict')}: {each.get('action')}"
            + (f" {each['expert']} v{each['version']}" if each.get("expert") else "")
            for each in results
        ]
        return Outcome("; ".join(lines), {"results": results})
    revision = document.get("revision")
    return Outcome(
        f"revision {revision}",
        {key: document.get(key) for key in ("before", "revision", "experts")},
    )


def completed(output: str) -> bool:
    """Whether a command printed its result, whatever its exit code was."""
    document = _document(output)
    return bool(document) and "error" not in document


def _document(output: str) -> dict[str, Any]:
    try:
        found = json.loads(output)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
