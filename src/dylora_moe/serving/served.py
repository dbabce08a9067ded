"""What a server has at hand, for every group of its routes.

Knows which parts there are; what each does stands with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dylora_moe.serving.engine.protocol import Engine
from dylora_moe.serving.jobs import Jobs

if TYPE_CHECKING:
    from dylora_moe.build.reader import PoolReader


@dataclass(frozen=True, eq=False)
class Served:
    """A pool that is being served.

    Attributes:
        pool: its registry and files, to be read; its `live` belongs to the engine alone.
        engine: answers, and does whatever needs the model.
        name: what clients call the pool, as `model`.
        jobs: run what changes the pool; None where nobody may change it from here.
    """

    pool: PoolReader
    engine: Engine
    name: str
    jobs: Jobs | None = None
