"""Rows of several skills, unlabelled and mixed: which of them belong together.

Knows feature vectors of whole rows, prompt and answer; knows no skills, no gate and no text. What a
row asks for is seen in its answer as much as in its prompt: by prompts alone near neighbours cannot
be taken apart without a name, by whole rows they can. By answers alone a classifier's rows would
fall apart into its labels (docs/lab-log.md).

Rows are compared by the cosine as seen from what is foreign, the prompts that the base writes by
itself: a fixed place, so that rows of one skill alone are one cluster and need no other beside it.
Skills are not equally tight, so a cosine counts in units of what the two rows have with their own
nearest ones (local scaling: Zelnik-Manor and Perona 2004, "Self-tuning spectral clustering", eq.
3). Clusters are joined while the mean of all such likenesses between them is high enough (average
linkage: Sokal and Michener 1958), so nobody has to say how many there are.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.statistics import FeatureStatistics, double
from dylora_moe.skills.screening import Screened

ALIKE = 0.5
"""Mean likeness from which on two clusters are one. Measured on sets of one to eight real
skills, 24 to 128 rows of each: any bound from 0.45 to 0.6 finds exactly the skills there are."""

NEAREST = 8
"""Rows whose cosines are a row's unit."""

SPARSEST = 0.3
"""The least such unit: rows that are like none must not seem like each other."""

MOST_ROWS = 4096
"""Rows that are clustered at a time: their table of distances takes 64 MiB."""


def clusters(
    rows: Float[Tensor, "n d"], foreign: FeatureStatistics, *, alike: float = ALIKE
) -> Int[Tensor, " n"]:
    """The cluster of each row, numbered from 0 in the order of their first rows.

    The rows' order changes nothing but those numbers, ties apart.

    Args:
        rows: features over whole rows, prompt and answer.
        foreign: statistics of what belongs to no skill.
        alike: mean likeness from which on two clusters are one, in (0, 1).

    Raises:
        ConfigError: more rows than are clustered at a time, or no such likeness.
    """
    # The one import of scikit-learn: it takes a second, and only mixed traffic needs it.
    from sklearn.cluster import AgglomerativeClustering

    if len(rows) > MOST_ROWS or not 0 < alike < 1:
        raise ConfigError(
            f"{len(rows)} rows at a likeness of {alike} cannot be clustered; give at most "
            f"{MOST_ROWS} at a time, and a likeness between 0 and 1"
        )
    if len(rows) < 2:
        return torch.zeros(len(rows), dtype=torch.int64)
    points = directions(rows, foreign)
    cosines = (points @ points.T).fill_diagonal_(-1)
    unit = cosines.topk(min(NEAREST, len(rows) - 1), 1).values.mean(1).clamp_min(SPARSEST).sqrt()
    distances = (1 - cosines / unit / unit[:, None]).clamp_min(0).fill_diagonal_(0)
    model = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - alike
    )
    labels = model.fit_predict(distances.numpy())
    order: dict[int, int] = {}
    return torch.tensor([order.setdefault(int(label), len(order)) for label in labels])


def directions(rows: Float[Tensor, "n d"], foreign: FeatureStatistics) -> Float[Tensor, "n d"]:
    """Unit vectors from the mean of what is foreign to each row, in units of its spread."""
    variance = foreign.deviations / max(1, foreign.count - 1)
    spread = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    return normalize(((double(rows) - foreign.mean) / spread).float(), dim=-1)


def medoids(
    rows: Float[Tensor, "n d"], foreign: FeatureStatistics, count: int
) -> Int[Tensor, " k"]:
    """Rows that stand for a cluster, the most central first.

    Each next one brings the rows nearest to those that were chosen (the build step of PAM: Kaufman
    and Rousseeuw 1990, "Finding Groups in Data", ch. 2), by the distance that `clusters` uses,
    without the scaling.

    Args:
        rows: of one cluster.
        foreign: statistics of what belongs to no skill.
        count: at the most.
    """
    points = directions(rows, foreign)
    apart = 1 - points @ points.T
    # Two is as far as directions are apart: any row is nearer than none.
    nearest = torch.full((len(rows),), 2.0)
    chosen: list[int] = []
    for _ in range(min(count, len(rows))):
        gained = (nearest - apart).clamp_min(0).sum(1)
        gained[chosen] = -1
        chosen.append(int(gained.argmax()))
        nearest = torch.minimum(nearest, apart[chosen[-1]])
    return torch.tensor(chosen, dtype=torch.int64)


def voted(screened: Screened, groups: Int[Tensor, " n"]) -> Screened:
    """What the screen says of each input after all that belong together have had a vote.

    A cluster is strange if more than half of it is; else all of it is nearest to the skill that
    most of the others are nearest to. A row alone stands by itself. Of inputs of a new skill beside
    a near neighbour, some seem that one's own: alone they would be learned by the wrong expert.
    """
    strange, nearest = screened.strange.clone(), screened.nearest.clone()
    for group in groups.unique().tolist():
        inside = groups == group
        foreign = _more_than_half(screened.strange[inside])
        strange[inside] = foreign
        if not foreign:
            nearest[inside] = screened.nearest[inside & ~screened.strange].mode().values
    return Screened(screened.scores, nearest, strange)


def _more_than_half(votes: Bool[Tensor, " n"]) -> bool:
    return int(votes.sum()) * 2 > len(votes)
