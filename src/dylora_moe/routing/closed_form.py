"""The gate in closed form: shrinkage LDA from sufficient statistics.

Knows linear algebra on statistics; knows no experts, no training, no thresholds. The rows depend on
the *set* of skills and not on the order in which they or their batches came.

Source: Friedman (1989), "Regularized Discriminant Analysis", with the pooled covariance shrunk
towards the identity after standardisation; the row of class k, up to a term shared by all rows, is
`w_k = R^-1 (m_k - g)`, `b_k = -(m_k - g)^T w_k / 2 + log prior_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.gram import gram
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


@dataclass(frozen=True, eq=False)
class WhitenedClasses:
    """The class means where the shrunk within-class correlation is the identity.

    In float64 where the gate's rows come from it. Where rows are only judged, float32 is enough
    (their logits err by hundredths, the temperature is in ones) and takes half the time.

    One Cholesky factor and one triangular solve; rows, logits and leaving rows out all follow from
    it, so that what was factored for a refit is not factored again for calibrating it.

    Attributes:
        means: of the classes, whitened.
        factor: lower Cholesky factor of the shrunk correlation.
        centre, scale: of the standardisation before it.
        pull: weight of the scatter in the correlation, (1 - shrinkage) / degrees of freedom.
    """

    means: Float[Tensor, "n d"]
    factor: Float[Tensor, "d d"]
    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    pull: float

    @classmethod
    def of(
        cls,
        means: Float[Tensor, "n d"],
        shared: SharedScatter,
        shrinkage: float = 0.1,
        dtype: torch.dtype = torch.float64,
    ) -> WhitenedClasses:
        """Raises:
        RoutingError: a shrinkage outside (0, 1].
        """
        scale, centre = shared.std(), means.mean(0)
        factor = torch.linalg.cholesky(shared.correlation(shrinkage, dtype))
        pull = (1 - shrinkage) / shared.degrees_of_freedom
        whitened = _solve(factor, ((means - centre) / scale).to(dtype))
        return cls(whitened, factor, centre, scale, pull)

    def single(self) -> WhitenedClasses:
        """The same in float32."""
        return replace(self, means=self.means.float(), factor=self.factor.float())

    def whiten(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Rows in the space of `means`."""
        # Centred in float64: features lie far from the origin.
        points = (double(features) - self.centre) / self.scale
        return _solve(self.factor, points.to(self.factor.dtype))

    def rows(self, prior: Sequence[float] | None = None) -> LinearRows:
        """The gate's rows: one further triangular solve."""
        solved = torch.linalg.solve_triangular(self.factor.T, self.means.T, upper=True)
        return LinearRows(solved.T.contiguous(), self._bias(prior), self.centre, self.scale)

    def logits(
        self, features: Float[Tensor, "batch d"], prior: Sequence[float] | None = None
    ) -> Float[Tensor, "batch n"]:
        """What `rows` gives, without computing them: cheaper where the rows are few."""
        return self.whiten(features) @ self.means.T + self._bias(prior)

    def leave_one_out(
        self,
        features: Float[Tensor, "batch d"],
        labels: Int[Tensor, " batch"],
        counts: Sequence[int],
        prior: Sequence[float] | None = None,
    ) -> Float[Tensor, "batch n"]:
        """Logits that each row would get from the gate fitted without that row.

        With more features than rows the closed form separates its own rows perfectly, so its
        logits on them say nothing of temperature, threshold or correction; these do. Taking row x
        out of class c moves its mean and takes a rank-one term off the scatter, so (Sherman and
        Morrison, 1950) all rows cost one triangular solve and one product with the means. The
        standardisation is kept.

        Args:
            features: rows that are contained in the statistics.
            labels: class of each row, an index into `means`.
            counts: rows in each class; a class of one row keeps its mean.
        """
        points = self.whiten(features)
        own = points - self.means[labels]
        n = torch.tensor(counts, dtype=points.dtype)[labels].clamp_min(2)
        # R without the row is R - a v v^T in these coordinates, where R is the identity.
        a = self.pull * n / (n - 1)
        length = torch.linalg.vecdot(own, own)
        gain = a / (1 - a * length).clamp_min(1e-6)
        # Up to the term shared by a row's logits, as `LinearRows` leaves it out: -|x|^2 / 2.
        logits = points @ self.means.T
        inner = gram(self.means)
        along = inner[labels]
        along += torch.linalg.vecdot(own, points)[:, None] - logits
        logits -= 0.5 * inner.diagonal()
        logits -= along.square_().mul_(0.5 * gain[:, None])
        own_distance = (n / (n - 1)).square() * (length + gain * length.square())
        own_logit = 0.5 * (torch.linalg.vecdot(points, points) - own_distance)
        logits.scatter_(1, labels[:, None], own_logit[:, None])
        return logits.add_(_log_prior(prior, self.means))

    def _bias(self, prior: Sequence[float] | None) -> Float[Tensor, " n"]:
        halves: Tensor = 0.5 * torch.linalg.vecdot(self.means, self.means)
        return _log_prior(prior, self.means) - halves


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
    return WhitenedClasses.of(stack_means(stats), shared, shrinkage).rows(prior)


def _solve(factor: Float[Tensor, "d d"], rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    solved: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    return solved.T


def _log_prior(prior: Sequence[float] | None, means: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    if prior is None:
        return means.new_zeros(len(means))
    if len(prior) != len(means) or min(prior) <= 0:
        raise RoutingError(
            f"{len(prior)} priors for {len(means)} classes; give one above zero for each"
        )
    values = torch.tensor(prior, dtype=means.dtype)
    return (values / values.sum()).log()
