"""Every error this package raises on purpose, in one tree.

A message says the fact, the cause and the remedy in one line. The command line turns any of these
into that line and exit code 2; knows nothing of how it is printed.
"""

from __future__ import annotations


class DyLoRAError(Exception):
    """Root of the tree: something the person at the keyboard can mend."""


class ConfigError(DyLoRAError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(DyLoRAError):
    """A data file is missing, empty, corrupt or inconsistent; the message carries `file:line`."""


class PromptLengthError(DataError):
    """A prompt leaves no room for an answer in the model's context."""


class BaseModelError(DyLoRAError):
    """A base model cannot be found, loaded, or understood (blocks, targets)."""


class PoolError(DyLoRAError):
    """A pool is missing, belongs to another base, or does not hold what was asked for."""


class PoolLockedError(PoolError):
    """Another process is learning into this pool; the message says which."""


class PoolFullError(PoolError):
    """The cap on experts or on trainable parameters is reached."""


class ArtifactError(PoolError):
    """A stored file is missing, truncated or does not match its hash."""


class DatabaseUnavailableError(PoolError):
    """A pool's database is busy, or cannot be reached; later it may be otherwise."""


class StorageFullError(PoolError):
    """The disk refused a write; nothing of the pool was changed."""


class ExpertError(DyLoRAError):
    """An expert is unknown, duplicated, or does not fit the base."""


class RoutingError(DyLoRAError):
    """Routing weights do not fit the experts or the batch."""


class TrainingError(DyLoRAError):
    """A run went wrong (a loss that is not finite, no gradient); the pool stays as it was."""


class MissingExtraError(DyLoRAError):
    """An optional dependency is not installed; the message names the extra."""


class LearningInterruptedError(DyLoRAError):
    """The person pressed Ctrl-C; unfinished work is kept in the pool's `runs/`."""


class QueueFullError(DyLoRAError):
    """As many requests wait as may.

    Attributes:
        seconds: after which it is worth to come again.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class UnavailableError(DyLoRAError):
    """The engine takes no requests: it is not ready, is being stopped, or broke down."""
