"""Gates of a batch whose router decides for each token, by what stands before it in its row.

Knows rows and the tap's hidden states; knows no cache: what a row's next decision goes on from is
the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.tap import Hiddens, Prefix, running_features
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.serving.engine.row import Row
from dylora_moe.serving.engine.versions import Ref, Versions


def token_gates(
    rows: Sequence[Row],
    hiddens: Hiddens,
    mask: Bool[Tensor, "batch seq"],
    versions: Versions,
    *,
    begin: bool = False,
) -> Gates | None:
    """Weights of each token of a pass, and each row's prefix moved on.

    Rows that were begun by another revision's router go on with that one.

    Args:
        rows: those of the pass.
        hiddens: what the tap's reader heard.
        mask: False on padding, which gets no expert.
        versions: which adapter is which version.
        begin: whether the rows begin here.
    """
    running = running_features(hiddens, mask, prefix=None if begin else _prefix(rows, hiddens))
    refs: dict[Ref, int] = {}
    columns: list[Tensor] = []
    decided = _decided(rows, running.features, mask)
    shape = mask.shape

    def column(ref: Ref) -> Tensor:
        if ref not in refs:
            refs[ref] = len(columns)
            columns.append(torch.zeros(shape, device=mask.device))
        return columns[refs[ref]]

    for index, row in enumerate(rows):
        if not row.by_token:
            for ref, weight in row.weights.items():
                column(ref)[index] = weight * mask[index]
            continue
        row.prefix = running.prefix.rows(torch.tensor([index]))
        weights, experts = decided[index]
        for number, expert in enumerate(experts):
            if bool(weights[:, number].any()):
                column((expert, row.versions[expert]))[index] = weights[:, number]
    if not columns:
        return None
    names = tuple(versions.adapter(ref) for ref in refs)
    return Gates.chosen(names, torch.stack(columns, -1))


def _prefix(rows: Sequence[Row], hiddens: Hiddens) -> Prefix:
    """What the rows go on from; nothing for those that are not routed by token."""
    width, device = sum(hidden.shape[-1] for hidden in hiddens), hiddens[0].device
    nothing = Prefix(torch.zeros(1, width, device=device), torch.zeros(1, 1, device=device))
    parts = [row.prefix or nothing for row in rows]
    return Prefix(
        torch.cat([part.total for part in parts]), torch.cat([part.count for part in parts])
    )


def _decided(
    rows: Sequence[Row], features: Float[Tensor, "batch seq d_features"], mask: Tensor
) -> dict[int, tuple[Float[Tensor, "seq n_experts"], tuple[str, ...]]]:
    """Each routed row's weights by its own router, its last token's noted."""
    found = {}
    routers: dict[DynamicHybridRouter, list[int]] = {}
    for index, row in enumerate(rows):
        if row.by_token:
            routers.setdefault(row.router, []).append(index)
    for router, indices in routers.items():
        routing = router(features[indices], mask[indices]).masked(mask[indices])
        last = routing.weights[:, -1].tolist()
        none, entropy = routing.none[:, -1].tolist(), routing.entropy[:, -1].tolist()
        for place, index in enumerate(indices):
            named = dict(zip(routing.experts, last[place], strict=True))
            rows[index].routed_by(named, none[place], entropy[place])
            found[index] = routing.weights[place], routing.experts
    return found
