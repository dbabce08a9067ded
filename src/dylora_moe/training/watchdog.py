"""Warns early when a training goes wrong, one clear line each, with what to do.

Knows the numbers of each update; knows nothing of how they came about. What cannot end well raises
instead of warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dylora_moe.errors import TrainingError

GRADIENT_FLOOR = 1e-7
"""Norm of all of an expert's gradient below which nothing can be learned."""

_FAR_FACTOR, _FAR_NATS = 1.5, 0.5
_SMOOTHING = 0.9
_RISE = 1.2
_RISE_OF_BASE = 0.05
"""A rise also has to be this part of the base's loss: near zero every batch is a large rise."""
_MIN_LONG = 20
_STARVED, _CROWDED = 0.01, 0.98
_TRAFFIC_UPDATES = 10


@dataclass(frozen=True, slots=True)
class Update:
    """The numbers of one optimizer step, before it is taken.

    Attributes:
        rows: indices of the rows it saw.
        loss: token-mean answer loss, as it is: nan and inf are not hidden.
        parts: the gate's losses by their logged names; empty where the gate does not learn.
        gradient_norms: before clipping, by group: expert id and `router`.
        silent: names of trainable tensors without any gradient.
        usage: mean weight of each expert over the rehearsed rows; empty where unknown. What goes
            to no expert is missing from the sum, so only their proportions are looked at.
    """

    rows: Sequence[int]
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    silent: Sequence[str] = ()
    usage: Mapping[str, float] = field(default_factory=dict)


class Watchdog(TrainerCallback):
    """Looks at every update before its optimizer step.

    Args:
        phase: name of the phase, for the messages.
        steps: optimizer steps of the phase.
        learning_rate: its highest rate, for the messages.
        warn: is told every warning once.
    """

    def __init__(
        self, phase: str, steps: int, learning_rate: float, warn: Callable[[str], None]
    ) -> None:
        self.phase = phase
        self.learning_rate = learning_rate
        self.update: Update | None = None
        self.base_loss: float | None = None
        self.is_fresh = False
        """Whether the expert changes nothing yet; one that learned before begins below the base."""
        self._long = max(_MIN_LONG, steps // 10)
        self._warn = warn
        self._told: set[str] = set()
        self._smooth: float | None = None
        self._lowest = math.inf
        self._rising = 0
        self._usage: dict[str, float] = {}
        self._seen = 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the update that is about to be taken.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        if self.update is not None:
            self.look(self.update, state.global_step)

    def look(self, update: Update, step: int) -> None:
        """Checks one update; see `on_pre_optimizer_step`."""
        self._finite(update, step)
        self._first(update, step)
        self._gradients(update, step)
        self._trend(update.loss)
        self._traffic(update)
        self._seen += 1

    def _finite(self, update: Update, step: int) -> None:
        values = {"answer loss": update.loss, **update.parts}
        values |= {f"gradient of {name}": norm for name, norm in update.gradient_norms.items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            rows = ", ".join(str(row) for row in list(update.rows)[:8])
            raise TrainingError(
                f"{self.phase}, step {step + 1}: {'; '.join(bad)} (rows {rows}); lower "
                f"learning_rate (now {self.learning_rate:g}), or load the base in bf16 or fp32"
            )

    def _first(self, update: Update, step: int) -> None:
        if step or self.base_loss is None:
            return
        if update.loss > _FAR_FACTOR * self.base_loss + _FAR_NATS:
            self._tell(
                "first",
                f"the first loss is {update.loss:.3f}, far above the base's {self.base_loss:.3f} "
                "on the same rows: check what the expert starts from and its neighbours "
                "(collaboration), and the masks with: dylora data preview FILE",
            )
        elif self.is_fresh and self.base_loss > _FAR_FACTOR * update.loss + _FAR_NATS:
            self._tell(
                "first",
                f"the first loss is {update.loss:.3f}, far below the base's {self.base_loss:.3f} "
                "on the same rows, though the expert has learned nothing: rows see answers that "
                "they must not (check the masks with: dylora data preview FILE), or a neighbour "
                "can do this already (lower collaboration, or learn with --into its skill)",
            )

    def _gradients(self, update: Update, step: int) -> None:
        # LoRA's A gets none in the first step, since B starts at zero; the gate's norm may be tiny.
        if update.silent and step >= 2:
            self._tell(
                "silent",
                f"{len(update.silent)} trainable tensors get no gradient ({update.silent[0]}, ...) "
                f"at step {step + 1}: they will not learn; check the expert's targets",
            )
        for name, norm in update.gradient_norms.items():
            if name != "router" and norm < GRADIENT_FLOOR:
                self._tell(
                    f"floor {name}",
                    f"the gradient of {name} has norm {norm:.1e} at step {step + 1}, under "
                    f"{GRADIENT_FLOOR:.0e}: it learns nothing; raise its weight in the mixture "
                    "(lower collaboration) or load the base in bf16 or fp32",
                )

    def _trend(self, loss: float) -> None:
        if self._smooth is None:
            self._smooth = loss
        self._smooth = _SMOOTHING * self._smooth + (1 - _SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smooth)
        bound = max(_RISE * self._lowest, self._lowest + _RISE_OF_BASE * (self.base_loss or 0.0))
        self._rising = self._rising + 1 if self._smooth > bound else 0
        if self._rising >= self._long:
            self._tell(
                "rising",
                f"the loss has stayed above its lowest ({self._smooth:.3f} against "
                f"{self._lowest:.3f}) for {self._rising} steps: lower learning_rate (now "
                f"{self.learning_rate:g}) or lengthen the warm-up",
            )

    def _traffic(self, update: Update) -> None:
        total = sum(update.usage.values())
        for name, weight in update.usage.items():
            # The base's own prompts are rehearsed too and weigh on no expert.
            share = weight / total if total > 0 else 0.0
            before = self._usage.get(name, share)
            self._usage[name] = _SMOOTHING * before + (1 - _SMOOTHING) * share
        if len(self._usage) < 2 or self._seen < _TRAFFIC_UPDATES:
            return
        for name, share in self._usage.items():
            if share < _STARVED / len(self._usage):
                self._tell(
                    f"starved {name}",
                    f"{name} gets no traffic ({share:.2%} of what the experts get of the "
                    "rehearsed rows): raise the router's balance coefficient, or remove it: "
                    f"dylora experts remove POOL {name}",
                )
            elif share > _CROWDED:
                self._tell(
                    f"crowded {name}",
                    f"{name} gets all of the traffic ({share:.1%} of what the experts get of the "
                    "rehearsed rows): raise the router's balance or rehearsal coefficient, or "
                    "lower gate_learning_rate",
                )

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._warn(f"{self.phase}: {message}")


def under(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers whose names begin so, by the rest of their names."""
    return {
        key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)
    }
