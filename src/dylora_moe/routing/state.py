"""A router as bytes and back: rows, statistics, correction, maturities, thresholds.

Knows the whole state of the router; knows no files (storage writes the bytes and hashes them).
"""

from __future__ import annotations

import torch

from dylora_moe.errors import ArtifactError
from dylora_moe.foundation import tensor_bytes
from dylora_moe.foundation.statistics import pack_symmetric, unpack_symmetric
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.rows import Class, Row, RowTable

_FORMAT = 1


def to_bytes(router: DynamicHybridRouter) -> bytes:
    """Everything the router knows, as safetensors with a JSON header."""
    table = router.table
    tensors = {f"module.{name}": value for name, value in router.state_dict().items()}
    tensors["shared.total"] = pack_symmetric(table.shared.total)
    if table.fitted:
        tensors["means"] = torch.stack([one.mean for one in table.fitted])
    header = {
        "kind": "router",
        "format": _FORMAT,
        "settings": {
            "d_features": router.d_features,
            "top_k": router.rule.top_k,
            "gate": router.gate,
            "granularity": router.granularity,
            "hidden": router.hidden,
            "shrinkage": table.shrinkage,
            "none_bias": router.none_bias,
            "none_threshold": router.none_threshold,
            "none_share": router.none_share,
            "mix_temperature": router.rule.mix_temperature,
            "dense_above": router.rule.dense_above,
            "unsure_above": router.rule.unsure_above,
            "seed": router.seed,
        },
        "progress": router.rule.progress,
        "rows": [[row.skill_id, row.expert_id] for row in router.rows],
        "counts": [one.count for one in table.fitted],
        "has_none": table.has_none,
        "maturity": router.maturity,
    }
    return tensor_bytes.to_bytes(tensors, header)


def from_bytes(body: bytes) -> DynamicHybridRouter:
    """The router of `to_bytes`, on the CPU, with the same answers bit for bit.

    Raises:
        ArtifactError: the bytes are damaged or are not a router of this format.
    """
    tensors, header = tensor_bytes.from_bytes(body, "router")
    if header.get("format") != _FORMAT:
        raise ArtifactError(
            f"the router was written in format {header.get('format')} and this program reads "
            f"{_FORMAT}; update it"
        )
    router = DynamicHybridRouter(**header["settings"])
    rows = tuple(Row(skill, expert) for skill, expert in header["rows"])
    means = tensors.get("means", torch.zeros(0, router.d_features, dtype=torch.float64))
    classes = tuple(Class(n, mean) for n, mean in zip(header["counts"], means, strict=True))
    table = RowTable(router.d_features, router.table.shrinkage)
    table.rows = rows
    table.none = classes[0] if header["has_none"] else None
    table.classes = classes[1:] if header["has_none"] else classes
    table.shared.total = unpack_symmetric(tensors["shared.total"], router.d_features)
    table.shared.count = sum(header["counts"])
    table.shared.classes = len(classes)
    router.restore(
        table,
        {name.removeprefix("module."): t for name, t in tensors.items() if "module." in name},
        header["maturity"],
    )
    router.anneal(header["progress"])
    return router
