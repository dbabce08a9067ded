"""The gate: a closed form from the skills' statistics plus a learned correction.

Knows feature vectors and what is decided for them; how rows come and go stands in `growing`. Knows
no model, no text and no files. What it decides for an input depends on its rows and that input
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.routing.calibration import NoneCalibration, calibrate
from dylora_moe.routing.correction import GateKind, make_correction
from dylora_moe.routing.gate import ClosedFormGate
from dylora_moe.routing.growing import GrowingGate
from dylora_moe.routing.losses import entropy
from dylora_moe.routing.rehearsal import rehearse
from dylora_moe.routing.routing import Granularity, Routing
from dylora_moe.routing.rows import RowTable
from dylora_moe.routing.selection import SelectionRule, by_expert, expert_weights, none_score

IMPOSSIBLE = -1e30
"""Logit of a row that is not fitted; finite, since the temperature's gradient is 0 times it."""


class DynamicHybridRouter(GrowingGate):
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
        if top_k < 1 or temperature <= 0 or mix_temperature <= 0 or not 0 < shrinkage <= 1:
            raise ConfigError(
                f"router settings top_k={top_k}, temperature={temperature}, mix_temperature="
                f"{mix_temperature}, shrinkage={shrinkage} are out of range; top_k is at least 1, "
                "temperatures are above 0 and shrinkage is in (0, 1]"
            )
        super().__init__(
            ClosedFormGate(RowTable(d_features, shrinkage), d_features),
            make_correction(gate, d_features, hidden, seed),
            temperature,
        )
        self.d_features, self.gate, self.hidden, self.seed = d_features, gate, hidden, seed
        self.none_bias, self.none_threshold, self.none_share = none_bias, none_threshold, none_share
        self.rule = SelectionRule(top_k, dense_above, unsure_above, mix_temperature)
        self.granularity: Granularity = granularity

    @property
    def temperature(self) -> float:
        """The learned temperature, before annealing."""
        return float(self.log_temperature.detach().exp())

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
