"""Skills as points on a plane, near each other where the router may take one for another.

The plane is that of the principal components of the skills' means where the shrunk scatter within
skills is the identity (the space of `skills.screening`), so an inch is as hard to tell apart in any
direction. What belongs to no skill is a point too. Knows means; knows no text and no names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.skills.screening import Screen


@dataclass(frozen=True, eq=False)
class Landscape:
    """A plane through the skills of a screen.

    Attributes:
        skills: each skill's mean, in the screen's order.
        foreign: the mean of what belongs to no skill.
        shares: of the variance between the means, by axis; 0 where there is none.
    """

    skills: Float[Tensor, "k 2"]
    foreign: Float[Tensor, " 2"]
    shares: tuple[float, float]
    _screen: Screen
    _middle: Float[Tensor, " d"]
    _axes: Float[Tensor, "d 2"]

    @classmethod
    def of(cls, screen: Screen) -> Landscape:
        """The plane that keeps most of the variance between the skills' means and what is foreign
        (Pearson 1901, "On lines and planes of closest fit to systems of points in space")."""
        origin = torch.zeros(1, len(screen.origin), dtype=screen.directions.dtype)
        points = torch.cat([origin, screen.directions])
        middle = points.mean(0)
        _, sizes, rows = torch.linalg.svd(points - middle, full_matrices=False)
        axes, variance = torch.zeros(len(middle), 2, dtype=points.dtype), sizes.double().square()
        # Of n points n - 1 directions mean something.
        known = min(2, len(points) - 1)
        axes[:, :known] = rows[:known].T
        placed = (points - middle) @ axes
        # The sign of an axis is arbitrary: the point that is farthest out is on the positive side.
        farthest = placed.gather(0, placed.abs().argmax(0, keepdim=True))[0]
        signs = torch.where(farthest < 0, -1.0, 1.0)
        shares = (variance[:known] / variance.sum().clamp_min(1e-12)).tolist()
        first, second = [*shares, 0.0, 0.0][:2]
        placed = placed * signs
        return cls(
            skills=placed[1:],
            foreign=placed[0],
            shares=(first, second),
            _screen=screen,
            _middle=middle,
            _axes=axes * signs,
        )

    def place(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """Where inputs lie on it."""
        placed: Tensor = (self._screen.whiten(features) - self._middle) @ self._axes
        return placed
