"""Where a run's numbers go: its own log always, TensorBoard and W&B where asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal

from dylora_moe.ports import Reporter, Run
from dylora_moe.training.reporters import JsonlReporter, Reporters, missing_extra

_NEEDED = {
    "tensorboard": ("TensorBoard", "torch.utils.tensorboard"),
    "wandb": ("Weights & Biases", "wandb"),
}


def require_extras(targets: Sequence[Literal["tensorboard", "wandb"]]) -> None:
    """Raises MissingExtraError for a target whose package cannot be imported."""
    for target in targets:
        what, module = _NEEDED[target]
        try:
            import_module(module)
        except ImportError as error:
            raise missing_extra(what, target, error) from error


def reporter_factory(
    targets: Sequence[Literal["tensorboard", "wandb"]], project: str
) -> Callable[[Run], Reporter]:
    """Makes a run's reporter.

    Args:
        project: what the pool is called in W&B.

    Raises:
        MissingExtraError: from the factory, where a target's package is not installed.
    """

    def make(run: Run) -> Reporter:
        reporters: list[Reporter] = [JsonlReporter(run.path)]
        if "tensorboard" in targets:
            from dylora_moe.training.tensorboard import TensorBoardReporter

            reporters.append(TensorBoardReporter(run.path, run.id))
        if "wandb" in targets:
            from dylora_moe.training.wandb import WandbReporter

            reporters.append(WandbReporter(run.path, f"{project}-{run.id}"))
        return Reporters(reporters)

    return make
