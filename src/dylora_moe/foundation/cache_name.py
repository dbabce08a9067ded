"""What transformers calls a model's cache of keys and values.

It is `cache` from 5.24 on and was `past_key_values` before; models warn of, or no longer take, the
other one. People may go on saying either. Knows names; knows no cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin

_NAMES = ("cache", "past_key_values")

CACHE = next(
    name
    for name in _NAMES
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
"""What this version of transformers calls it, in calls and in outputs."""


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache in a model's inputs, by whichever name; None where there is none."""
    return next((inputs[name] for name in _NAMES if inputs.get(name) is not None), None)


def with_cache(inputs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The inputs with this cache, under the name that the model knows; without one where None."""
    rest = {name: value for name, value in inputs.items() if name not in _NAMES}
    return rest if cache is None else {**rest, CACHE: cache}
