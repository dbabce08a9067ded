"""Distances under a scatter within skills that was shrunk, from its rows and not its features.

Knows centred rows; knows no skill, no mean and no test. With X the rows, standardised, m their
degrees of freedom and s the shrinkage, the covariance `s I + (1 - s) / m X^T X` is `s / r` times
`A = r I + X^T X` with `r = s m / (1 - s)`. By Woodbury's identity
`z^T (A / r)^-1 z = |z|^2 - |L^-1 X z|^2` where `L L^T = X X^T + r I`: a system as large as the rows
are many, however wide they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.gram import gram


@dataclass(frozen=True, eq=False)
class Within:
    """The scatter of centred rows with a ridge.

    Attributes:
        rows: X, float32.
        ridge: r.
        factor: L, float64.
    """

    rows: Float[Tensor, "n d"]
    ridge: float
    factor: Float[Tensor, "n n"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], freedom: int, shrinkage: float) -> Within:
        """Of rows that are centred and standardised, with so many degrees of freedom."""
        rows = rows.float()
        ridge = shrinkage / (1 - shrinkage) * max(1, freedom)
        # float32 keeps the digits: the sum of d products errs by some 1e-3, and the ridge is far
        # larger.
        system = gram(rows).double()
        system.diagonal().add_(ridge)
        return cls(rows, ridge, torch.linalg.cholesky(system))

    def pulled(self, points: Float[Tensor, "k d"]) -> Float[Tensor, "k n"]:
        """`L^-1 X z` of each point, float64; it is linear in the point."""
        along = (self.rows @ points.float().T).double()
        solved: Tensor = torch.linalg.solve_triangular(self.factor, along, upper=False)
        return solved.T

    def squared(
        self, apart: Float[Tensor, "k d"], pulled: Float[Tensor, "k n"] | None = None
    ) -> Float[Tensor, " k"]:
        """`z^T (A / r)^-1 z` of each difference, float64; `pulled` where it is known already."""
        found = self.pulled(apart) if pulled is None else pulled
        squares: Tensor = apart.double().square().sum(1) - found.square().sum(1)
        return squares.clamp_min(0)

    @property
    def leverages(self) -> Float[Tensor, " n"]:
        """`x^T A^-1 x` of each of its own rows, from 0 to 1."""
        return 1 - self.ridge * torch.cholesky_inverse(self.factor).diagonal()
