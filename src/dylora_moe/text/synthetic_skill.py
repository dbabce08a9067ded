"""What a synthetic skill is: a name, how its answers are checked, and a way to draw rows."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from dylora_moe.records import Check


class Draw(Protocol):
    def __call__(self, rng: Random, reworded: bool, revised: bool) -> tuple[str, str]:
        """A prompt and its answer. `reworded`: the prompt in the skill's other words, the same
        form of answer. `revised`: the same prompts, another form of answer."""
        ...


@dataclass(frozen=True)
class SyntheticSkill:
    name: str
    check: Check
    draw: Draw
