"""Draws of a seed's own, that move nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """What is drawn within comes from the seed, and torch's own state is afterwards as before.

    Args:
        seed: of the draws; torch's own state, which then moves on, where None.
        device: that draws besides the CPU.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
