"""What a phase keeps in memory while it runs and in its checkpoints, beside HF's own state.

Knows files of a checkpoint and random generators; knows nothing of when one is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dylora_moe.training.best import BestWeights, Weights
from dylora_moe.training.learnables import Learnables, read_weights, write_weights
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.meter import Meter
from dylora_moe.training.outcome import Freeze, Growth

PROGRESS_FILE = "progress.json"
BEST_FILE = "best.safetensors"
EARLIER_FILE = "earlier.safetensors"

Rng = tuple[Tensor, Tensor | None]
"""State of torch's generators: the CPU's, and the device's where it has its own."""


@dataclass(eq=False)
class Kept:
    """Counters and best weights.

    Attributes:
        best: the best weights so far.
        meter: counts over all phases.
        micro: how many tokens a forward pass may have.
        losses_seen: answer losses of the phase's first and last update.
        growths: of the rank in this phase.
        freezes: of blocks in this phase.
        earlier: the expert's matrices at the end of the last epoch, where blocks may freeze.
    """

    best: BestWeights
    meter: Meter
    micro: MicroBatches
    losses_seen: list[float] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    earlier: Weights = field(default_factory=dict)

    @property
    def learns_from(self) -> int:
        """The first block that learns; 0: all do. Since the last growth, which lets all learn."""
        since = self.growths[-1].step if self.growths else -1
        return max((one.block for one in self.freezes if one.step > since), default=0)

    def see(self, loss: float) -> None:
        """Takes note of an update's loss."""
        self.losses_seen = [*self.losses_seen[:1], loss]

    def write(self, folder: Path, learnables: Learnables) -> None:
        """Writes itself and the weights as they are now."""
        write_weights(folder, learnables.copy())
        write_weights(folder, self.best.weights, BEST_FILE)
        if self.earlier:
            write_weights(folder, self.earlier, EARLIER_FILE)
        progress = {
            "best": self.best.state(),
            "meter": self.meter.state(),
            "pass_tokens": self.micro.tokens,
            "losses_seen": self.losses_seen,
            "growths": [asdict(one) for one in self.growths],
            "freezes": [asdict(one) for one in self.freezes],
        }
        (folder / PROGRESS_FILE).write_text(json.dumps(progress), encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Takes up what was written; the weights are loaded by `read_weights`."""
        progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.best.load(progress["best"], read_weights(folder, BEST_FILE))
        self.meter.load(progress["meter"])
        self.micro.tokens = progress["pass_tokens"]
        self.losses_seen = progress["losses_seen"]
        self.growths = [Growth(**one) for one in progress["growths"]]
        self.freezes = [Freeze(**one) for one in progress["freezes"]]
        if (folder / EARLIER_FILE).exists():
            self.earlier = read_weights(folder, EARLIER_FILE)


def rng_state(device: torch.device) -> Rng:
    """The generators that dropout draws from."""
    return torch.get_rng_state(), (
        torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    )


def restore_rng(state: Rng, device: torch.device) -> None:
    """The inverse of `rng_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
