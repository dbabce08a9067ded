"""Two numbers of the gate that are read off honest logits: its temperature and its threshold.

Pure functions of logits and scores; knows no router.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError


@dataclass(frozen=True, slots=True)
class NoneCalibration:
    """Where the line to *no expert* was drawn.

    Attributes:
        threshold: log-odds of *no expert*; above it an input gets no expert.
        own_share: share of the skills' own rows that lie above it.
        foreign_share: share of the base's own prompts that lie above it.
    """

    threshold: float
    own_share: float
    foreign_share: float


def calibrate(
    own: Float[Tensor, " n"], foreign: Float[Tensor, " m"], share: float = 0.002
) -> NoneCalibration:
    """The lowest threshold that sends at most `share` of the own rows away.

    The lowest, since it is the one that sends away most of what is foreign.

    Args:
        own: scores of the skills' own rows.
        foreign: scores of the base's own prompts.

    Raises:
        RoutingError: no own rows, or a share outside [0, 1).
    """
    if own.numel() == 0 or not 0 <= share < 1:
        raise RoutingError(
            f"a threshold cannot be set from {own.numel()} rows at a share of {share}; it needs at "
            "least one row and a share from 0 to below 1"
        )
    away = int(share * own.numel())
    # Between two scores, not on one: the row it was read off must not tip over by rounding.
    ranked = own.double().sort(descending=True).values
    above = ranked[away - 1] if away else ranked[0] + 2 * _margin(ranked)
    threshold = float((above + ranked[away]) / 2)
    return NoneCalibration(
        threshold=threshold,
        own_share=float((own > threshold).double().mean()),
        foreign_share=float((foreign > threshold).double().mean()) if foreign.numel() else 0.0,
    )


def best_temperature(
    logits: Float[Tensor, "n n_rows"], labels: Int[Tensor, " n"], steps: int = 60
) -> float:
    """The temperature of least negative log-likelihood, between 0.05 and 400.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", section 4.2; by golden
    section, since the likelihood is convex in the inverse temperature.
    """
    values = logits.double()

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, labels))

    low, high, ratio = math.log(0.05), math.log(400.0), (math.sqrt(5) - 1) / 2
    for _ in range(steps):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _margin(ranked: Float[Tensor, " n"]) -> float:
    """A step that is small beside the scores' spread and large beside their rounding."""
    return max(1e-3, 0.01 * float(ranked[0] - ranked[-1]))
