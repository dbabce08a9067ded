"""Numbers to Weights & Biases; the only file that needs the extra `wandb`.

Works without a network too: `WANDB_MODE=offline` writes the run under the run's folder, and
`wandb sync` sends it later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dylora_moe.training.reporters import histograms_of, missing_extra, numbers_of


class WandbReporter:
    """Scalars, histograms and texts under the keys they are logged by.

    Args:
        folder: the run's folder; W&B's own files go to `wandb` in it.
        name: the run's name.
        project: W&B's project.
        mode: `online`, `offline` or `disabled`; what `WANDB_MODE` says where None.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "run",
        *,
        project: str = "dylora-moe",
        mode: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("Weights & Biases", "wandb", error) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._histogram: Any = wandb.Histogram
        # The same id after an interruption continues the run instead of starting a second one.
        self._run: Any = wandb.init(
            project=project, name=name, id=name, dir=str(folder), mode=mode, resume="allow"
        )

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Sends the values; without a step, at the last one."""
        row: dict[str, Any] = dict(numbers_of(values))
        for key, (counts, edges) in histograms_of(values).items():
            row[key] = self._histogram(np_histogram=(counts, edges))
        row.update({key: value for key, value in values.items() if isinstance(value, str)})
        self._run.log(row, step=step)

    def close(self) -> None:
        """Ends the run and waits until its files are written."""
        self._run.finish()
