"""What an engine tells besides answers: for logs, metrics, the inbox.

Knows plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dylora_moe.records import Turn

Kind = Literal[
    "loaded", "revision", "canary", "canary promoted", "canary rolled back", "strange", "error"
]
"""The pool is there; it became another revision; a version is on trial, has passed, has failed; a
prompt that no skill claims; something went wrong."""


@dataclass(frozen=True, slots=True)
class Note:
    """One event.

    Attributes:
        kind: what happened.
        message: one line.
        numbers: what goes with it, JSON values.
        turns: of a strange prompt, the turns that were asked; empty otherwise.
    """

    kind: Kind
    message: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    turns: Sequence[Turn] = ()


OnNote = Callable[[Note], None]
"""Called in the engine's thread; must neither wait nor raise."""
