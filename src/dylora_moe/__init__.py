"""DyLoRA-MoE: one frozen language model, a pool of LoRA experts that grows by itself.

Importing this does nothing heavy: `Pool` is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Pool", "__version__"]

if TYPE_CHECKING:
    from dylora_moe.build.pool import Pool


def __getattr__(name: str) -> object:
    if name == "Pool":
        from dylora_moe.build.pool import Pool

        return Pool
    raise AttributeError(f"module 'dylora_moe' has no attribute '{name}'")
