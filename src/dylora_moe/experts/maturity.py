"""Maturity: how far an expert has come, a number from 0 (just created) to 1.

Pure arithmetic on plain numbers. The written rule:

- *Experience* saturates with training: after `s` optimizer steps beyond warm-up it is
  `e = 1 - exp(-s / GROWTH_STEPS)`, so 30 steps give 0.63 and 90 give 0.95.
- *Standing* compares the validation loss `l` with the base's `b`: `g = (b - l) / b`, cut to
  0..1 and divided by `FULL_GAIN` (a fifth of the base's loss gone is full marks). Against the
  best neighbour's loss `n` the same: `h = (n - l) / n`, where an expert as good as its neighbour
  has half marks. Standing is the smaller of the two: an expert must be worth more than nothing,
  and more than what was there already.
- Training moves maturity up towards `e * standing` of this round, by the share of the way that
  is left: `m' = m + (1 - m) * e * standing`. It never falls by training, and never passes 1.
- Data the expert does badly on moves it down. `fit` is the relative loss of the verdict's second
  axis (0 as on its own data, 1 no better than the base): `m' = m * (1 - DROP * clip(fit, 0, 1))`.
"""

from __future__ import annotations

import math

from dylora_moe.errors import ConfigError

GROWTH_STEPS = 30.0
"""Steps after warm-up that make up 63% of an expert's experience."""

FULL_GAIN = 0.2
"""Relative gain over the base's loss that counts fully."""

DROP = 0.5
"""Share of the maturity lost on data where the expert is no better than the base."""


def after_training(
    previous: float,
    steps_after_warmup: int,
    loss: float,
    base_loss: float,
    neighbour_loss: float | None = None,
) -> float:
    """Maturity after a round of training.

    Args:
        previous: maturity before, 0..1.
        steps_after_warmup: optimizer steps of this round beyond its warm-up.
        loss: the expert's token-mean validation loss on its own skill.
        base_loss: the base's on the same rows.
        neighbour_loss: the best other expert's on these rows, measured or by its share of the
            base's loss on others of the skill; None where there is none.

    Returns:
        Maturity in `previous`..1: more for more steps and a lower loss, less for a lower loss of
        base or neighbour.

    Raises:
        ConfigError: a number out of its range or not finite.
    """
    _check("maturity", previous, 0.0, 1.0)
    _check("steps after warm-up", steps_after_warmup, 0.0)
    for name, value in (("loss", loss), ("base loss", base_loss)):
        _check(name, value, 0.0)
    standing = _share(_gain(base_loss, loss) / FULL_GAIN)
    if neighbour_loss is not None:
        _check("neighbour loss", neighbour_loss, 0.0)
        standing = min(standing, _share(0.5 + _gain(neighbour_loss, loss) / (2 * FULL_GAIN)))
    experience = -math.expm1(-steps_after_warmup / GROWTH_STEPS)
    # min: rounding may pass 1 in the last digit.
    return min(1.0, previous + (1.0 - previous) * experience * standing)


def after_bad_data(previous: float, fit: float) -> float:
    """Maturity after new data that was routed to the expert.

    Args:
        previous: maturity before, 0..1.
        fit: relative loss on the new data, as `Verdict.fit`: 0 as good as on its own, 1 no better
            than the base; values outside 0..1 count as the nearer end.

    Returns:
        Maturity in 0..`previous`: lower the worse the expert did, unchanged at a fit of 0.

    Raises:
        ConfigError: a number out of its range or not finite.
    """
    _check("maturity", previous, 0.0, 1.0)
    _check("fit", fit, -math.inf)
    return previous * (1.0 - DROP * _share(fit))


def _gain(reference: float, loss: float) -> float:
    """Part of the reference's loss that is gone; 0 where there was none to lose."""
    return (reference - loss) / reference if reference > 0 else 0.0


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _check(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} is {value}, not in {low}..{high}; pass the number as measured")
