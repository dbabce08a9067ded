"""LoRAs on one frozen base, trained and asked in the one way that all arms have in common.

What the arms of the bench differ in is which rows an adapter sees, when, and who answers. All else
is here, and is the pool's own: the blocks above the tap, rank, targets, optimizer, rate, rows of a
step, the tap's cached states, `training.expert.train_expert`; and as many epochs as make the tokens
that the pool took in all, which goes over some rows more often than others.

Of the rows given, those that the pool would validate on (`text.split`, by each row's own hash)
choose the epoch whose weights are kept, and the others train. The pool does the same with the same
rows, so that its experts and an arm's adapters have trained on the very same ones, and no arm is
ahead by rows or by a better stop. Where no row falls on the side of validation, the training rows
choose.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dylora_moe.evaluation.continual.answers import Questions, encoded, questions, text_losses
from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.results import ArmResult, Stage, TextLoss, mean_loss
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import Example
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing
from dylora_moe.text.split import validates
from dylora_moe.text.template import encode_all
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.objective import Penalty
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows

_OWN = "own"


@dataclass(frozen=True)
class Lesson:
    """What an adapter is to learn.

    Attributes:
        rows: of a visit, or of all there are.
        seed: of their order.
        epochs: over them; may be a fraction.
    """

    rows: tuple[Example, ...]
    seed: int
    epochs: float


class LoraLearner:
    """A base that was loaded for one arm, with the arm's adapters on it.

    Args:
        setting: of the arm.

    Attributes:
        model: the base with the adapters; its router has no rows until an arm gives it some.
        trained_tokens: real tokens of all training passes so far.
        started: when it was made, by `time.perf_counter`.
    """

    def __init__(self, setting: Setting) -> None:
        self.started = time.perf_counter()
        self._setting = setting
        self.base = setting.base()
        self.experts = ExpertManager(self.base.model, self.base.anatomy, base_name=self.base.name)
        router = DynamicHybridRouter(self.base.anatomy.d_features)
        self.model = DyLoRAMoE(self.base, router, self.experts)
        self.trained_tokens = 0

    @cached_property
    def asked(self) -> Questions:
        """The test rows."""
        setting = self._setting
        return questions(self.base, setting.fmt, setting.test_rows, setting.folder)

    @cached_property
    def epochs(self) -> float:
        """Epochs over all rows of the stream that make as many tokens as this project's pool took
        for it, to a hundredth; the setting's where that is not known, and never fewer: where the
        pool took less than those, the other arms are ahead by the rest."""
        setting = self._setting
        if not setting.ours_tokens:
            return setting.epochs
        rows = [row for batch in setting.stream.batches for row in batch]
        train, _ = sides(rows, setting.learn.validation_fraction)
        found, _ = encode_all(train, self.base.tokenizer, setting.fmt, self.base.context_length)
        return max(setting.epochs, round(setting.ours_tokens / sum(map(len, found)), 2))

    def encode(self, rows: Sequence[Example]) -> Rows:
        """Token ids and trunk states of rows."""
        return encoded(self.base, self._setting.fmt, rows, self._setting.folder)

    def add(self, name: str, seed: int) -> None:
        """An adapter that changes nothing yet.

        Args:
            name: `expert_` and letters or digits.
            seed: of its `A`.
        """
        setting = self._setting
        self.experts.create_expert(
            name,
            rank=setting.rank,
            alpha=setting.alpha,
            dropout=setting.learn.expert.dropout,
            targets=setting.targets,
            seed=seed,
        )

    def train(
        self,
        name: str,
        lesson: Lesson,
        *,
        beside: Sequence[str] = (),
        penalty: Penalty | None = None,
    ) -> TrainingOutcome:
        """Trains an adapter, and leaves its best weights in the model.

        Args:
            name: of an adapter, new or not.
            lesson: the rows.
            beside: frozen adapters that are added to it.
            penalty: a further term of the loss.

        Raises:
            TrainingError: what `train_expert` says.
        """
        setting = self._setting
        train, watched = sides(lesson.rows, setting.learn.validation_fraction)
        with tempfile.TemporaryDirectory(dir=setting.folder, prefix="training-") as folder:
            outcome = train_expert(
                self.model,
                name,
                train=self.encode(train),
                evaluation={_OWN: self.encode(watched)},
                target=_OWN,
                phases=[phase_of(setting, lesson.epochs)],
                beside=beside,
                penalty=penalty,
                folder=Path(folder),
                reporter=_Silent(),
                seed=lesson.seed,
                gradient_checkpointing=setting.learn.gradient_checkpointing,
                resume=False,
                on_warning=setting.told,
            )
        self.trained_tokens += outcome.tokens
        return outcome

    def neutral_losses(self, gates: Callable[[Rows], Gates | Routing]) -> tuple[TextLoss, ...]:
        """The losses on text of no skill; none where the setting has none.

        Args:
            gates: the weights of experts for each of the rows.
        """
        if not self._setting.neutral:
            return ()
        rows = self.encode(self._setting.neutral)
        return text_losses(rows, answer_losses(self.model, rows, gates=gates(rows)))

    def result(
        self,
        arm: str,
        stages: Sequence[Stage],
        gates: Callable[[Rows], Gates | Routing],
        details: Mapping[str, Any],
    ) -> ArmResult:
        """What an arm hands back that answers every row with all its adapters.

        Args:
            arm: its name.
            stages: as answered.
            gates: as of `neutral_losses`.
            details: of this arm alone.
        """
        setting, neutral = self._setting, self.neutral_losses(gates)
        return ArmResult(
            arm=arm,
            stream=setting.stream.kind,
            seed=setting.seed,
            stages=tuple(stages),
            trained_tokens=self.trained_tokens,
            seconds=self.seconds(),
            parameters=self.parameters(),
            parameters_in_use=float(self.parameters()),
            base_loss=mean_loss(neutral),
            neutral=neutral,
            details=details,
        )

    def parameters(self) -> int:
        """Of all adapters."""
        return sum(self.experts.parameter_count(name) for name in self.experts.names)

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self.started


def sides(
    rows: Sequence[Example], fraction: float
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The rows that train, and those that choose the epoch."""
    watched = tuple(row for row in rows if validates(row, fraction))
    train = tuple(row for row in rows if not validates(row, fraction))
    return train or tuple(rows), watched or tuple(rows)


def phase_of(setting: Setting, epochs: float) -> Phase:
    """The pool's consolidation at the setting's numbers, without collaboration and gate, and never
    stopped early."""
    values = setting.learn.consolidation.model_dump() | {
        "epochs": epochs,
        "learning_rate": setting.learning_rate,
        "batch_size": setting.batch_rows,
        "collaboration": (0.0, 0.0),
        "train_gate": False,
        "patience": max(1, round(epochs)) + 2,
    }
    return Phase(name="visit", scheduler=values.pop("schedule"), **values)


class _Silent:
    """A reporter that keeps nothing: what matters is in the outcome."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        return None

    def close(self) -> None:
        return None
