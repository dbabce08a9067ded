"""Which experts' tensors lie on the device: the least recently used leave first.

Knows names, sizes and an order; how tensors move is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable


class Residency:
    """Keeps the experts in use on the device, within a number of bytes.

    Args:
        move: takes a name and whether to bring it to the device (else to the CPU).
        size: bytes of an expert.
    """

    def __init__(self, move: Callable[[str, bool], None], size: Callable[[str], int]) -> None:
        self._move = move
        self._size = size
        self._order: dict[str, bool] = {}
        self.max_bytes: int | None = None

    @property
    def offloaded(self) -> tuple[str, ...]:
        """Experts whose tensors lie on the CPU to save the device's memory."""
        return tuple(name for name, resident in self._order.items() if not resident)

    def add(self, name: str) -> None:
        """A new expert, on the device, the most recently used."""
        self._order[name] = True

    def drop(self, name: str) -> None:
        """An expert that was removed."""
        self._order.pop(name)

    def leave(self, name: str) -> None:
        """Moves an expert to the CPU; nothing if it is there."""
        if self._order[name]:
            self._move(name, False)
            self._order[name] = False

    def touch(self, names: Iterable[str], stay: Collection[str]) -> None:
        """Brings the named experts to the device, then makes room.

        Args:
            names: used now; they stay whatever their size.
            stay: experts that must not leave (those in training).
        """
        used = tuple(names)
        for name in used:
            resident = self._order.pop(name)
            if not resident:
                self._move(name, True)
            self._order[name] = True
        self.make_room({*used, *stay})

    def make_room(self, stay: Collection[str]) -> None:
        """Moves the least recently used experts away until the rest fits into `max_bytes`."""
        if self.max_bytes is None:
            return
        held = sum(self._size(name) for name, resident in self._order.items() if resident)
        for name in [name for name, resident in self._order.items() if resident]:
            if held <= self.max_bytes:
                return
            if name not in stay:
                held -= self._size(name)
                self.leave(name)
