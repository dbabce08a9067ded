"""Sufficient statistics of tap features: what is kept of a skill when its rows are forgotten.

Knows how to count, merge and write statistics, and how to sum scatters over skills. Knows neither
the gate nor the novelty test, both of which are computed from these. All of it is float64 on the
CPU, whatever the features were, so that the order of arrival changes nothing but the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import RoutingError


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, mean and centred scatter of a set of feature vectors.

    The scatter is kept as it is smallest: of fewer vectors than features as its root, of more as
    the matrix. A thousand skills of 2,304 features and 64 rows are 1.2 GB so, and 42 GB as
    matrices.

    Attributes:
        count: number of vectors; at least 1.
        mean: float64.
        matrix: float64, the sum of (x - mean)(x - mean)^T; None where `root` stands for it.
        root: float64, rows whose `root.T @ root` is that sum; None where `matrix` holds it.
    """

    count: int
    mean: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"] | None = None
    root: Float[Tensor, "r d"] | None = None

    @property
    def d_features(self) -> int:
        """Length of a feature vector."""
        return self.mean.shape[0]

    @property
    def scatter(self) -> Float[Tensor, "d d"]:
        """The sum of (x - mean)(x - mean)^T; divided by count it is the covariance."""
        if self.matrix is not None:
            return self.matrix
        assert self.root is not None
        return self.root.T @ self.root

    @property
    def deviations(self) -> Float[Tensor, " d"]:
        """The scatter's diagonal."""
        if self.matrix is not None:
            return self.matrix.diagonal()
        assert self.root is not None
        return self.root.square().sum(0)

    @classmethod
    def from_features(cls, features: Float[Tensor, "batch d"]) -> FeatureStatistics:
        """Statistics of the rows.

        Raises:
            RoutingError: there is no row, or a value is not finite.
        """
        rows = double(features)
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise RoutingError(
                f"features of shape {tuple(features.shape)} have no statistics; hand in [batch, d] "
                "with at least one row"
            )
        if not torch.isfinite(rows).all():
            raise RoutingError(
                "features hold values that are not finite, so they have no statistics; the base "
                "overflowed: load it in bf16 or fp32"
            )
        mean = rows.mean(0)
        centred = rows - mean
        if rows.shape[0] < rows.shape[1]:
            return cls(rows.shape[0], mean, root=centred)
        return cls(rows.shape[0], mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both sets together; the order matters only to rounding.

        Source: Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for
        computing sample variances", eq. 2.1, for matrices.
        """
        _same_width(self.d_features, other.d_features)
        count = self.count + other.count
        # Weighted, not mean + step * share: symmetric in the two sets to the last bit.
        mean = (self.mean * self.count + other.mean * other.count) / count
        between = (other.mean - self.mean) * math.sqrt(self.count * other.count / count)
        if self.root is not None and other.root is not None:
            root = torch.cat([self.root, other.root, between[None]])
            if len(root) < self.d_features:
                return FeatureStatistics(count, mean, root=root)
        matrix = torch.outer(between, between)
        self.add_to(matrix)
        other.add_to(matrix)
        return FeatureStatistics(count, mean, matrix)

    def add_to(self, total: Float[Tensor, "d d"], sign: int = 1) -> None:
        """Adds the scatter to a sum in place, or takes it off with a sign of -1."""
        if self.matrix is not None:
            total.add_(self.matrix, alpha=sign)
        else:
            assert self.root is not None
            total.addmm_(self.root.T, self.root, alpha=sign)

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for safetensors; of a symmetric matrix only the upper triangle."""
        tensors = {
            "count": torch.tensor([self.count], dtype=torch.int64),
            "mean": self.mean.clone(),
        }
        if self.root is not None:
            return {**tensors, "root": self.root}
        return {**tensors, "scatter": pack_symmetric(self.scatter)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FeatureStatistics:
        """The inverse of `to_tensors`, bit for bit up to the symmetry of the matrix."""
        count, mean = int(tensors["count"].item()), tensors["mean"]
        if "root" in tensors:
            return cls(count, mean, root=tensors["root"])
        return cls(count, mean, unpack_symmetric(tensors["scatter"], mean.shape[0]))


class SharedScatter:
    """The within-class scatter of all skills, summed as they come and go.

    A thousand skills cost one matrix, and a refit after the thousand-and-first one addition.

    Attributes:
        total: sum of the skills' centred scatters, float64.
        count: number of vectors in it.
        classes: number of skills in it.
    """

    def __init__(self, d_features: int) -> None:
        self.total: Float[Tensor, "d d"] = torch.zeros(
            d_features, d_features, dtype=torch.float64, device="cpu"
        )
        self.count = 0
        self.classes = 0

    @classmethod
    def of(cls, statistics: Iterable[FeatureStatistics], d_features: int) -> SharedScatter:
        """The sum over a whole collection."""
        shared = cls(d_features)
        for one in statistics:
            shared.add(one)
        return shared

    def add(self, statistics: FeatureStatistics) -> None:
        """Adds one skill."""
        _same_width(self.total.shape[0], statistics.d_features)
        statistics.add_to(self.total)
        self.count += statistics.count
        self.classes += 1

    def subtract(self, statistics: FeatureStatistics) -> None:
        """Takes out a skill that was added with these statistics."""
        _same_width(self.total.shape[0], statistics.d_features)
        self.classes -= 1
        self.count -= statistics.count
        if self.classes:
            statistics.add_to(self.total, -1)
        else:
            # Exactly zero when the last skill leaves: rounding must not survive as a covariance.
            self.total.zero_()

    def std(self) -> Float[Tensor, " d"]:
        """Pooled within-class standard deviation; 1 where a feature never varied."""
        variance = self.total.diagonal() / self.degrees_of_freedom
        return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    @property
    def degrees_of_freedom(self) -> int:
        """Vectors less classes; at least 1."""
        return max(1, self.count - self.classes)

    def correlation(
        self, shrinkage: float, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "d d"]:
        """Pooled within-class correlation, shrunk towards the identity; positive definite.

        Raises:
            RoutingError: `shrinkage` is not in (0, 1].
        """
        if not 0 < shrinkage <= 1:
            raise RoutingError(
                f"shrinkage {shrinkage} would leave the scatter singular; choose one in (0, 1]"
            )
        std = self.std()
        pull = (1 - shrinkage) / self.degrees_of_freedom / std
        matrix = self.total.to(dtype) * pull.to(dtype)
        matrix /= std[:, None].to(dtype)
        matrix.diagonal().add_(shrinkage)
        return matrix


def double(features: Tensor) -> Tensor:
    """The values in float64 on the CPU: some accelerators have no float64."""
    return features.detach().to(device="cpu").to(torch.float64)


def pack_symmetric(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " triangle"]:
    """The upper triangle, row by row."""
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


def unpack_symmetric(triangle: Float[Tensor, " triangle"], size: int) -> Float[Tensor, "d d"]:
    """The symmetric matrix of an upper triangle."""
    matrix = triangle.new_zeros(size, size)
    row, column = torch.triu_indices(size, size)
    matrix[row, column] = triangle
    matrix[column, row] = triangle
    return matrix


def stack_means(statistics: Sequence[FeatureStatistics]) -> Float[Tensor, "n d"]:
    """The means, one a row."""
    return torch.stack([one.mean for one in statistics])


def _same_width(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise RoutingError(
            f"statistics of {theirs} features do not go with {ours}; they were taken with another "
            "base or other feature blocks"
        )
