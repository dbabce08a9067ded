"""What an exception means to the person at the keyboard: one line, a remedy, an exit code.

0 is success, 1 something unexpected (or a check that failed), 2 something the person can mend,
130 Ctrl-C, 141 a reader of our output that went away.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from typing import Any

from dylora_moe.errors import DyLoRAError, LearningInterruptedError

DEBUG_VARIABLE = "DYLORA_DEBUG"


@dataclass(frozen=True)
class Failure:
    """An error as it is shown.

    Attributes:
        kind: name of the exception's class.
        line: what goes to stderr; several lines only where a traceback was asked for.
        message: the fact, cause and remedy in one line, without the word before it.
    """

    code: int
    kind: str
    message: str
    line: str
    quiet: bool = False

    def document(self) -> dict[str, Any]:
        """The value under `error` in the JSON document."""
        return {"type": self.kind, "message": self.message, "exit_code": self.code}


def failure_of(error: BaseException) -> Failure:
    """Classifies any exception; see the module for the codes."""
    kind = type(error).__name__
    message = " ".join(str(error).split()) or kind
    if isinstance(error, BrokenPipeError):
        return Failure(141, kind, message, "", quiet=True)
    if isinstance(error, LearningInterruptedError):
        return _failure(error, 130, kind, message, message)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted: the pool is as it was"
        return _failure(error, 130, kind, message, message)
    if isinstance(error, DyLoRAError):
        return _failure(error, 2, kind, message, f"error: {message}")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror.lower()}; check the path and its rights"
        return _failure(error, 2, kind, message, f"error: {message}")
    message = f"{kind}: {message}" if message != kind else kind
    hint = f"unexpected, please report it; {DEBUG_VARIABLE}=1 shows where it happened"
    return _failure(error, 1, kind, message, f"error: {message} ({hint})")


def debugging() -> bool:
    """Whether the person wants tracebacks and the libraries' own warnings."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _failure(error: BaseException, code: int, kind: str, message: str, line: str) -> Failure:
    if debugging():
        line = "".join(traceback.format_exception(error)) + line
    return Failure(code, kind, message, line)
