"""The learned part of the gate: what training adds to the closed form's logits.

Knows rows and their order of arrival; knows neither experts nor the closed form. A new row begins
at zero and leaves the others as they were, bit for bit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.statistics import FeatureStatistics

GateKind = Literal["linear", "mlp"]


class LinearCorrection(nn.Module):
    """One weight row and one bias for each row of the gate.

    Features are standardised by the anchor, which is set once: a refit of the closed form, whose
    own standardisation moves, must not change what was learned here.

    Growing or shrinking replaces the Parameters: make a new optimizer afterwards.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, d_features: int, width: int | None = None) -> None:
        super().__init__()
        self.delta_W = nn.Parameter(torch.zeros(1, width or d_features))
        self.delta_b = nn.Parameter(torch.zeros(1))
        self.register_buffer("centre", torch.zeros(d_features))
        self.register_buffer("scale", torch.ones(d_features))

    def forward(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_rows"]:
        return nn.functional.linear(self.standardise(features), self.delta_W, self.delta_b)

    def standardise(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The features as the rows see them."""
        return (features - self.centre) / self.scale

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing: nothing was learned, or it was given up."""
        return not any(bool(rows.any()) for rows in (self.delta_W, self.delta_b))

    def anchor(self, statistics: FeatureStatistics) -> None:
        """Sets the standardisation; for the first statistics only."""
        std = (statistics.deviations / statistics.count).clamp_min(0).sqrt()
        std = torch.where(std > 0, std, torch.ones_like(std))
        self.centre = statistics.mean.float().to(self.centre.device)
        self.scale = std.float().to(self.scale.device)

    def add_row(self) -> None:
        """Appends a zero row."""
        self._become(self.delta_W, self.delta_b, extra=1)

    def remove_row(self, index: int) -> None:
        """Takes a row out."""
        rows = torch.arange(self.delta_b.shape[0], device=self.delta_b.device)
        rows = rows[rows != index]
        self._become(self.delta_W[rows], self.delta_b[rows], extra=0)

    def reset_rows(self, n_rows: int) -> None:
        """Starts over with this many zero rows."""
        self._become(self.delta_W[:0], self.delta_b[:0], extra=n_rows)

    @torch.no_grad()
    def _become(self, weight: Tensor, bias: Tensor, extra: int) -> None:
        weight = torch.cat([weight, weight.new_zeros(extra, weight.shape[1])])
        bias = torch.cat([bias, bias.new_zeros(extra)])
        self.delta_W = nn.Parameter(weight, requires_grad=self.delta_W.requires_grad)
        self.delta_b = nn.Parameter(bias, requires_grad=self.delta_b.requires_grad)


class MlpCorrection(LinearCorrection):
    """The same rows on top of one hidden layer, which all rows share.

    The hidden layer's start is a function of `seed` alone. Its first gradient comes in the second
    step, since the rows above it start at zero.
    """

    def __init__(self, d_features: int, hidden: int, seed: int = 0) -> None:
        super().__init__(d_features, hidden)
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(d_features)
        weight = torch.rand(hidden, d_features, generator=generator) * (2 * bound) - bound
        self.hidden_W = nn.Parameter(weight)
        self.hidden_b = nn.Parameter(torch.zeros(hidden))

    def forward(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_rows"]:
        inner = nn.functional.linear(self.standardise(features), self.hidden_W, self.hidden_b)
        return nn.functional.linear(nn.functional.gelu(inner), self.delta_W, self.delta_b)


def make_correction(gate: GateKind, d_features: int, hidden: int, seed: int) -> LinearCorrection:
    """The correction of this name, with the one row of *no expert*.

    Raises:
        ConfigError: the name is unknown.
    """
    if gate == "linear":
        return LinearCorrection(d_features)
    if gate == "mlp":
        return MlpCorrection(d_features, hidden, seed=seed)
    raise ConfigError(f"gate {gate!r} is unknown; choose 'linear' or 'mlp'")
