"""Experts on their way into the layers: read, checked and copied to the device in the background.

Knows streams and threads; knows nothing of who asked, nor of what leaves for them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dylora_moe.experts.adapter_files import StoredExpert
from dylora_moe.experts.packed import Packed
from dylora_moe.experts.prefetch import Prefetcher


@dataclass(frozen=True, eq=False)
class Arrival:
    """An expert's numbers, read.

    Attributes:
        packed: on the CPU.
        copied: on the device, where the copy was begun ahead.
        ready: when that copy is done.
    """

    packed: Packed
    copied: Packed | None = None
    ready: torch.cuda.Event | None = None

    def on(self, device: torch.device) -> Packed:
        """The numbers on the device, in order with what its current stream does."""
        if self.copied is None or self.copied.flat.device != device:
            return self.packed.to(device)
        if self.ready is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.ready)
            # The copy's memory belongs to the side stream, which must not reuse it too early.
            self.copied.flat.record_stream(stream)
        return self.copied


class Arrivals:
    """What was begun and not taken yet. Not locked itself."""

    def __init__(self) -> None:
        self._prefetcher: Prefetcher[Arrival] = Prefetcher()
        self._sizes: dict[str, int] = {}
        self._stream: torch.cuda.Stream | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._prefetcher

    def begin(self, name: str, source: StoredExpert | Packed, device: torch.device) -> None:
        """Begins to bring an expert; nothing where it is on its way.

        Args:
            name: of the expert.
            source: its files, or its numbers in CPU memory.
            device: of the layers.
        """
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        work = functools.partial(_arrive, source, self._stream)
        self._prefetcher.begin(name, work)
        self._sizes[name] = source.layout.bytes

    def fits(self, size: int, budget: int | None) -> bool:
        """Whether one more of this size may be on its way."""
        return budget is None or sum(self._sizes.values()) + size <= budget

    def make_room(self, sizes: Mapping[str, int], budget: int | None) -> None:
        """Forgets what is there and was never taken, the oldest first, until these fit."""
        coming = sum(size for name, size in sizes.items() if name not in self._prefetcher)
        for name in self._prefetcher.names:
            if self.fits(coming, budget):
                return
            if name not in sizes and self._prefetcher.is_done(name):
                self.forget(name)

    def take(self, name: str) -> Arrival:
        """Waits for an expert; raises what its reading raised, once."""
        self._sizes.pop(name, None)
        return self._prefetcher.take(name)

    def forget(self, name: str) -> None:
        """Nobody will take it."""
        self._sizes.pop(name, None)
        self._prefetcher.forget(name)

    def close(self) -> None:
        """Forgets everything."""
        self._sizes.clear()
        self._prefetcher.close()


def _arrive(source: StoredExpert | Packed, stream: torch.cuda.Stream | None) -> Arrival:
    packed = source if isinstance(source, Packed) else source.read()
    if stream is None:
        return Arrival(packed)
    with torch.cuda.stream(stream):
        copied = packed.to(stream.device)
        return Arrival(packed, copied, stream.record_event())
