"""What an expert and the gate are trained towards, besides the answers themselves.

Knows the router's probabilities and stored features; knows no text and no blocks. The router's
losses are taken once for a whole update, over features alone, so they do not depend on how the
update is cut into forward passes and never count padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.losses import balance_loss, entropy_loss, z_loss
from dylora_moe.routing.rehearsal import rehearse
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing

_MOST_A_STEP = 512
"""Rows rehearsed in one step, where there are so many skills that a few of each are more."""


@dataclass(frozen=True, slots=True)
class RouterLossWeights:
    """Coefficients of the gate's losses; 0 leaves one out."""

    balance: float = 0.01
    z: float = 1e-4
    entropy: float = 0.0
    rehearsal: float = 1.0


@dataclass(frozen=True, eq=False)
class Penalty:
    """A term of the loss that depends on the expert's matrices alone, not on rows: what keeps it
    near something it was, or away from something there is.

    Attributes:
        name: what it is, with whatever it depends on: a part of the run's identity, since nothing
            else tells one penalty from another. It is logged as `<first word of it>_loss`.
        value: the term with its coefficient, once an update; with gradient to the expert.
    """

    name: str
    value: Callable[[], Float[Tensor, ""]]

    @property
    def logged(self) -> str:
        """The key its value is logged by."""
        return f"{self.name.split()[0]}_loss"


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

    def prepared(self, router: DynamicHybridRouter) -> RehearsalRows:
        """The rows as strangers to the closed form, which was fitted on them and would leave
        nothing to learn. Costly: once for as long as the closed form stays.

        Raises:
            TrainingError: features of a skill that the router has no row for.
            RoutingError: a skill of the router has no features here.
        """
        skills = {name: part for name, part in self.features.items() if name != BASE_NAME}
        unknown = sorted(set(skills) - {row.skill_id for row in router.rows})
        if unknown:
            raise TrainingError(
                f"rehearsal has features of skill {unknown[0]}, which the router has no row for; "
                "add the skill to the router first"
            )
        none = self.features.get(BASE_NAME) if router.table.has_none else None
        stored = rehearse(router.table, skills, none)
        return RehearsalRows(stored.features, stored.closed, stored.labels, self.per_skill)


@dataclass(frozen=True, eq=False)
class RehearsedSample:
    """Rows to rehearse in one step.

    Attributes:
        closed: their closed-form logits from a gate fitted without each.
        labels: the row of the gate each belongs to.
    """

    features: Float[Tensor, "n d_features"]
    closed: Float[Tensor, "n n_rows"]
    labels: Int[Tensor, " n"]

    def to(self, device: torch.device | str) -> RehearsedSample:
        return RehearsedSample(
            self.features.to(device), self.closed.to(device), self.labels.to(device)
        )


@dataclass(frozen=True, eq=False)
class RehearsalRows:
    """All stored rows with their honest closed-form logits; sampling them is cheap."""

    features: Float[Tensor, "n d_features"]
    closed: Float[Tensor, "n n_rows"]
    labels: Int[Tensor, " n"]
    per_skill: int
    _by_class: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: sampling happens in every step.
        order = self.labels.argsort(stable=True)
        sizes = self.labels.unique(return_counts=True)[1].tolist()
        object.__setattr__(self, "_by_class", order.split(sizes))

    def sample(self, seed: int) -> RehearsedSample:
        """Rows of each skill, drawn by `seed`; of many skills fewer of each, but one."""
        generator = torch.Generator().manual_seed(seed)
        count = max(1, min(self.per_skill, _MOST_A_STEP // max(1, len(self._by_class))))
        drawn = torch.cat(
            [
                rows[torch.randperm(len(rows), generator=generator)[:count]]
                for rows in self._by_class
            ]
        )
        return RehearsedSample(self.features[drawn], self.closed[drawn], self.labels[drawn])


@dataclass(frozen=True, eq=False)
class RouterLosses:
    """The gate's losses of one update, without coefficients but for their weighted sum.

    Attributes:
        total: weighted sum; carries the gradient.
        routing: what the router, as it would answer, says of the rows the losses were taken over.
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
    rehearsed: RehearsedSample | None,
    weights: RouterLossWeights,
) -> RouterLosses:
    """Balance, z, entropy and rehearsal losses of one update.

    Args:
        router: the gate.
        features: of the update's rows; they stand in where nothing is rehearsed.
        rehearsed: what `RehearsalRows.sample` gave, on the router's device. Balance and usage are
            taken over these alone: the update's rows are all of one skill, which a balanced gate
            must not spread.
        weights: the coefficients.
    """
    over = features if rehearsed is None else rehearsed.features
    with torch.no_grad():
        routing: Routing = router(over)
    with torch.autocast(over.device.type, enabled=False):
        closed = router.closed_form(over.float()) if rehearsed is None else rehearsed.closed
        logits = router.corrected(closed, over) / router.log_temperature.exp()
    rows = logits.softmax(-1)
    probabilities = rows[:, 1:] @ router.membership
    balance = balance_loss(probabilities)
    z = z_loss(logits)
    spread = entropy_loss(torch.cat([rows[:, :1], probabilities], -1))
    remembered = torch.zeros((), device=over.device)
    if rehearsed is not None:
        remembered = functional.cross_entropy(logits, rehearsed.labels)
    total = (
        weights.balance * balance
        + weights.z * z
        + weights.entropy * spread
        + weights.rehearsal * remembered
    )
    return RouterLosses(total, balance, z, spread, remembered, routing)


def mixture_gates(
    router: DynamicHybridRouter,
    features: Float[Tensor, "batch *seq d_features"],
    expert_id: str,
    neighbours: Sequence[str],
    share: float,
) -> Gates:
    """`(1 - share)` of the expert alone and `share` of the dense mixture with its neighbours, for
    each row or each token that there are features of.

    At a share of exactly 0 the gates are exactly one-hot and do not depend on the router.
    """
    rows, device = features.shape[0], features.device
    if share == 0.0 or not neighbours:
        return Gates.only(expert_id, rows, device)
    candidates = (expert_id, *neighbours)
    dense = dense_weights(router, features, candidates)
    alone = torch.zeros_like(dense)
    alone[..., 0] = 1.0
    return Gates(candidates, (1.0 - share) * alone + share * dense)


def dense_weights(
    router: DynamicHybridRouter,
    features: Float[Tensor, "batch *seq d_features"],
    candidates: Sequence[str],
) -> Float[Tensor, "batch *seq n_candidates"]:
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
    chosen = routing.logits[..., 1:][..., kept].softmax(-1)
    member = functional.one_hot(owners, len(candidates)).to(chosen)
    return chosen @ member
