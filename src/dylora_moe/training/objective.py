"""What an expert and the gate are trained towards, besides the answers themselves.

Knows the router's probabilities and stored features; knows no text and no blocks. The router's
losses are taken once for a whole update, over features alone, so they do not depend on how the
update is cut into forward passes and never count padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.losses import balance_loss, entropy_loss, z_loss
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing


@dataclass(frozen=True, slots=True)
class RouterLossWeights:
    """Coefficients of the gate's losses; 0 leaves one out."""

    balance: float = 0.01
    z: float = 1e-4
    entropy: float = 0.0
    rehearsal: float = 1.0


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Stored features of every skill, so that the gate keeps what it knows while it learns.

    Attributes:
        features: tap features by skill id; `base` are prompts that go to no expert.
        per_skill: rows of each skill in one step; as many of each, so that balance is the right
            thing to ask for.
    """

    features: Mapping[str, Float[Tensor, "_ d_features"]]
    per_skill: int = 8

    def sample(
        self, router: DynamicHybridRouter, seed: int
    ) -> tuple[Float[Tensor, "n d_features"], Int[Tensor, n]]:
        """Rows of each skill, drawn by `seed`, and the row of the gate each belongs to.

        Raises:
            TrainingError: features of a skill that the router has no row for.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = {row.skill_id: index + 1 for index, row in enumerate(router.rows)}
        rows[BASE_NAME] = 0
        parts: list[Tensor] = []
        labels: list[int] = []
        for skill, features in self.features.items():
            if skill not in rows:
                raise TrainingError(
                    f"rehearsal has features of skill {skill}, which the router has no row for; "
                    "add the skill to the router first"
                )
            if rows[skill] == 0 and not router.table.has_none:
                continue
            count = min(self.per_skill, len(features))
            parts.append(features[torch.randperm(len(features), generator=generator)[:count]])
            labels += [rows[skill]] * count
        if not parts:
            return torch.empty(0, router.d_features), torch.empty(0, dtype=torch.long)
        return torch.cat([part.float() for part in parts]), torch.tensor(labels)


@dataclass(frozen=True, eq=False)
class RouterLosses:
    """The gate's losses of one update, without coefficients but for their weighted sum.

    Attributes:
        total: weighted sum; carries the gradient.
        routing: what the router says of the rows the losses were taken over.
    """

    total: Float[Tensor, ""]
    balance: Float[Tensor, ""]
    z: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    rehearsal: Float[Tensor, ""]
    routing: Routing

    def named(self) -> dict[str, Tensor]:
        """The parts under the keys they are logged by."""
        return {
            "balance_loss": self.balance,
            "z_loss": self.z,
            "router_entropy_loss": self.entropy,
            "rehearsal_loss": self.rehearsal,
        }


def router_losses(
    router: DynamicHybridRouter,
    features: Float[Tensor, "batch d_features"],
    rehearsed: tuple[Float[Tensor, "n d_features"], Int[Tensor, n]] | None,
    weights: RouterLossWeights,
) -> RouterLosses:
    """Balance, z, entropy and rehearsal losses of one update.

    Args:
        router: the gate.
        features: of the update's rows; they stand in where nothing is rehearsed.
        rehearsed: what `Rehearsal.sample` gave, on the router's device. Balance and usage are
            taken over these alone: the update's rows are all of one skill, which a balanced gate
            must not spread.
        weights: the coefficients.
    """
    over = features if rehearsed is None or not len(rehearsed[0]) else rehearsed[0]
    routing: Routing = router(over)
    balance = balance_loss(routing.probabilities)
    z = z_loss(routing.logits)
    spread = entropy_loss(torch.cat([routing.none[..., None], routing.probabilities], -1))
    remembered = torch.zeros((), device=over.device)
    if rehearsed is not None and len(rehearsed[0]):
        remembered = functional.cross_entropy(routing.logits, rehearsed[1])
    total = (
        weights.balance * balance
        + weights.z * z
        + weights.entropy * spread
        + weights.rehearsal * remembered
    )
    return RouterLosses(total, balance, z, spread, remembered, routing)


def mixture_gates(
    router: DynamicHybridRouter,
    features: Float[Tensor, "batch d_features"],
    expert_id: str,
    neighbours: Sequence[str],
    share: float,
) -> Gates:
    """`(1 - share)` of the expert alone and `share` of the dense mixture with its neighbours.

    At a share of exactly 0 the gates are exactly one-hot and do not depend on the router.
    """
    rows, device = features.shape[0], features.device
    if share == 0.0 or not neighbours:
        return Gates.only(expert_id, rows, device)
    candidates = (expert_id, *neighbours)
    dense = dense_weights(router, features, candidates)
    alone = torch.zeros_like(dense)
    alone[:, 0] = 1.0
    return Gates(candidates, (1.0 - share) * alone + share * dense)


def dense_weights(
    router: DynamicHybridRouter,
    features: Float[Tensor, "batch d_features"],
    candidates: Sequence[str],
) -> Float[Tensor, "batch n_candidates"]:
    """The router's softmax over the candidates alone; with gradient to the gate.

    Raises:
        TrainingError: a candidate that the router has no row for.
    """
    absent = [name for name in candidates if name not in router.experts]
    if absent:
        raise TrainingError(
            f"the router has no row for {', '.join(absent)}, so it cannot weigh a mixture; add the "
            "skill to the router before training in collaboration"
        )
    routing: Routing = router(features)
    # From the logits, not the probabilities: those of all candidates may be 0 in float32.
    kept = [i for i, row in enumerate(router.rows) if row.expert_id in candidates]
    owners = torch.tensor([candidates.index(router.rows[i].expert_id) for i in kept])
    chosen = routing.logits[:, 1:][:, kept].softmax(-1)
    member = functional.one_hot(owners, len(candidates)).to(chosen)
    return chosen @ member
