"""The gate's rows and the experts behind them: how they come, go and mature.

Knows rows, statistics and maturities; what is decided for an input stands in `router`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.records import MATURE_FROM
from dylora_moe.routing.correction import LinearCorrection
from dylora_moe.routing.gate import ClosedFormGate
from dylora_moe.routing.rows import Row, RowTable


class GrowingGate(nn.Module):
    """A row for each skill and one, the first, for *no expert*; an expert may have several skills.

    Growing, shrinking and refitting replace Parameters: make a new optimizer afterwards.

    Args:
        closed_form: over a table without rows.
        correction: with the one row of *no expert*.
        temperature: where the learned one starts.
    """

    membership: Tensor
    young: Tensor

    def __init__(
        self, closed_form: ClosedFormGate, correction: LinearCorrection, temperature: float
    ) -> None:
        super().__init__()
        self.closed_form = closed_form
        self._experts: tuple[str, ...] = ()
        self._maturity: dict[str, float] = {}
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.correction = correction
        self.register_buffer("membership", torch.zeros(0, 0))
        self.register_buffer("young", torch.zeros(0, dtype=torch.bool))

    @property
    def table(self) -> RowTable:
        """The rows and the statistics they are fitted on."""
        return self.closed_form.table

    @property
    def rows(self) -> tuple[Row, ...]:
        """The skills in order of arrival; row 0, *no expert*, is not among them."""
        return self.table.rows

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts in order of their first skill: the columns of the weights."""
        return self._experts

    @property
    def sharing(self) -> Float[Tensor, "n_skills n_experts"] | None:
        """Which skills go to which expert; None where every skill has its own."""
        return None if len(self.experts) == len(self.rows) else self.membership

    @property
    def maturity(self) -> dict[str, float]:
        """Maturity of each expert, 0 where it was never set."""
        return {expert: self._maturity.get(expert, 0.0) for expert in self.experts}

    def add_expert(self, skill_id: str, expert_id: str, statistics: FeatureStatistics) -> None:
        """Adds a skill whose inputs go to the expert, new or not.

        Refits the closed form and appends a zero row to the correction, whose others stay.

        Raises:
            RoutingError: the skill has a row already, or the statistics are of another width.
        """
        if self.table.is_empty:
            self.correction.anchor(statistics)
        self.table.add(Row(skill_id, expert_id), statistics)
        self.correction.add_row()
        self._refit()

    def extend(self, skill_id: str, statistics: FeatureStatistics) -> None:
        """Adds a further batch's statistics to a skill and refits; the correction stays."""
        self.table.extend(skill_id, statistics)
        self._refit()

    def remove(self, skill_id: str, statistics: FeatureStatistics) -> None:
        """Takes a skill out as if it had never come.

        `statistics` is all that was added for it: the gate itself keeps only the skills' sum.

        Raises:
            RoutingError: no such skill, or the statistics are not those it was added with.
        """
        index = self.table.remove(skill_id, statistics)
        self.correction.remove_row(index + 1)
        self._refit()
        self._maturity = {e: m for e, m in self._maturity.items() if e in set(self.experts)}

    def set_none(
        self, statistics: FeatureStatistics, replaces: FeatureStatistics | None = None
    ) -> None:
        """Fits the row of *no expert*, on the statistics of the base's own prompts.

        Raises:
            RoutingError: it was fitted before and `replaces` is not what it was fitted on.
        """
        if self.table.is_empty:
            self.correction.anchor(statistics)
        self.table.set_none(statistics, replaces)
        self._refit()

    def set_maturity(self, maturity: Mapping[str, float]) -> None:
        """Sets the maturity of experts; those not named keep theirs.

        Raises:
            RoutingError: an expert without a row, or a value outside 0 to 1.
        """
        known = set(self.experts)
        for expert, value in maturity.items():
            if expert not in known or not 0 <= value <= 1:
                raise RoutingError(
                    f"maturity {value} of {expert} cannot be set; it is a number from 0 to 1 of "
                    f"one of the routed experts ({', '.join(self.experts) or 'none yet'})"
                )
            self._maturity[expert] = float(value)
        self._retable()

    def restore(
        self, table: RowTable, state: Mapping[str, Tensor], maturity: Mapping[str, float]
    ) -> None:
        """Takes over a stored state whole; `state.from_bytes` calls it."""
        self.closed_form.table = table
        self.closed_form.reset_rows(len(table.rows) + 1)
        self.correction.reset_rows(len(table.rows) + 1)
        self._maturity = dict(maturity)
        self._retable()
        self.load_state_dict(dict(state))

    def _refit(self) -> None:
        self.closed_form.refit()
        self._retable()

    def _retable(self) -> None:
        device = self.log_temperature.device
        self._experts = tuple(dict.fromkeys(row.expert_id for row in self.rows))
        column = {expert: index for index, expert in enumerate(self._experts)}
        owners = torch.tensor([[column[r.expert_id]] for r in self.rows], dtype=torch.int64)
        table = torch.zeros(len(self.rows), len(column))
        self.membership = table.scatter_(1, owners.reshape(-1, 1), 1.0).to(device)
        young = [value < MATURE_FROM for value in self.maturity.values()]
        self.young = torch.tensor(young, dtype=torch.bool, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moves with the model, but keeps float32 when the model is cast: the gate is a master copy.
        super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), recurse)
        return self
