"""Checks the jaxtyping annotations of `dylora_moe` in the tests, and those only.

Other annotations are mypy's business: a test may hand in a double of a port or of a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the import hook applies to each function; jaxtyping hands in a copy of its signature."""
    shaped = {key: kind for key, kind in function.__annotations__.items() if _has_shape(kind)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def _has_shape(kind: object) -> bool:
    if inspect.isclass(kind) and issubclass(kind, AbstractArray):
        return True
    return any(_has_shape(part) for part in get_args(kind))
