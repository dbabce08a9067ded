"""Numbers into TensorBoard's event files; the only file that needs the extra `tensorboard`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from dylora_moe.training.reporters import histograms_of, missing_extra, numbers_of


class TensorBoardReporter:
    """Scalars, histograms and texts under the keys they are logged by.

    Args:
        folder: the run's folder; the event files go to `tensorboard/<name>` in it.
        name: the run's name.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, name: str = "run") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("TensorBoard", "tensorboard", error) from error
        self.folder = folder / "tensorboard" / name
        self._writer = SummaryWriter(str(self.folder))
        self._step = 0

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Writes the values; without a step, at the last one."""
        self._step = self._step if step is None else step
        for key, number in numbers_of(values).items():
            self._writer.add_scalar(key, number, self._step)
        for key, (counts, edges) in histograms_of(values).items():
            centres = [(low + high) / 2 for low, high in pairwise(edges)]
            self._writer.add_histogram_raw(
                key,
                min=edges[0],
                max=edges[-1],
                num=int(sum(counts)),
                sum=sum(n * x for n, x in zip(counts, centres, strict=True)),
                sum_squares=sum(n * x * x for n, x in zip(counts, centres, strict=True)),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=self._step,
            )
        for key, value in values.items():
            if isinstance(value, str) and key != "phase":
                self._writer.add_text(key, value, self._step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()
