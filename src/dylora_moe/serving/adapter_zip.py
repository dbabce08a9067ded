"""A version of an expert as one ZIP file, made while it is sent: a plain PEFT adapter.

Every file is checked by its hash before the first byte goes out. Knows files; knows no HTTP.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import IO, cast

from dylora_moe.ports import ArtifactStore
from dylora_moe.records import ExpertVersion

PIECE = 1 << 18
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same version is the same bytes, whenever it is asked for."""


class _Sink:
    """What a ZIP is written to and read from in pieces; it cannot be sought in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, body: bytes) -> int:
        self._pieces.append(bytes(body))
        return len(body)

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body


def adapter_zip(artifacts: ArtifactStore, version: ExpertVersion) -> Iterator[bytes]:
    """The pieces of the file.

    Raises:
        ArtifactError: a file is missing or damaged; at the call, before there is any piece.
    """
    files = [artifacts.open(each) for each in version.files]

    def pieces() -> Iterator[bytes]:
        sink = _Sink()
        # Weights do not get smaller by compression.
        with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as packed:
            for file in files:
                entry = zipfile.ZipInfo(f"{version.alias}/{file.name}", _EPOCH)
                with file.open("rb") as source, packed.open(entry, "w", force_zip64=True) as into:
                    while piece := source.read(PIECE):
                        into.write(piece)
                        yield sink.taken()
        yield sink.taken()

    return pieces()
