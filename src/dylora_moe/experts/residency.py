"""Which experts lie in one kind of memory: the least recently used are the first to leave.

Knows names, sizes and an order; how anything moves is not its business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator


class Residency:
    """Names in order of use with their sizes, and a number of bytes they should keep within.

    Attributes:
        max_bytes: the budget; None is no limit.
        held: bytes of all names.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self.max_bytes: int | None = None
        self.held = 0

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def __iter__(self) -> Iterator[str]:
        """The least recently used first."""
        return iter(tuple(self._sizes))

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, name: str, size: int) -> None:
        """A name that came, or has another size now, as the most recently used."""
        self.drop(name)
        self._sizes[name] = size
        self.held += size

    def use(self, name: str) -> None:
        """Marks a name as used now; nothing where it is not here."""
        if name in self._sizes:
            self._sizes[name] = self._sizes.pop(name)

    def drop(self, name: str) -> None:
        """A name that left; nothing where it is not here."""
        self.held -= self._sizes.pop(name, 0)

    def surplus(self, stay: Collection[str], coming: int = 0) -> list[str]:
        """Names that have to leave so that the rest fits, the least recently used first.

        Args:
            stay: must not leave; with them alone the budget may be exceeded.
            coming: bytes that are about to come.
        """
        if self.max_bytes is None:
            return []
        leaving, over = [], self.held + coming - self.max_bytes
        for name, size in self._sizes.items():
            if over <= 0:
                break
            if name not in stay:
                leaving.append(name)
                over -= size
        return leaving
