"""What the pool remembers of its skills: statistics, a reservoir of features, who serves them.

Knows feature vectors; knows neither text nor files: a skill goes out and comes in as bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import PoolError, RoutingError
from dylora_moe.foundation import tensor_bytes
from dylora_moe.foundation.statistics import FeatureStatistics, double, stack_means
from dylora_moe.skills.ranking import Ranking
from dylora_moe.skills.separability import require_shrinkage


@dataclass(frozen=True, eq=False)
class Skill:
    """A cluster of data.

    Attributes:
        skill_id: stable name.
        expert_id: the expert its inputs go to.
        statistics: of every row that was ever added.
        features: the stored rows, at most the library's capacity.
        keys: content hash of each stored row.
    """

    skill_id: str
    expert_id: str
    statistics: FeatureStatistics
    features: Float[Tensor, "stored d"]
    keys: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The skill as safetensors with a JSON header."""
        tensors = {f"statistics.{n}": t for n, t in self.statistics.to_tensors().items()}
        header = {
            "kind": "skill",
            "skill_id": self.skill_id,
            "expert_id": self.expert_id,
            "keys": self.keys,
        }
        return tensor_bytes.to_bytes({**tensors, "features": self.features}, header)

    @classmethod
    def from_bytes(cls, body: bytes) -> Skill:
        """The skill of `to_bytes`.

        Raises:
            ArtifactError: the bytes are damaged or are not a skill.
        """
        tensors, header = tensor_bytes.from_bytes(body, "skill")
        parts = {
            name.removeprefix("statistics."): tensor
            for name, tensor in tensors.items()
            if name.startswith("statistics.")
        }
        return cls(
            skill_id=header["skill_id"],
            expert_id=header["expert_id"],
            statistics=FeatureStatistics.from_tensors(parts),
            features=tensors["features"],
            keys=tuple(header["keys"]),
        )


