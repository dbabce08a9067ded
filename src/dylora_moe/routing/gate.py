"""The closed form as a layer: float32 rows computed from the float64 row table.

Knows how to refit; knows nothing learned and nothing of experts' maturity.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dylora_moe.routing.rows import RowTable


class ClosedFormGate(nn.Module):
    """Logits of the closed form; without Parameters.

    Attributes:
        table: what it is fitted on, float64 on the CPU. Call `refit` after changing it.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, table: RowTable, d_features: int) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("weight", torch.zeros(1, d_features))
        self.register_buffer("bias", torch.zeros(1))
        self.register_buffer("centre", torch.zeros(d_features))
        self.register_buffer("scale", torch.ones(d_features))

    def forward(self, inputs: Float[Tensor, "*batch d_features"]) -> Float[Tensor, "*batch n_rows"]:
        return nn.functional.linear((inputs - self.centre) / self.scale, self.weight, self.bias)

    def reset_rows(self, n_rows: int) -> None:
        """Takes the shape of so many rows; a stored state follows, and nothing is computed."""
        self.weight = self.weight.new_zeros(n_rows, self.weight.shape[1])
        self.bias = self.bias.new_zeros(n_rows)

    def refit(self) -> None:
        """Computes every row from the table."""
        rows = self.table.solve()
        device = self.bias.device
        # float32 first: some accelerators refuse float64.
        self.weight, self.bias = rows.weight.float().to(device), rows.bias.float().to(device)
        self.centre, self.scale = rows.centre.float().to(device), rows.scale.float().to(device)
