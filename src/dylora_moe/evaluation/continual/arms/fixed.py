"""A pool of fixed size with this project's router: as many experts as the pool grew, and no ids.

Nobody tells it the skills either: the training rows are clustered into that many groups by the tap
features of prompt and answer, which the pool sorts traffic by, and each group has a LoRA of its own
(as Gururangan et al. 2023, "Scaling Expert Language Models with Unsupervised Domain Discovery",
k-means and one expert a cluster). Unlike the pool it sees all rows at once and is given their
number of kinds; it shows what growing is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.bank import Bank
from dylora_moe.evaluation.continual.arms.banked import by_our_router, own_features
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner
from dylora_moe.evaluation.continual.arms.visits import most_of
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.traffic import features_of
from dylora_moe.records import Example
from dylora_moe.skills.clustering import clusters_of
from dylora_moe.text.template import encode_all


@dataclass(frozen=True)
class FixedRouter:
    """The arm."""

    name: str = "fixed-router"
    title: str = "as many LoRAs as this project grew, on clusters of rows, with its router"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "sized"

    def run(self, setting: Setting) -> ArmResult:
        """Clusters the rows, trains a LoRA on each cluster and answers the test rows.

        Raises:
            ConfigError: nobody knows how many experts the pool grew.
        """
        count, own = experts_of(setting), own_features(setting)
        bank = Bank(setting, lambda learner: groups_of(setting, learner, own, count))
        setting.told(f"{len(bank.rows)} groups of {[len(rows) for rows in bank.rows.values()]}")
        owners = {
            bank.adapters[group].expert: most_of(setting.stream, rows) or group
            for group, rows in bank.rows.items()
        }
        found = by_our_router(self.name, setting, bank, own, owners)
        grown = {"experts_grown": len(bank.rows), "owners": owners}
        return replace(found, details={**found.details, **grown})


def experts_of(setting: Setting) -> int:
    """How many experts the pool grew on the stream, and one at least.

    Raises:
        ConfigError: it did not run before.
    """
    if setting.ours_experts is None:
        raise ConfigError("nobody knows how many experts ours grew; run the arm ours before")
    return max(1, setting.ours_experts)


def groups_of(
    setting: Setting, learner: LoraLearner, own: Tensor, count: int
) -> Mapping[str, tuple[Example, ...]]:
    """All rows of the stream in so many groups, by what they are like and nothing else.

    Args:
        setting: whose stream.
        learner: has the base.
        own: features of what the base writes by itself.
        count: of groups.
    """
    rows = [row for batch in setting.stream.batches for row in batch]
    base = learner.base
    encoded, _ = encode_all(rows, base.tokenizer, setting.fmt, base.context_length)
    whole = features_of(base, encoded, setting.folder).whole
    foreign = FeatureStatistics.from_features(own)
    found: dict[str, list[Example]] = {}
    labels = clusters_of(whole, foreign, count, seed=setting.seed)
    for row, label in zip(rows, labels.tolist(), strict=True):
        found.setdefault(f"group_{label + 1}", []).append(row)
    return {group: tuple(some) for group, some in found.items()}