class SkillLibrary:
    """The skills of a pool, in memory, in order of arrival.

    Args:
        capacity: rows stored of each skill. Which rows stay is a function of their content and not
            of their order: those with the smallest hashes.
        dtype: of the stored rows: float32, or float16 for bases whose hidden states fit in it.
        shrinkage: of the scatter behind `nearest`, in (0, 1).
    """

    def __init__(
        self, capacity: int = 512, dtype: torch.dtype = torch.float32, shrinkage: float = 0.1
    ) -> None:
        self.capacity = capacity
        self.dtype = dtype
        require_shrinkage(shrinkage)
        self.shrinkage = shrinkage
        self._skills: dict[str, Skill] = {}
        # Made when it is asked for, and kept until a skill comes, goes or changes.
        self._ranking: Ranking | None = None

    def __len__(self) -> int:
        return len(self._skills)

    def __contains__(self, skill_id: object) -> bool:
        return skill_id in self._skills

    def __getitem__(self, skill_id: str) -> Skill:
        """The skill of this id.

        Raises:
            PoolError: there is none.
        """
        if skill_id not in self._skills:
            known = ", ".join(self._skills) or "none"
            raise PoolError(f"skill {skill_id} is not in the library; it holds {known}")
        return self._skills[skill_id]

    @property
    def skills(self) -> tuple[Skill, ...]:
        """Every skill, oldest first."""
        return tuple(self._skills.values())

    def add_skill(
        self,
        skill_id: str,
        features: Float[Tensor, "batch d"],
        expert_id: str,
        keys: Sequence[str] | None = None,
    ) -> Skill:
        """Adds a skill.

        Args:
            features: a row for each example.
            keys: content hash of each example; of the features themselves where not given.

        Raises:
            PoolError: there is a skill of this id, or not one key a row.
            RoutingError: no rows, rows that are not finite, or rows of another width.
        """
        if skill_id in self._skills:
            raise PoolError(f"skill {skill_id} is in the library already; extend it instead")
        return self.put(self._skill(skill_id, expert_id, features, keys))

    def extend(
        self,
        skill_id: str,
        features: Float[Tensor, "batch d"],
        keys: Sequence[str] | None = None,
    ) -> Skill:
        """Adds further rows to a skill; raises as `add_skill`."""
        old = self[skill_id]
        new = self._skill(skill_id, old.expert_id, features, keys)
        merged = replace(
            new,
            statistics=old.statistics.merge(new.statistics),
            **self._reservoir(torch.cat([old.features, new.features]), old.keys + new.keys),
        )
        return self.put(merged)

    def assign(self, skill_id: str, expert_id: str) -> Skill:
        """Sends a skill's inputs to another expert."""
        return self.put(replace(self[skill_id], expert_id=expert_id))

    def remove(self, skill_id: str) -> Skill:
        """Takes a skill out and returns it."""
        skill = self[skill_id]
        del self._skills[skill_id]
        self._ranking = None
        return skill

    def put(self, skill: Skill) -> Skill:
        """Puts in a whole skill, as it was loaded, in the place of one of the same id.

        Raises:
            RoutingError: its features are of another width; the library stays as it was.
        """
        old = self._skills.get(skill.skill_id)
        other = next((each for each in self._skills.values() if each is not old), None)
        if other is not None:
            _check_width(other, skill)
        self._skills[skill.skill_id] = skill
        self._ranking = None
        return skill

    def nearest(
        self, features: Float[Tensor, "batch d"], k: int = 3
    ) -> tuple[tuple[str, float], ...]:
        """The skills whose means are nearest to the rows' mean, with the distance, nearest first.

        Mahalanobis distance under the skills' within-class scatter (of a sample of the stored rows,
        shrunk), divided by the square root of the width. Good for ranking; whether data is new it
        cannot say, since its size mostly measures the length of the texts.
        """
        if not self._skills:
            return ()
        if self._ranking is None:
            self._ranking = self._rank()
        distances = self._ranking.distances(double(features).mean(0)).tolist()
        ranked = sorted(zip(distances, self._skills, strict=True))
        return tuple((skill_id, distance) for distance, skill_id in ranked[:k])

    def _rank(self) -> Ranking:
        return Ranking.of(
            stack_means([skill.statistics for skill in self.skills]),
            # In the order of their keys' hashes, so that the first ones are a sample.
            [skill.features for skill in self.skills],
            [skill.statistics.count for skill in self.skills],
            self.shrinkage,
        )

    def _skill(
        self, skill_id: str, expert_id: str, features: Tensor, keys: Sequence[str] | None
    ) -> Skill:
        statistics = FeatureStatistics.from_features(features)
        rows = features.detach().to("cpu", self.dtype)
        if keys is None:
            keys = [hashlib.sha256(r.numpy().tobytes()).hexdigest() for r in rows.float()]
        if len(keys) != rows.shape[0]:
            raise PoolError(
                f"{len(keys)} keys for {rows.shape[0]} rows of skill {skill_id}; hand in one each"
            )
        if not torch.isfinite(rows).all():
            raise PoolError(
                f"features of skill {skill_id} do not fit in {self.dtype}; store float32"
            )
        kept = self._reservoir(rows, tuple(keys))
        return Skill(skill_id, expert_id, statistics, **kept)

    def _reservoir(self, rows: Tensor, keys: tuple[str, ...]) -> dict[str, Any]:
        """The rows of the smallest key hashes, each key once, in the order of those hashes."""
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        # Hashed again: a caller's keys may be numbered, and the first numbers are no sample.
        order = sorted(first, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
        chosen = order[: self.capacity]
        return {"features": rows[[first[key] for key in chosen]], "keys": tuple(chosen)}


def _check_width(ours: Skill, theirs: Skill) -> None:
    widths = ours.statistics.d_features, theirs.statistics.d_features
    if widths[0] != widths[1]:
        raise RoutingError(
            f"skill {theirs.skill_id} has {widths[1]} features and the library's others have "
            f"{widths[0]}; they were taken with another base or other feature blocks"
        )
