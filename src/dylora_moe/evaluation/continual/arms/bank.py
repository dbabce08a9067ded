"""A bank of LoRAs, one for each true skill or each group of rows that an arm found, trained once
and used by every arm that has the same.

An adapter lies in the shared folder under a hash of all that decided it, with what it answered to
which test row: the arms differ only in which adapter answers which row, so that each (row, adapter)
is answered once for all of them. Knows skills, folders and rows; knows nothing of how an arm
chooses.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dylora_moe import __version__
from dylora_moe.errors import ExpertError
from dylora_moe.evaluation.continual.answers import UNROUTED, Decision, answer_rows, pinned
from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.arms.kept_answers import asked_key, known, note
from dylora_moe.evaluation.continual.arms.lora_learner import (
    Lesson,
    LoraLearner,
    phase_of,
    sides,
)
from dylora_moe.evaluation.continual.arms.visits import rows_by_skill
from dylora_moe.evaluation.continual.results import RowResult
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.records import BASE_NAME, Example
from dylora_moe.routing.routing import Routing
from dylora_moe.text.template import Encoded, encode_prompt

_FORMAT = 2
_ADAPTERS, _FEATURES = "bank", "features"
_FACTS, _ANSWERS = "facts.json", "answers.json"


@dataclass(frozen=True)
class BankedAdapter:
    """One adapter.

    Attributes:
        expert: its name in the model.
        folder: where it lies.
        tokens, seconds: of its training, whoever trained it.
        trained_now: by this very arm.
    """

    expert: str
    folder: Path
    tokens: int
    seconds: float
    trained_now: bool


Grouping = Callable[[LoraLearner], Mapping[str, tuple[Example, ...]]]
"""The rows that each adapter of a bank learns, by a name; may look at them with the base."""


class Bank:
    """The adapters of a stream's skills on a base of their own.

    Args:
        setting: of the arm.
        grouped: finds the rows of each adapter; the true skills' where None. What is found stands
            for skills in all that follows.

    Attributes:
        learner: the base with all adapters in it.
        rows: of each skill, all that the stream has; the skills in order of their first.
        adapters: by skill.
    """

    def __init__(self, setting: Setting, grouped: Grouping | None = None) -> None:
        self._setting = setting
        self.learner = LoraLearner(setting)
        self.rows = dict(
            rows_by_skill(setting.stream) if grouped is None else grouped(self.learner)
        )
        self.adapters = {
            skill: self._adapter(f"expert_{number}", skill)
            for number, skill in enumerate(self.rows, 1)
        }

    @property
    def skills(self) -> tuple[str, ...]:
        """Those that have an adapter."""
        return tuple(self.rows)

    @property
    def owners(self) -> dict[str, str]:
        """The skill of each adapter's name in the model."""
        return {adapter.expert: skill for skill, adapter in self.adapters.items()}

    @property
    def tokens(self) -> int:
        """Real tokens that the adapters were trained on."""
        return sum(adapter.tokens for adapter in self.adapters.values())

    @property
    def seconds(self) -> float:
        """Of this arm so far, and of the training of adapters that others trained."""
        others = (one.seconds for one in self.adapters.values() if not one.trained_now)
        return self.learner.seconds() + sum(others)

    def features(self, skill: str) -> Tensor:
        """Tap features `[n, d_features]` of the prompts of the skill's rows that train, in their
        order: fp32, on the CPU, those that the pool's own router is fitted on."""
        rows, _ = sides(self.rows[skill], self._setting.learn.validation_fraction)
        return self.kept_features(
            {"prompts_of": [row.key for row in rows]}, lambda: self._features(rows)
        )

    @cached_property
    def test_features(self) -> Tensor:
        """The same of the test rows."""
        features: Tensor = self.learner.asked.rows.features
        return features

    @cached_property
    def neutral_features(self) -> Tensor:
        """The same of the text of no skill."""
        features: Tensor = self.learner.encode(self._setting.neutral).features
        return features

    def kept_features(self, facts: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Features that are computed once for all arms.

        Args:
            facts: what decides them beside the base and the format of prompts.
            compute: makes them.
        """
        mark = _hash({**self._facts(), **facts})
        path = self._setting.shared / _FEATURES / f"{mark}.safetensors"
        try:
            kept: dict[str, Tensor] = load_file(path)
            return kept["features"]
        except (OSError, SafetensorError):
            pass
        found = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}")
        save_file({"features": found.contiguous()}, staged)
        staged.replace(path)
        return found

    def pinned(self, skills: Sequence[str]) -> Gates:
        """One skill's adapter for each row; the base for the empty name."""
        return pinned([self.adapters[s].expert if s else BASE_NAME for s in skills])

    def answer(
        self, gates: Gates | Routing, decided: Sequence[Decision] | None = None
    ) -> tuple[RowResult, ...]:
        """The test rows under given weights of the adapters.

        Rows that are given to one adapter alone, or to none, are answered once for all arms.

        Args:
            gates: of each test row.
            decided: what to note as each row's routing.
        """
        asked = self.learner.asked
        alone = [_alone(gates.experts, row) for row in gates.weights.tolist()]
        there = {one: known(self._answers(one)) for one in dict.fromkeys(alone) if one}
        keys = [asked_key(*pair) for pair in zip(asked.skills, asked.examples, strict=True)]
        found: dict[int, RowResult] = {}
        for place, expert in enumerate(alone):
            if expert and keys[place] in there[expert]:
                found[place] = there[expert][keys[place]]
        missing = [place for place in range(len(keys)) if place not in found]
        answered = answer_rows(self.learner.model, asked, gates, only=missing)
        for place, row in zip(missing, answered, strict=True):
            found[place] = row
            expert = alone[place]
            if expert:
                there[expert][keys[place]] = row
        for expert in dict.fromkeys(one for one in map(alone.__getitem__, missing) if one):
            note(self._answers(expert), there[expert])
        noted = decided if decided is not None else [UNROUTED] * len(keys)
        return tuple(
            replace(found[place], skill=asked.skills[place], expert=owner, confidence=share)
            for place, (owner, share) in enumerate(noted)
        )

    def parameters_in_use(self, gates: Gates | Routing) -> float:
        """Of the adapters that answer a row, the mean."""
        sizes = [self.learner.experts.parameter_count(name) for name in gates.experts]
        used = (gates.weights.cpu() > 1e-6).double() @ torch.tensor(sizes, dtype=torch.double)
        return float(used.mean())

    def _adapter(self, expert: str, skill: str) -> BankedAdapter:
        setting, rows = self._setting, self.rows[skill]
        folder = setting.shared / _ADAPTERS / _hash(self._facts(rows, trained=True))
        facts = self._stored(expert, folder)
        trained_now = facts is None
        if facts is None:
            facts = self._trained(expert, rows, folder)
            setting.told(f"adapter of {skill}: loss {facts['loss']:.3f}, {facts['seconds']:.0f} s")
        return BankedAdapter(expert, folder, facts["tokens"], facts["seconds"], trained_now)

    def _stored(self, expert: str, folder: Path) -> dict[str, Any] | None:
        """Loads an adapter that is there whole; None where it is not."""
        try:
            facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            self.learner.experts.load(expert, folder)
        except (OSError, ValueError, ExpertError):
            return None
        return facts

    def _trained(self, expert: str, rows: tuple[Example, ...], folder: Path) -> dict[str, Any]:
        setting, learner, start = self._setting, self.learner, time.perf_counter()
        learner.add(expert, setting.seed)
        outcome = learner.train(expert, Lesson(rows, setting.seed, learner.epochs))
        facts = {
            "tokens": outcome.tokens,
            "seconds": time.perf_counter() - start,
            "loss": outcome.best_loss,
        }
        shutil.rmtree(folder, ignore_errors=True)
        staged = folder.with_name(f".{folder.name}")
        shutil.rmtree(staged, ignore_errors=True)
        learner.experts.save(expert, staged)
        (staged / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        staged.replace(folder)
        return facts

    def _features(self, rows: Sequence[Example]) -> Tensor:
        encoded = []
        for row in rows:
            ids = encode_prompt(row.turns[:-1], self.learner.base.tokenizer, self._setting.fmt)
            encoded.append(Encoded(tuple(ids), (False,) * len(ids), len(ids), row.key))
        return TrunkCache(self.learner.base, encoded, folder=self._setting.folder).features

    def _facts(self, rows: Sequence[Example] = (), *, trained: bool = False) -> dict[str, Any]:
        """All that decides what an adapter, or without rows the base, answers."""
        setting, base = self._setting, self.learner.base
        facts: dict[str, Any] = {
            "format": _FORMAT,
            "version": __version__,
            "base": base.fingerprint,
            "tap": base.anatomy.tap_layer,
            "place": [str(base.dtype), base.device.type],
            "prompts": asdict(setting.fmt),
            "rows": [row.key for row in rows],
        }
        if trained:
            expert = setting.learn.expert
            facts |= {
                "shape": [setting.rank, setting.alpha, expert.dropout, str(setting.targets)],
                "phase": asdict(phase_of(setting, self.learner.epochs)),
                "validation": setting.learn.validation_fraction,
                "seed": setting.seed,
            }
        return facts

    def _answers(self, expert: str) -> Path:
        if expert == BASE_NAME:
            return self._setting.shared / _ADAPTERS / f"base-{_hash(self._facts())}" / _ANSWERS
        folder = next(one.folder for one in self.adapters.values() if one.expert == expert)
        return folder / _ANSWERS


def _alone(experts: Sequence[str], weights: Sequence[float]) -> str | None:
    """The one expert that answers at weight one, `base` where none does; None for a mixture. What
    is under a millionth does not count, as in the pool's own scores."""
    rounded = [round(weight, 6) for weight in weights]
    used = [(name, weight) for name, weight in zip(experts, rounded, strict=True) if weight]
    if not used:
        return BASE_NAME
    return used[0][0] if len(used) == 1 and used[0][1] == 1 else None


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
