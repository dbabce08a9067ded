"""Is a difference more than chance: percentile bootstrap over paired rows.

Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; paired as in Koehn 2004:
both systems are resampled with the same rows. Over several seeds, which answer the same rows,
seeds and rows are resampled each by themselves (`macro_bootstrap`). Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dylora_moe.records import Interval

_CELLS = 1 << 20
"""Resampled rows held in memory at once."""


@dataclass(frozen=True)
class Paired:
    """Two systems on the same rows.

    Attributes:
        first, second: a number for each row (a score, or a row's mean loss).
        weights: weight of each row in the mean (tokens, for a token-mean loss); None for equal.
        seed: of the run that gave the numbers.
        skill: whose rows they are; under another seed the same skill may have the same rows. None
            for one that nobody else has.
        rows: what tells the rows of a skill apart, whatever the seed; their places where None.
    """

    first: Sequence[float]
    second: Sequence[float]
    weights: Sequence[float] | Sequence[int] | None = None
    seed: int = 0
    skill: str | None = None
    rows: Sequence[str] | None = None


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    weights: Sequence[float] | Sequence[int] | None = None,
    statistic: Literal["difference", "ratio"] = "difference",
    rounds: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `first` minus (or divided by) that of `second`, with its interval over rows.

    Args:
        first, second: a number for each row, in the same order.
        weights: weight of each row in both means.
        statistic: `difference` or `ratio` of the two means.
        rounds: resamples.
        confidence: share of the resamples inside the interval.
        seed: the same seed gives the same interval.
    """
    pair = Paired(first, second, weights)
    return _interval([pair], statistic, rounds, confidence, seed)


def mean_ratio(
    pairs: Sequence[Paired], *, rounds: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean over skills of the ratio of two means, rows resampled within each skill."""
    return _interval(pairs, "ratio", rounds, confidence, seed)


def macro_bootstrap(
    pairs: Sequence[Paired],
    *,
    statistic: Literal["difference", "ratio"] = "ratio",
    rounds: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Two systems' macro averages, divided or subtracted: the mean over seeds of the means over
    skills of `first`'s means, and that of `second`'s.

    Rows are resampled within each skill, the same for both systems and for every seed: seeds that
    answer the same rows are no further rows. Seeds are resampled too, independently of the rows
    (Owen 2007, "The pigeonhole bootstrap", for crossed effects; it errs on the wide side), one
    fewer than there are, with replacement, so that the variance over few of them is not understated
    by a share of `1 / seeds` (Rao and Wu 1988, "Resampling inference with complex survey data").
    One seed alone says nothing of other seeds: then the interval is over rows. Of two or three, it
    is still too narrow, as percentiles of so few are.

    The ratio of the means, where `mean_ratio` is the mean of the ratios: a skill at which `second`
    has nothing right has no ratio of its own, and counts here like any other. The interval of one
    system's macro average is that of its difference from zeros.

    Args:
        pairs: one for each skill under each seed.
        statistic: `ratio` or `difference` of the two macro averages.
        rounds, confidence, seed: as `paired_bootstrap`.

    Returns:
        The interval; an end is infinite where so little of `second` is right that more resamples
        hold nothing of it than the interval leaves out.

    Raises:
        ValueError: no pairs, rows that are not paired, or a ratio to a mean of zero.
    """
    _check(pairs, rounds, confidence)
    rng = np.random.default_rng(seed)
    total, resampled = _by_seed(pairs, rounds, rng)
    point = total.mean(axis=1)
    if statistic == "ratio" and point[0, 1] == 0:
        raise ValueError("the second system's mean is zero; take the difference")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = _statistic(_over_seeds(resampled, rng), statistic)
    tail = (1 - confidence) / 2
    # A resample with nothing right on either side may be any ratio, so it widens both ends. Ends
    # are resamples, not points between two, of which one may be infinite.
    low = np.quantile(np.where(np.isnan(values), -np.inf, values), tail, method="lower")
    high = np.quantile(np.where(np.isnan(values), np.inf, values), 1 - tail, method="higher")
    return Interval(float(_statistic(point, statistic)[0]), float(low), float(high))


def _by_seed(
    pairs: Sequence[Paired], rounds: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each seed's means over skills of both systems, with a weight of one: `[1, seeds, 3]` of the
    rows as they are, `[rounds, seeds, 3]` of resamples."""
    order = {seed: place for place, seed in enumerate(dict.fromkeys(one.seed for one in pairs))}
    skills = [sum(one.seed == seed for one in pairs) for seed in order]
    total, resampled = np.zeros((1, len(order), 3)), np.zeros((rounds, len(order), 3))
    groups: dict[str, list[Paired]] = {}
    for number, one in enumerate(pairs):
        groups.setdefault(f"alone {number}" if one.skill is None else f"of {one.skill}", []).append(
            one
        )
    for some in groups.values():
        columns = _side_by_side(some)
        sums = _resampled_sums(columns.reshape(len(columns), -1), rounds, rng)
        for column, one in enumerate(some):
            place = order[one.seed]
            own = columns[:, column].sum(axis=0, keepdims=True)
            total[:, place] += _means(own) / skills[place]
            with np.errstate(invalid="ignore"):
                # Seeds with other rows: a resample may hold none of one's.
                drawn = _means(sums[:, 3 * column : 3 * column + 3])
            resampled[:, place] += drawn / skills[place]
    return total, resampled


def _side_by_side(pairs: Sequence[Paired]) -> NDArray[np.float64]:
    """`[rows, pairs, 3]`: the columns of pairs of one skill, a row in the same place of each; zero
    where a pair has it not."""
    names: dict[str | int, int] = {}
    for one in pairs:
        for name in range(len(one.first)) if one.rows is None else one.rows:
            names.setdefault(name, len(names))
    found = np.zeros((len(names), len(pairs), 3))
    for number, one in enumerate(pairs):
        places = [names[name] for name in (range(len(one.first)) if one.rows is None else one.rows)]
        if len(set(places)) < len(places) or len(places) != len(one.first):
            raise ValueError(f"{len(places)} names for {len(one.first)} rows; name each once")
        found[places, number] = _columns(one)
    return found


def _over_seeds(means: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """`[rounds, 3]`: the mean of resampled seeds, each round its own, of `[rounds, seeds, 3]`."""
    rounds, seeds, _ = means.shape
    if seeds == 1:
        return means[:, 0]
    times = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=rounds)[:, :, None]
    return np.asarray(np.where(times > 0, means * times, 0.0).sum(axis=1) / (seeds - 1))


def _interval(
    pairs: Sequence[Paired], statistic: str, rounds: int, confidence: float, seed: int
) -> Interval:
    _check(pairs, rounds, confidence)
    rng = np.random.default_rng(seed)
    values, resampled = [], np.zeros(rounds)
    for pair in pairs:
        columns = _columns(pair)
        values.append(float(_statistic(columns.sum(axis=0, keepdims=True), statistic)[0]))
        sums = _resampled_sums(columns, rounds, rng)
        resampled += _statistic(sums, statistic) / len(pairs)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(np.mean(values)), float(low), float(high))


def _check(pairs: Sequence[Paired], rounds: int, confidence: float) -> None:
    if not pairs:
        raise ValueError("a bootstrap needs at least one pair of systems")
    if rounds < 1 or not 0 < confidence < 1:
        raise ValueError("rounds must be positive and confidence between 0 and 1")


def _columns(pair: Paired) -> NDArray[np.float64]:
    """`[rows, 3]`: weighted first, weighted second, weight."""
    first = np.asarray(pair.first, dtype=np.float64)
    second = np.asarray(pair.second, dtype=np.float64)
    weights = np.ones_like(first) if pair.weights is None else np.asarray(pair.weights, float)
    if not len(first) == len(second) == len(weights):
        raise ValueError(f"unpaired rows: {len(first)}, {len(second)}, {len(weights)} weights")
    if len(first) == 0 or weights.min() <= 0:
        raise ValueError("a bootstrap needs at least one row and positive weights")
    return np.stack([first * weights, second * weights, weights], axis=1)


def _means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums `[rounds, 3]` as weighted means, with a weight of one."""
    return np.asarray(sums / sums[:, 2:])


def _resampled_sums(
    columns: NDArray[np.float64], rounds: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`[rounds, columns]`: column sums of `rounds` resamples of the rows with replacement."""
    rows = len(columns)
    chunk = max(1, _CELLS // rows)
    parts = []
    for start in range(0, rounds, chunk):
        size = min(chunk, rounds - start)
        counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=size)
        parts.append(counts @ columns)
    return np.concatenate(parts)


def _statistic(sums: NDArray[np.float64], statistic: str) -> NDArray[np.float64]:
    first, second, weight = sums.T
    if statistic == "ratio":
        return np.asarray(first / second)
    return np.asarray((first - second) / weight)
