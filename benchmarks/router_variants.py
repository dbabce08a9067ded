"""Every choice about routing that is compared: names and numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choice_features import POSITIONS

from dylora_moe.routing.correction import GateKind

LOSSES = {"balance": 0.01, "z": 1e-4, "entropy": 0.0}
"""The auxiliary losses' coefficients by default, where a correction is trained at all."""


@dataclass(frozen=True)
class Fit:
    """What a router is fitted on, and how.

    Attributes:
        kinds: of pooling, side by side.
        blocks: which of the feature blocks, counted from the lowest.
        scale: of the pooled vectors: as they are, of unit length block by block, or standardised by
            the base's own prompts.
        gate, steps: of the learned correction; none at 0.
        forced: whether the correction is kept whatever held-out rows say of it.
        losses: coefficients of the auxiliary losses.
    """

    kinds: tuple[str, ...] = ("mean",)
    blocks: tuple[int, ...] = (0, 1, 2, 3)
    scale: Literal["raw", "unit", "standard"] = "raw"
    gate: GateKind = "linear"
    steps: int = 0
    forced: bool = False
    losses: tuple[tuple[str, float], ...] = ()

    @property
    def coefficients(self) -> dict[str, float]:
        """Those of every auxiliary loss."""
        return {**LOSSES, **dict(self.losses)}


@dataclass(frozen=True)
class Variant:
    """One choice that differs from how the product routes.

    Attributes:
        name, group: for people.
        fit: of the router.
        temperature: times the calibrated one; None for 1, not calibrated.
        rule: of `SelectionRule`, where it is not that of a pool of mature experts.
        young: which experts are not mature.
        capacity: of each expert in a batch of 32 rows, in even shares; None for no limit.
        alike: whether such a batch is of one skill.
        position: tokens of the prompt after which the choice is made; None for all of them.
    """

    name: str
    group: str
    fit: Fit = field(default_factory=Fit)
    temperature: float | None = 1.0
    rule: Mapping[str, float] = field(default_factory=dict)
    young: Literal["none", "last", "all"] = "none"
    capacity: float | None = None
    alike: bool = False
    position: int | None = None


AS_IT_IS = Variant("as it is", "default")


def _features(name: str, **how: Any) -> Variant:
    return Variant(name, "features", Fit(**how))


def _gate(name: str, **how: Any) -> Variant:
    return Variant(name, "gate", Fit(**how))


def _loss(name: str, **losses: float) -> Variant:
    fit = Fit(steps=150, forced=True, losses=tuple(losses.items()))
    return Variant(name, "losses of a correction that is kept", fit)


def _kept(name: str, **more: Any) -> Variant:
    return Variant(name, "how many experts", **more)


VARIANTS = (
    AS_IT_IS,
    _features("last token", kinds=("last",)),
    _features("maximum", kinds=("max",)),
    _features("mean and deviation, blocks 4 and 8", kinds=("mean", "std"), blocks=(1, 3)),
    _features("each token layer-normed", kinds=("normed",)),
    _features("unit length", scale="unit"),
    _features("standardised", scale="standard"),
    _features("block 8 alone", blocks=(3,)),
    _features("block 4 alone", blocks=(1,)),
    _features("block 2 alone", blocks=(0,)),
    _features("blocks 4 and 8", blocks=(1, 3)),
    _gate("linear, up to 150 steps", steps=150),
    _gate("MLP, up to 150 steps", steps=150, gate="mlp"),
    _gate("linear, 50 steps, kept", steps=50, forced=True),
    _gate("linear, 150 steps, kept", steps=150, forced=True),
    _gate("linear, 400 steps, kept", steps=400, forced=True),
    _gate("MLP, 150 steps, kept", steps=150, forced=True, gate="mlp"),
    _loss("balance 0", balance=0.0),
    _loss("balance 0.1", balance=0.1),
    _loss("z 0", z=0.0),
    _loss("z 0.01", z=0.01),
    _loss("entropy 0.01", entropy=0.01),
    _loss("entropy 0.1", entropy=0.1),
    Variant("temperature 1", "temperature", temperature=None),
    Variant("calibrated x 0.67", "temperature", temperature=1 / 1.5),
    Variant("calibrated x 1.5", "temperature", temperature=1.5),
    Variant("calibrated x 2", "temperature", temperature=2.0),
    Variant("no decay: top 2 always", "temperature", rule={"progress": 0.0}),
    Variant("half of the decay", "temperature", rule={"progress": 0.5}),
    Variant("mixture x 1.5", "temperature", rule={"mix_temperature": 1.5}),
    _kept("top 1", rule={"top_k": 1}),
    _kept("top 3 where unsure", rule={"top_k": 3}),
    _kept("dense", young="all", rule={"dense_above": 0.0}),
    _kept("top 2, capacity 1.25, mixed batches", rule={"progress": 0.0}, capacity=1.25),
    _kept("top 2, capacity 2, mixed batches", rule={"progress": 0.0}, capacity=2.0),
    _kept("top 2, capacity 2, batches of one skill", rule={"progress": 0.0}, capacity=2.0,
          alike=True),
    Variant("unsure above 0.01", "maturity", rule={"unsure_above": 0.01}),
    Variant("unsure above 0.2", "maturity", rule={"unsure_above": 0.2}),
    Variant("newest is young", "maturity", young="last"),
    Variant("newest is young, dense above 0.01", "maturity", young="last",
            rule={"dense_above": 0.01}),
    Variant("newest is young, dense above 0.2", "maturity", young="last",
            rule={"dense_above": 0.2}),
    Variant("all are young", "maturity", young="all"),
    *(Variant(f"after {n} tokens", "per token", position=n) for n in POSITIONS),
)  # fmt: skip
"""Every choice that is compared; the first is what the product does."""
