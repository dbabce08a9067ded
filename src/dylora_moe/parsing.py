"""What people wrote, as settings: validated, frozen, unknown keys rejected with the nearest known.

Knows keys and values; knows no setting by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dylora_moe.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def parse(model: type[S], values: Mapping[str, Any], where: str) -> S:
    """Validates `values` into `model`.

    Raises:
        ConfigError: one line: the place, the fact and, for an unknown key, the nearest known.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key leaves the right one missing as well: say the cause.
        found = error.errors()
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
        path = [str(part) for part in first["loc"]]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key '{key}'; {hint}") from None
        raise ConfigError(f"{where}: {key or 'value'}: {first['msg'].lower()}") from None


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue  # an index into a list, or the branch of a union
        for option in _model_types(field.annotation):
            current = option
    return sorted(current.model_fields)


def _model_types(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in getattr(annotation, "__args__", ()):
        found.extend(_model_types(inner))
    return found


def override(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`values` with dotted `key=value` settings laid over it; a value is read as YAML.

    Raises:
        ConfigError: a setting without `=` or a path through something that holds no keys.
    """
    result: dict[str, Any] = dict(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: expected key=value, e.g. --set expert.rank=16")
        *parents, leaf = key.strip().split(".")
        target = result
        for parent in parents:
            inner = target.get(parent)
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(f"--set {setting}: '{parent}' holds no keys")
            target[parent] = dict(inner or {})
            target = target[parent]
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: the value is not valid YAML") from None
    return result
