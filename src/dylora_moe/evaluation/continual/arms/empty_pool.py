"""A pool with no experts, made once for all that begin with one.

The base writes prompts for it, which takes longer than to learn a batch, and they are the same on
every stream.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dylora_moe import __version__
from dylora_moe.build.making import lasting_name
from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.arms.arm import Setting


def empty_pool(setting: Setting) -> Path:
    """The folder of an empty pool in the shared folder, for copying; made where it is not there.

    Args:
        setting: whose base, format of prompts, seed and number of own prompts it has.
    """
    base = setting.base()
    where = (lasting_name(base.name), str(base.dtype), base.device.type)
    own = setting.own_prompts
    facts = (__version__, base.fingerprint, where, setting.fmt, setting.seed, own)
    mark = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    path = setting.shared / f"empty-pool-{mark}"
    if not path.exists():
        setting.told("making an empty pool")
        Pool.create(
            path,
            setting.base_name,
            format=setting.fmt.kind,
            system=setting.fmt.system,
            device=setting.device,
            dtype=setting.dtype,
            seed=setting.seed,
            own_prompts=own,
        ).close()
    return path
