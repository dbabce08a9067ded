"""What the inbox is full of: prompts that no skill claimed, as clusters that may become skills.

Knows prompts, their tap features and what a pool has of its skills; stores nothing and gives no
verdict, since a verdict takes answers. Prompts alone tell kinds apart worse than whole rows do
(docs/lab-log.md): a cluster may hold near neighbours, which come apart once they are answered
(`lifecycle.mixed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import PoolError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.answering import prompt_features
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import InboxEntry, Interval, Turn
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.clustering import ALIKE, MOST_ROWS, clusters, medoids
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import side_of

EXAMPLES = 3
"""Prompts that stand for a cluster."""

ID_LENGTH = 8
"""Letters of a prompt's key that a cluster is called by."""


@dataclass(frozen=True, slots=True)
class InboxCluster:
    """Prompts that are alike.

    Attributes:
        id: start of the key of the prompt that was asked first; stays while others come.
        entries: oldest first.
        examples: those that stand for it, the most central first.
        nearest: experts by alias with how far the prompts are told apart from their skill (0.5 not
            at all, 1.0 without a mistake), nearest first.
        separability: against the nearest skill, with its interval; None where there is none, or a
            single prompt.
        apart: whether that is another skill; None where the interval straddles the threshold, or
            nothing was measured.
        lacking: prompts that a verdict on them would lack, once all are answered.
    """

    id: str
    entries: tuple[InboxEntry, ...]
    examples: tuple[InboxEntry, ...]
    nearest: tuple[tuple[str, float], ...]
    separability: Interval | None
    apart: bool | None
    lacking: int

    @property
    def size(self) -> int:
        """Prompts, each counted once."""
        return len(self.entries)

    @property
    def asked(self) -> int:
        """How many times they were asked."""
        return sum(entry.count for entry in self.entries)


@dataclass(frozen=True, slots=True)
class InboxRules:
    """How prompts become clusters.

    Attributes:
        alike: mean likeness from which on two clusters are one.
        needed: rows that the novelty test needs for what is new.
        threshold: separability above which it is another skill.
    """

    alike: float = ALIKE
    needed: int = 32
    threshold: float = 0.80


@dataclass(frozen=True, eq=False)
class Known:
    """What prompts are held against: of one revision, and nothing of it changes.

    Attributes:
        library: the skills' statistics and stored features.
        foreign: statistics of the base's own prompts.
        aliases: of the expert of each skill, by the skill's id.
        revision: of the pool.
    """

    library: SkillLibrary
    foreign: FeatureStatistics
    aliases: Mapping[str, str]
    revision: int

    @classmethod
    def of(cls, live: LivePool) -> Known:
        """Of a pool in memory; a matter of microseconds."""
        aliases = {skill.skill_id: live.alias(skill.expert_id) for skill in live.skills.values()}
        return cls(live.library, live.own_statistics, aliases, live.revision.number)


def newest(entries: Sequence[InboxEntry]) -> list[InboxEntry]:
    """As many as are clustered at a time, those asked last, in their order."""
    last = sorted(entries, key=lambda entry: (entry.last, entry.key))[-MOST_ROWS:]
    kept = {entry.key for entry in last}
    return [entry for entry in entries if entry.key in kept]


def inbox_features(live: LivePool, entries: Sequence[InboxEntry]) -> Float[Tensor, "n d_features"]:
    """Tap features of prompts; they stay what they are for the life of the pool."""
    if not entries:
        return torch.zeros(0, live.base.anatomy.d_features)
    return prompt_features(live, [entry.turns for entry in entries])


def cluster_inbox(
    known: Known,
    entries: Sequence[InboxEntry],
    features: Float[Tensor, "n d_features"],
    rules: InboxRules | None = None,
) -> tuple[InboxCluster, ...]:
    """Clusters of prompts, the largest first.

    Args:
        known: what the pool has.
        entries: at most `skills.clustering.MOST_ROWS`.
        features: theirs, in their order.
        rules: how.

    Raises:
        ConfigError: more prompts than are clustered at a time.
    """
    rules = rules or InboxRules()
    groups = clusters(features, known.foreign, alike=rules.alike)
    found = [
        _cluster(known, [entries[i] for i in inside], features[inside], rules)
        for group in groups.unique().tolist()
        for inside in [(groups == group).nonzero()[:, 0].tolist()]
    ]
    return tuple(sorted(found, key=lambda cluster: (-cluster.size, -cluster.asked, cluster.id)))


def find_cluster(found: Sequence[InboxCluster], name: str) -> InboxCluster:
    """The cluster of this id, or of any prompt whose key begins so: an id that a person has noted
    finds its cluster though older prompts came in or left.

    Raises:
        PoolError: there is none, or several.
    """
    named = [one for one in found if one.id == name]
    if not named and len(name) >= ID_LENGTH:
        named = [one for one in found if any(e.key.startswith(name) for e in one.entries)]
    if len(named) == 1:
        return named[0]
    if named:
        raise PoolError(f"'{name}' names several clusters; give more letters of a prompt's key")
    known = ", ".join(one.id for one in found[:5]) or "none"
    raise PoolError(
        f"no cluster '{name}' in this inbox; there are: {known}{' …' if len(found) > 5 else ''}"
    )


def _cluster(
    known: Known,
    entries: Sequence[InboxEntry],
    features: Float[Tensor, "n d_features"],
    rules: InboxRules,
) -> InboxCluster:
    measured = ClassifierTwoSample(threshold=rules.threshold).measure(features, known.library)
    parted = measured.separability
    best: dict[str, float] = {}
    for skill, value in measured.nearest:
        best.setdefault(known.aliases[skill], value)
    ordered = sorted(entries, key=lambda entry: (entry.first, entry.key))
    return InboxCluster(
        id=ordered[0].key[:ID_LENGTH],
        entries=tuple(ordered),
        examples=tuple(entries[i] for i in medoids(features, known.foreign, EXAMPLES).tolist()),
        nearest=tuple(best.items()),
        separability=parted,
        apart=None if parted is None else side_of(parted, rules.threshold),
        lacking=max(0, rules.needed - len(entries)),
    )


def prompts_of(cluster: InboxCluster) -> frozenset[tuple[Turn, ...]]:
    """What was asked, for answers to be matched with."""
    return frozenset(entry.turns for entry in cluster.entries)
