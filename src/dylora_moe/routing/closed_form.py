"""The gate in closed form: shrinkage LDA from sufficient statistics.

Knows linear algebra on statistics; knows no experts, no training, no thresholds. The rows depend on
the *set* of skills and not on the order in which they or their batches came.

Source: Friedman (1989), "Regularized Discriminant Analysis", with the pooled covariance shrunk
towards the identity after standardisation; the row of class k, up to a term shared by all rows, is
`w_k = R^-1 (m_k - g)`, `b_k = -(m_k - g)^T w_k / 2 + log prior_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, double, stack_means


@dataclass(frozen=True, eq=False)
class LinearRows:
    """Logits `(features - centre) / scale @ weight.T + bias`, in float64.

    `centre` is the mean of the class means and `scale` the pooled within-class deviation, so that
    float32 keeps its digits when the logits are computed.
    """

    weight: Float[Tensor, "n d"]
    bias: Float[Tensor, " n"]
    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    def logits(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n"]:
        """Log of the class densities times the priors, up to a constant of each row."""
        return (double(features) - self.centre) / self.scale @ self.weight.T + self.bias


def lda(
    stats: Sequence[FeatureStatistics],
    shrinkage: float = 0.1,
    prior: Sequence[float] | None = None,
) -> LinearRows:
    """Shrinkage LDA over the classes, equal priors unless given.

    Raises:
        RoutingError: no class, classes of different width, or a shrinkage outside (0, 1].
    """
    if not stats:
        raise RoutingError("LDA needs the statistics of at least one class; none was given")
    shared = SharedScatter.of(stats, stats[0].d_features)
    return lda_rows(stack_means(stats), shared, shrinkage, prior)


def lda_rows(
    means: Float[Tensor, "n d"],
    shared: SharedScatter,
    shrinkage: float = 0.1,
    prior: Sequence[float] | None = None,
) -> LinearRows:
    """The same from the class means and a scatter that was summed already: one Cholesky solve."""
    scale = shared.std()
    centre = means.mean(0)
    offsets = (means - centre) / scale
    factor = torch.linalg.cholesky(shared.correlation(shrinkage))
    weight = torch.cholesky_solve(offsets.T, factor).T.contiguous()
    bias = -0.5 * (offsets * weight).sum(-1) + _log_prior(prior, means.shape[0])
    return LinearRows(weight, bias, centre, scale)


def leave_one_out(
    features: Float[Tensor, "batch d"],
    labels: Int[Tensor, " batch"],
    means: Float[Tensor, "n d"],
    counts: Sequence[int],
    shared: SharedScatter,
    shrinkage: float = 0.1,
    prior: Sequence[float] | None = None,
) -> Float[Tensor, "batch n"]:
    """Logits that each row would get from the gate fitted without that row.

    With more features than rows the closed form separates its own rows perfectly, so its logits on
    them say nothing of temperature, threshold or correction; these do. Taking row x out of class c
    moves its mean and takes a rank-one term off the scatter, so (Sherman and Morrison, 1950) all
    rows cost one Cholesky factor and one triangular solve. The standardisation is kept.

    Args:
        features: rows that are contained in the statistics.
        labels: class of each row, an index into `means`.
        means: class means.
        counts: rows in each class; a class of one row keeps its mean.
        shared: scatter with every class in it.
    """
    scale = shared.std()
    factor = torch.linalg.cholesky(shared.correlation(shrinkage))
    centre = means.mean(0)

    def whiten(rows: Tensor) -> Tensor:
        columns = ((rows - centre) / scale).T
        solved: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
        return solved.T

    points, centres = whiten(double(features)), whiten(means)
    n = torch.tensor(counts, dtype=torch.float64)[labels].clamp_min(2)
    own = points - centres[labels]
    # R without the row is R - a v v^T in these coordinates, where R is the identity.
    a = (1 - shrinkage) / shared.degrees_of_freedom * n / (n - 1)
    length = own.square().sum(-1)
    gain = a / (1 - a * length).clamp_min(1e-6)
    distance = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    along = (own * points).sum(-1, keepdim=True) - own @ centres.T
    distance = distance + gain[:, None] * along.square()
    stretch = (n / (n - 1)).square()
    own_distance = stretch * (length + gain * length.square())
    distance = distance.scatter(1, labels[:, None], own_distance[:, None])
    # The term shared by a row's logits, as `LinearRows` leaves it out: -|x|^2 / 2.
    shared_term = points.square().sum(-1, keepdim=True)
    return 0.5 * (shared_term - distance) + _log_prior(prior, means.shape[0])


def _log_prior(prior: Sequence[float] | None, n: int) -> Float[Tensor, " n"]:
    if prior is None:
        return torch.zeros(n, dtype=torch.float64)
    if len(prior) != n or min(prior) <= 0:
        raise RoutingError(f"{len(prior)} priors for {n} classes; give one above zero for each")
    values = torch.tensor(prior, dtype=torch.float64)
    return (values / values.sum()).log()
