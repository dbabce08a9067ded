"""DyLoRA-MoE: one frozen language model, a pool of LoRA experts that grows by itself.

Importing this does nothing heavy: each name is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dylora_moe.build.pool import Pool
    from dylora_moe.config import LearnSettings
    from dylora_moe.experts.manager import ExpertManager
    from dylora_moe.lifecycle.learner import Learner
    from dylora_moe.model.dylora_moe import DyLoRAMoE
    from dylora_moe.routing.router import DynamicHybridRouter
    from dylora_moe.skills.library import SkillLibrary
    from dylora_moe.skills.novelty import NoveltyDetector

__version__ = "0.1.0"
__all__ = [
    "DyLoRAMoE",
    "DynamicHybridRouter",
    "ExpertManager",
    "LearnSettings",
    "Learner",
    "NoveltyDetector",
    "Pool",
    "SkillLibrary",
    "__version__",
]

_HOMES = {
    "DyLoRAMoE": "dylora_moe.model.dylora_moe",
    "DynamicHybridRouter": "dylora_moe.routing.router",
    "ExpertManager": "dylora_moe.experts.manager",
    "LearnSettings": "dylora_moe.config",
    "Learner": "dylora_moe.lifecycle.learner",
    "NoveltyDetector": "dylora_moe.skills.novelty",
    "Pool": "dylora_moe.build.pool",
    "SkillLibrary": "dylora_moe.skills.library",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dylora_moe' has no attribute '{name}'")
