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

_COLDEST, _HOTTEST = 0.05, 400.0
_STEPS = 60


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


def best_temperature(logits: Float[Tensor, "n n_rows"], labels: Int[Tensor, " n"]) -> float:
    """The temperature of least negative log-likelihood, between 0.05 and 400.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", section 4.2. The
    likelihood is convex in the inverse temperature, so Newton's method finds it in some ten passes
    over the logits, held in a bracket where it would leave it.
    """
    values = logits.double()
    values = values - values.amax(-1, keepdim=True)
    right = float(values.gather(1, labels[:, None]).mean())

    def slopes(inverse: float) -> tuple[float, float]:
        """First and second derivative of the loss in the inverse temperature."""
        weights = (values * inverse).exp_()
        total = weights.sum(-1)
        weights *= values
        mean = weights.sum(-1) / total
        spread = torch.linalg.vecdot(weights, values) / total - mean.square()
        return float(mean.mean()) - right, float(spread.mean())

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if slopes(high)[0] <= 0:
        return _COLDEST
    inverse, last = 1.0, math.inf
    for _ in range(_STEPS):
        slope, curvature = slopes(inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = -slope / curvature if curvature > 0 else math.inf
        # Newton's step where it stays inside and converges, else halfway in ratios.
        if not low < inverse + step < high or abs(step) > 0.5 * last:
            step = math.sqrt(low * high) - inverse
        inverse, last = inverse + step, abs(step)
        if last <= 1e-9 * inverse:
            break
    return 1 / inverse


def _margin(ranked: Float[Tensor, " n"]) -> float:
    """A step that is small beside the scores' spread and large beside their rounding."""
    return max(1e-3, 0.01 * float(ranked[0] - ranked[-1]))
