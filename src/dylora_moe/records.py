"""Plain facts that rooms hand to each other: immutable, without behaviour beyond derived names.

Knows no model library and no storage. Every class here can be written as JSON with
`dataclasses.asdict` and read back with its `from_json`, if it has one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Check = Literal["exact", "json", "f1", "number", "tests"]
VerdictName = Literal["novel", "covered", "revised", "known", "unsure"]

BASE_NAME = "base"
"""What people write for "no expert": the frozen base model alone."""

EXPERT_PREFIX = "expert_"
"""Adapter names carry it, since PEFT loses tensors of adapters named like numbers or modules."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data: a conversation that ends with the assistant's answer.

    Attributes:
        turns: at least one; the last has role `assistant`. Plain text is a single assistant turn.
        check: how a generated answer is scored against the last turn.
        tests: Python asserts for `check == "tests"`.
        origin: where it was read, as `file:line`; not part of the identity.
    """

    turns: tuple[Turn, ...]
    check: Check = "exact"
    tests: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)

    @property
    def prompt(self) -> str:
        """The turns before the answer, joined by newlines; empty for plain text."""
        return "\n".join(turn.content for turn in self.turns[:-1])

    @property
    def completion(self) -> str:
        """The answer: the content of the last turn."""
        return self.turns[-1].content

    @property
    def key(self) -> str:
        """SHA-256 of the turns, in hex: stable over files, order and versions."""
        return turns_key(self.turns)


def pair(prompt: str, completion: str, check: Check = "exact", origin: str = "") -> Example:
    """An example of one user turn and one answer."""
    return Example((Turn("user", prompt), Turn("assistant", completion)), check, origin=origin)


def turns_key(turns: Sequence[Turn]) -> str:
    """SHA-256 of turns, in hex: what the same prompt is known by wherever it was asked."""
    body = json.dumps([[t.role, t.content] for t in turns], ensure_ascii=False)
    return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A prompt that no skill claimed, as the pool's inbox keeps it.

    Attributes:
        turns: what was asked: the turns before an answer.
        count: how many times.
        first, last: when, ISO 8601.
    """

    turns: tuple[Turn, ...]
    count: int
    first: str
    last: str

    @property
    def prompt(self) -> str:
        """The turns, joined by newlines."""
        return "\n".join(turn.content for turn in self.turns)

    @property
    def key(self) -> str:
        """`turns_key` of the turns."""
        return turns_key(self.turns)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One batch of data as it came in: a file, or a slice of a stream.

    `validation` is None where the person named none; then the split by content hash makes one.
    """

    name: str
    examples: tuple[Example, ...]
    validation: tuple[Example, ...] | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the pool: path relative to the pool's folder, and its SHA-256 in hex."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ExpertVersion:
    """One immutable version of an expert.

    Attributes:
        expert_id: stable name with the reserved prefix, e.g. `expert_3`; the name in PEFT.
        alias: what people call it; renaming moves the alias and leaves the id.
        version: counts from 1.
        lora_config: PEFT's configuration as JSON values.
        storage_path: folder of the adapter, relative to the pool.
        files: every file of that folder with its hash (the first is the weights).
        maturity: 0 (just created) to 1 (mature).
        parents: `expert_id@version` of what it was started from.
        history: numbers of its training by phase (losses, steps, tokens, seconds).
    """

    expert_id: str
    skill_id: str
    alias: str
    version: int
    lora_config: Mapping[str, Any]
    storage_path: str
    files: tuple[Artifact, ...]
    maturity: float
    parents: tuple[str, ...] = ()
    history: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the weights file."""
        return self.files[0].sha256

    @property
    def ref(self) -> str:
        return f"{self.expert_id}@{self.version}"

    @property
    def maturity_state(self) -> Literal["young", "growing", "mature"]:
        if self.maturity >= MATURE_FROM:
            return "mature"
        return "growing" if self.maturity >= 0.5 else "young"


MATURE_FROM = 0.8
"""An expert whose maturity is at least this is routed sparsely."""


@dataclass(frozen=True, slots=True)
class SkillRecord:
    """A cluster of data the router knows: a row of the gate.

    `expert_id` is the expert its inputs go to; several skills may share one (verdict *covered*).
    `examples` and `validation` are content-addressed JSONL files, oldest first; `features` is the
    safetensors file with statistics and stored tap features.
    """

    skill_id: str
    name: str
    expert_id: str
    version: int
    count: int
    examples: tuple[Artifact, ...]
    features: Artifact
    validation: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolRevision:
    """What the pool is at one moment; immutable. The pool's state is a pointer to one of these."""

    number: int
    parent: int | None
    experts: tuple[ExpertVersion, ...]
    skills: tuple[SkillRecord, ...]
    router: Artifact | None
    scores: Artifact | None
    note: str
    created_at: str = ""

    def expert(self, name: str) -> ExpertVersion | None:
        """The expert with this alias or id, or None."""
        for found in self.experts:
            if name in (found.alias, found.expert_id):
                return found
        return None


@dataclass(frozen=True, slots=True)
class Event:
    """A decision, a change of routing strategy, a warning or an error, with its numbers."""

    kind: str
    numbers: Mapping[str, Any]
    message: str = ""
    run_id: str | None = None
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the novelty test says of one arrival.

    Attributes:
        name: one of the five verdicts.
        separability: AUC against the nearest skill (0.5 the same, 1.0 told apart), None when the
            pool is empty.
        fit: relative loss of the nearest expert on the answers: (expert - own validation loss) /
            (base - own validation loss); 0 as good as on its own data, 1 no better than the base.
            None when not measured.
        nearest: skill ids with their separability, nearest first.
        reason: one line for people.
        detector: the novelty test that says so.
        threshold: separability above which it counts as another skill; None where none was asked.
    """

    name: VerdictName
    separability: Interval | None
    fit: Interval | None
    nearest: tuple[tuple[str, float], ...]
    reason: str
    detector: str = "classifier"
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class SkillScore:
    """How the pool does on one skill's validation rows: token-mean answer loss, and accuracy
    (mean score of generated answers by their check; None where it was not generated)."""

    loss: float
    accuracy: float | None
    rows: int
