"""The gate: a closed form from the skills' statistics plus a learned correction.

Knows feature vectors, rows and maturities; knows no model, no text and no files. What it decides
for an input depends on its rows and that input alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.records import MATURE_FROM
from dylora_moe.routing.calibration import NoneCalibration, calibrate
from dylora_moe.routing.correction import GateKind, make_correction
from dylora_moe.routing.gate import ClosedFormGate
from dylora_moe.routing.losses import entropy
from dylora_moe.routing.rehearsal import rehearse
from dylora_moe.routing.routing import Granularity, Routing
from dylora_moe.routing.rows import Row, RowTable
from dylora_moe.routing.selection import SelectionRule, by_expert, expert_weights, none_score

IMPOSSIBLE = -1e30
"""Logit of a row that is not fitted; finite, since the temperature's gradient is 0 times it."""


class DynamicHybridRouter(nn.Module):
    """A row for each skill and one, the first, for *no expert*.

    Logits are `closed form + learned correction`, in float32 whatever the model around it is cast
    to. The correction sees features standardised by the first statistics that came (the base's own
    prompts, in a pool), so that what it learned means the same after every refit.

    Whether an input is a stranger the closed form decides alone: its honest logits are known for
    every stored row (leaving it out), those of a correction only for the few rows it never saw.

    Growing, shrinking and refitting replace Parameters: make a new optimizer afterwards.

    Args:
        d_features: length of a feature vector.
        top_k: experts kept for a sparse input, until annealing lowers it to 1.
        gate: the correction: `linear`, or `mlp` with one hidden layer.
        hidden, seed: width of that layer, and the seed of its start.
        granularity: whether models ask it once a row, or for every token (`model.passes`).
        shrinkage, temperature: of the closed form, in (0, 1]; where the learned one starts.
        none_bias: added to the logit of *no expert*.
        none_threshold: log-odds of *no expert* above which an input gets none; a fit sets it.
        mix_temperature: flattens the mixture where the gate is unsure between mature experts.
        dense_above: probability of a young expert that makes an input dense.
        unsure_above: probability of the second-best expert that counts as unsure.
        none_share: of the skills' own rows that a fit may send to no expert.

    Raises:
        ConfigError: a number out of range.
    """

    membership: Tensor
    young: Tensor

    def __init__(
        self,
        d_features: int,
        *,
        top_k: int = 2,
        gate: GateKind = "linear",
        granularity: Granularity = "sequence",
        hidden: int = 128,
        shrinkage: float = 0.1,
        temperature: float = 1.0,
        none_bias: float = 0.0,
        none_threshold: float = 0.0,
        mix_temperature: float = 1.0,
        dense_above: float = 0.05,
        unsure_above: float = 0.05,
        none_share: float = 0.002,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if top_k < 1 or temperature <= 0 or mix_temperature <= 0 or not 0 < shrinkage <= 1:
            raise ConfigError(
                f"router settings top_k={top_k}, temperature={temperature}, mix_temperature="
                f"{mix_temperature}, shrinkage={shrinkage} are out of range; top_k is at least 1, "
                "temperatures are above 0 and shrinkage is in (0, 1]"
            )
        self.d_features, self.gate, self.hidden, self.seed = d_features, gate, hidden, seed
        self.none_bias, self.none_threshold, self.none_share = none_bias, none_threshold, none_share
        self.rule = SelectionRule(top_k, dense_above, unsure_above, mix_temperature)
        self.closed_form = ClosedFormGate(RowTable(d_features, shrinkage), d_features)
        self.granularity: Granularity = granularity
        self._experts: tuple[str, ...] = ()
        self._maturity: dict[str, float] = {}
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.correction = make_correction(gate, d_features, hidden, seed)
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

    @property
    def temperature(self) -> float:
        """The learned temperature, before annealing."""
        return float(self.log_temperature.detach().exp())

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

    def anneal(self, progress: float) -> None:
        """Sharpens mature routing by 0 to 1; inputs of which the gate is unsure still mix."""
        if not 0 <= progress <= 1:
            raise ConfigError(f"annealing progress {progress} is not in 0 to 1; hand in a share")
        self.rule = replace(self.rule, progress=progress)

    def forward(
        self,
        features: Float[Tensor, "*batch d_features"],
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> Routing:
        """Routes each input; `mask` is False for padding, which does not count for `load`.

        Raises:
            RoutingError: features of another width.
        """
        if features.shape[-1] != self.d_features:
            raise RoutingError(
                f"features of width {features.shape[-1]} do not fit a router of "
                f"{self.d_features}; it was made for another base or other feature blocks"
            )
        # fp32 under autocast too: a bf16 gate ties experts.
        with torch.autocast(features.device.type, enabled=False):
            closed = self.closed_form(features.float())
            strange = none_score(self.with_none(closed)) > self.none_threshold
            return self._route(self.corrected(closed, features), strange, mask)

    def _route(self, raw: Tensor, strange: Tensor, mask: Tensor | None) -> Routing:
        logits = raw / self.log_temperature.exp()
        rows = logits.softmax(-1)
        none, probabilities = rows[..., 0], by_expert(rows[..., 1:], self.sharing)
        if self.rows:
            skills = logits[..., 1:]
            weights, sparse = expert_weights(skills, self.sharing, self.young, self.rule)
            weights = torch.where(strange[..., None], torch.zeros_like(weights), weights)
        else:
            weights, strange = probabilities, torch.ones_like(none, dtype=torch.bool)
            sparse = strange
        counted = weights.detach()[mask if mask is not None else torch.ones_like(strange)]
        return Routing(
            weights=weights,
            experts=self.experts,
            none=none,
            probabilities=probabilities,
            logits=logits,
            entropy=entropy(torch.cat([none[..., None], probabilities], -1)),
            load=counted.sum(0) / max(1, counted.shape[0]),
            sparse=sparse | strange,
        )

    def raw_logits(
        self, features: Float[Tensor, "*batch d_features"]
    ) -> Float[Tensor, "*batch n_rows"]:
        """Closed form plus correction, before the temperature."""
        return self.corrected(self.closed_form(features.float()), features)

    def corrected(
        self, closed: Float[Tensor, "*batch n_rows"], features: Float[Tensor, "*batch d_features"]
    ) -> Float[Tensor, "*batch n_rows"]:
        """The closed form's logits with the learned correction and the bias of *no expert*."""
        device = self.log_temperature.device
        return self.with_none(closed.to(device) + self.correction(features.to(device).float()))

    def with_none(self, logits: Float[Tensor, "*batch n_rows"]) -> Float[Tensor, "*batch n_rows"]:
        """Adds the bias of *no expert*, or makes it impossible while its row is not fitted."""
        none = logits[..., :1] + self.none_bias
        if self.rows and not self.table.has_none:
            none = torch.full_like(none, IMPOSSIBLE)
        return torch.cat([none, logits[..., 1:]], -1)

    def calibrate_none(
        self,
        own_features: Mapping[str, Float[Tensor, "_ d_features"]],
        base_features: Float[Tensor, "_ d_features"],
        share: float = 0.002,
    ) -> NoneCalibration:
        """Sets the threshold of *no expert* from stored rows, each judged by a gate without it.

        Both kinds of rows are those the statistics were taken of; at most `share` of the skills'
        own go to no expert.
        """
        stored = rehearse(self.table, own_features, base_features)
        score = none_score(self.with_none(stored.closed))
        found = calibrate(score[stored.labels > 0], score[stored.labels == 0], share)
        self.none_threshold = found.threshold
        return found

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DynamicHybridRouter:
        # Moves with the model, but keeps float32 when the model is cast: the gate is a master copy.
        super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), recurse)
        return self
