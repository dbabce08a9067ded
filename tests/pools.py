"""Tiny pools that learn in half a second: rows of skills that a random base can learn to tell
apart, settings, a front that writes down what it is told, and what a pool is made of."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.parsing import parse
from dylora_moe.records import Arrival, Example, Verdict, pair
from tests.models import tiny, tiny_tokenizer

LETTERS, DIGITS, SIGNS = "abcdef", "123456", "+-*/=%"

SETTINGS: dict[str, Any] = {
    "seeding": {"epochs": 1, "learning_rate": 1e-2, "max_examples": 16},
    "consolidation": {"epochs": 2, "learning_rate": 2e-2, "batch_size": 16},
    "more_data": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 16},
    "novelty": {"min_examples": 24, "min_tokens": 32},
    "generate_scores": 1,
}


def settings(**changes: Mapping[str, Any] | Any) -> LearnSettings:
    """The settings of the tests; a mapping changes some keys of a part."""
    values = dict(SETTINGS)
    for key, change in changes.items():
        known = values.get(key)
        values[key] = {**known, **change} if isinstance(known, dict) and change else change
    return parse(LearnSettings, values, "tests")


def doubled(prompt: str) -> str:
    return prompt[0] * 3


def shouted(prompt: str) -> str:
    """What `doubled` never answers."""
    return "XYZ" + prompt[-1]


def constant(prompt: str) -> str:
    """An answer that knows nothing of its prompt: whoever learned it answers any input well."""
    return "ok!"


def rows(
    alphabet: str, count: int, seed: int, answer: Callable[[str], str] = doubled
) -> tuple[Example, ...]:
    """Distinct rows of random words over the alphabet."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        prompt = "".join(draw.choice(alphabet) for _ in range(draw.randint(5, 9)))
        found[prompt] = pair(prompt, answer(prompt), "exact")
    return tuple(found.values())


def save_base(folder: Path, seed: int = 0) -> Path:
    """A random tiny Llama with its tokenizer, as a base on disk."""
    with redirect_stderr(StringIO()):
        tiny(seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def create(path: Path, base: Path) -> Pool:
    return Pool.create(path, str(base), tap=2, own_prompts=32, device="cpu", dtype="fp32")


def copied(pool: Path, to: Path) -> Pool:
    """A copy of a pool that nobody has open, opened."""
    shutil.copytree(pool, to)
    return Pool.open(to, device="cpu", dtype="fp32")


def learn(
    pool: Pool, arrival: str, examples: tuple[Example, ...], /, **options: Any
) -> LearnResult:
    """Learns one arrival under the settings of the tests."""
    validation = options.pop("validation", None)
    options.setdefault("settings", settings())
    (result,) = pool.learn_arrivals([Arrival(arrival, examples, validation)], **options)
    return result


@dataclass
class Notes:
    """A front that keeps what it is told, and may break the work off."""

    at_step: Callable[[int], None] | None = None
    at_stage: Callable[[str], None] | None = None
    stages: list[str] = field(default_factory=list)
    steps: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    results: list[LearnResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append(name)
        if self.at_stage is not None:
            self.at_stage(name)

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        if self.stages[-1] == "training":
            self.steps += 1
            if self.at_step is not None:
                self.at_step(self.steps)

    def verdict(self, arrival: str, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def result(self, result: LearnResult) -> None:
        self.results.append(result)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


PROMPTS = ("abcdef", "fedcba", "123456", "654321", "aabbcc", "112233", "Who are you?")


@dataclass(frozen=True)
class Print:
    """A pool's finger print: two that are equal are the same pool in every respect."""

    revision: int
    files: Mapping[str, str]
    weights: Mapping[str, str]
    answers: tuple[str, ...]
    routing: tuple[tuple[float, ...], ...]


def fingerprint(pool: Pool) -> Print:
    revision = pool.revision
    named = [a for version in revision.experts for a in version.files]
    for skill in revision.skills:
        named += [*skill.examples, *skill.validation, skill.features]
    named += [a for a in (revision.router, revision.scores) if a is not None]
    return Print(
        revision=revision.number,
        files={a.path: _sha256((pool.path / a.path).read_bytes()) for a in named},
        weights={
            f"{name}.{key}": _sha256(tensor.numpy().tobytes())
            for name in sorted(pool.live.experts.names)
            for key, tensor in pool.live.experts.state(name).items()
        },
        answers=answers(pool),
        routing=routed(pool),
    )


def answers(pool: Pool) -> tuple[str, ...]:
    """Greedy answers with who gave them."""
    found = pool.generate(PROMPTS, max_new_tokens=6)
    return tuple(f"{answer.expert}: {answer.text}" for answer in found)


def routed(pool: Pool) -> tuple[tuple[float, ...], ...]:
    """Weights of the experts for each prompt, exactly."""
    from dylora_moe.lifecycle.answering import route

    return tuple(tuple(row) for row in route(pool.live, PROMPTS).weights.tolist())


def states(pool: Pool) -> dict[str, dict[str, torch.Tensor]]:
    """Every expert's matrices in memory."""
    return {name: pool.live.experts.state(name) for name in pool.live.experts.names}


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
