"""What an arm is, and what every arm of a run is given.

An arm is one way of learning a stream: it trains on it as it may and answers all test rows. Knows
the form of an arm; knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.config import LearnSettings
from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.evaluation.continual.streams import Stream
from dylora_moe.experts.sites import Targets
from dylora_moe.foundation.base import Base
from dylora_moe.records import Example
from dylora_moe.text.template import PromptFormat

ArmKind = Literal["pool", "untrained", "trained", "sized"]
"""A pool learns the batches as they come; the others are told more: nothing to train, or how many
tokens the arm `ours` took, or how many experts it grew, too."""


@dataclass(frozen=True)
class Setting:
    """What an arm works with; the same for every arm of a stream and a seed.

    Attributes:
        skills: whose `test` rows are answered; their `train` rows are in the stream.
        stream: what is learned, with the truth, which only arms that are told may use.
        seed: of whatever an arm draws.
        epochs: over the rows of a visit.
        rank, alpha: of every adapter.
        learning_rate: the peak of a cosine over each visit.
        batch_rows: rows of an optimizer step.
        targets: linear layers that are adapted, in the blocks above the tap.
        learn: how this project's pool learns; the figures above are taken from it.
        base: loads the base anew, so that no arm finds another's adapters in it.
        base_name: what it is loaded by.
        device, dtype: of the base; what there is where None.
        fmt: how prompts are written.
        neutral: rows of no skill of the stream; the losses on them are `ArmResult.neutral`.
        folder: this arm's own; what is left there may be used to go on after an interruption.
        shared: of all arms, streams and seeds: what lies there is known by all that decided it.
        told: is told of each step in one line.
        own_prompts: how many the base writes by itself, which *no expert* is fitted on.
        every_visit: answer test rows after each visit, not at the end only.
        ours_tokens: `ArmResult.trained_tokens` of the arm `ours` on this stream, for arms that are
            to have as many; None where it did not run before.
        ours_experts: how many experts it grew there, for arms that are to have as many; None as
            above.
        ours_folder: where the arm `ours` learned this very stream, for arms that begin with its
            pool; None where it did not.
    """

    skills: tuple[SkillRows, ...]
    stream: Stream
    seed: int
    epochs: float
    rank: int
    alpha: float
    learning_rate: float
    batch_rows: int
    targets: Targets
    learn: LearnSettings
    base: Callable[[], Base]
    base_name: str
    fmt: PromptFormat
    neutral: tuple[Example, ...]
    folder: Path
    shared: Path
    told: Callable[[str], None]
    own_prompts: int = OWN_PROMPTS
    every_visit: bool = True
    ours_tokens: int | None = None
    ours_experts: int | None = None
    ours_folder: Path | None = None
    device: str | None = None
    dtype: str | None = None

    @property
    def test_rows(self) -> tuple[tuple[str, Example], ...]:
        """Every test row with its skill's name, skill by skill."""
        return tuple((skill.name, row) for skill in self.skills for row in skill.test)

    def asked_after(self, visit: int) -> tuple[int, ...]:
        """Which of `test_rows` are answered after a visit, by index.

        After the last one all; before it, the rows of the skills that were learned, which may be
        forgotten, and of the next one, which shows what earlier ones did for it. Nothing else is in
        any figure, and rows that nobody learned cost the most to answer.

        Args:
            visit: counted from 1.
        """
        order = [one.skill for one in self.stream.truth.visits]
        if visit >= len(order):
            return tuple(range(len(self.test_rows)))
        known = set(order[: visit + 1]) if self.every_visit else set[str]()
        return tuple(row for row, (skill, _) in enumerate(self.test_rows) if skill in known)

    def whole_after(self, visit: int) -> bool:
        """Whether answers are written to their ends, counted like `asked_after`: after the last
        visit, whose figures are of more than scores."""
        return visit >= len(self.stream.truth.visits)


class Arm(Protocol):
    """One way of learning a stream."""

    @property
    def name(self) -> str:
        """In the catalogue, in files and on the command line."""
        ...

    @property
    def title(self) -> str:
        """For people."""
        ...

    @property
    def streams(self) -> frozenset[str]:
        """Kinds of streams it can learn."""
        ...

    @property
    def kind(self) -> ArmKind:
        """What it is told."""
        ...

    def run(self, setting: Setting) -> ArmResult:
        """Learns the stream and answers the test rows.

        Raises:
            DyLoRAError: whatever a base, a row or a training says.
        """
        ...
