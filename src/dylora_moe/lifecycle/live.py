"""A revision of the pool in memory: model with its experts, router and library, kept in step.

Knows how a revision becomes live and how a half-made change is taken back (`become` the current
revision again); knows nothing of verdicts or training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.tiers import default_budgets
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.live_experts import experts_to_be, stored_expert
from dylora_moe.lifecycle.names import find_expert, find_skill
from dylora_moe.lifecycle.stored_skills import StoredSkills
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.ports import ArtifactStore, ExampleStore
from dylora_moe.records import Artifact, Example, ExpertVersion, PoolRevision, SkillRecord
from dylora_moe.routing import state as router_state
from dylora_moe.routing.correction import GateKind
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Granularity
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.rows import Rows


@dataclass(frozen=True, eq=False)
class LiveSkill:
    """A skill with its validation rows.

    Attributes:
        encoded: these rows with their trunk states, or what gives them when they are first needed:
            a pool that only answers never pays the pass. None where there is no row.
    """

    skill_id: str
    name: str
    expert_id: str
    validation: tuple[Example, ...]
    encoded: Rows | Callable[[], Rows] | None

    @property
    def rows(self) -> Rows | None:
        """The validation rows, encoded; None where there is none."""
        return self.encoded() if callable(self.encoded) else self.encoded


class LivePool:
    """The pool as it answers now.

    Args:
        base: the frozen base.
        fmt: the pool's prompt format.
        own: tap features of the base's own prompts, which *no expert* is fitted on.
        artifacts: the pool's files.
        examples: the pool's skill store.
        scratch: folder that large trunk states are mapped from.
        expert_memory: bytes that experts may take in the model's layers; `default_budgets` of the
            device where None.

    Raises:
        ConfigError: room for no expert.

    Attributes:
        model: base, experts and router.
        library: the skills' statistics and stored features.
        skills: by id, in order of appearance.
        revision: what is live; a change in the making is not in it yet.
        versions: version of each loaded expert, one in the making included.
    """

    def __init__(
        self,
        base: Base,
        fmt: PromptFormat,
        own: Float[Tensor, "n d_features"],
        artifacts: ArtifactStore,
        examples: ExampleStore,
        scratch: Path | None = None,
        expert_memory: int | None = None,
    ) -> None:
        self.base, self.fmt, self.own, self.scratch = base, fmt, own, scratch
        self._artifacts, self._stored = artifacts, StoredSkills(artifacts, examples)
        self.own_statistics = FeatureStatistics.from_features(own)
        self.experts = ExpertManager(base.model, base.anatomy, base_name=base.name)
        self._limit_experts(expert_memory)
        self.library = SkillLibrary()
        self.skills: dict[str, LiveSkill] = {}
        self.versions: dict[str, int] = {}
        self.revision = PoolRevision(0, None, (), (), None, None, note="empty")
        self.model = DyLoRAMoE(base, self.fresh_router(), self.experts)
        self._rows: dict[
            tuple[Granularity, tuple[Artifact, ...]],
            tuple[tuple[Example, ...], Callable[[], Rows] | None],
        ] = {}

    @property
    def router(self) -> DynamicHybridRouter:
        return self.model.router

    def fresh_router(
        self, gate: GateKind | None = None, like: DynamicHybridRouter | None = None
    ) -> DynamicHybridRouter:
        """A router in closed form over the library's skills, with nothing learned yet.

        Args:
            gate: kind of correction.
            like: has whatever else a pool may be told of its router; a new pool's where None.
        """
        shape: dict[str, Any] = {}
        if like is not None:
            shape = {"gate": like.gate, "granularity": like.granularity}
            shape |= {"top_k": like.rule.top_k, "none_share": like.none_share}
        if gate is not None:
            shape["gate"] = gate
        router = DynamicHybridRouter(self.base.anatomy.d_features, **shape)
        router.set_none(self.own_statistics)
        for skill in self.library.skills:
            router.add_expert(skill.skill_id, skill.expert_id, skill.statistics)
        return router.to(self.base.device)

    def become(self, revision: PoolRevision, *, dirty: Sequence[str] = ()) -> None:
        """Makes a revision live: takes in what it has, takes out what it has not.

        The numbers of an expert that was not in memory are read, and checked by their hash, when it
        is first needed; here its files are there and fit the base.

        Args:
            revision: of this pool.
            dirty: experts whose weights in memory may have been changed.

        Raises:
            ArtifactError: a file of the revision is missing or damaged.
        """
        # Whatever replaces something is read before: a damaged file leaves the pool answering.
        library = self._stored.library(revision.skills)
        router = None
        if revision.router is not None:
            router = router_state.from_bytes(self._artifacts.open(revision.router).read_bytes())
        granularity: Granularity = "sequence" if router is None else router.granularity
        skills = {record.skill_id: self._skill(record, granularity) for record in revision.skills}
        wanted = {version.expert_id: version for version in revision.experts}
        numbers = {name: version.version for name, version in wanted.items()}
        to_be = experts_to_be(self.experts, self._artifacts, revision.experts, self.versions, dirty)
        to_be.settle(self.experts)
        self.library = library
        self.model.router = (router or self.fresh_router()).to(self.base.device)
        self.skills = skills
        named = {(granularity, record.validation) for record in revision.skills}
        self._rows = {key: kept for key, kept in self._rows.items() if key in named}
        self.versions = numbers
        self.router.set_maturity({name: v.maturity for name, v in wanted.items()})
        self.revision = revision

    def route_by(self, granularity: Granularity) -> None:
        """Has the router decide once a row, or for each token, before anything else is changed.

        Routing token by token reads more of the trunk, so the skills' rows are taken anew.
        """
        if granularity != self.router.granularity:
            self.router.granularity = granularity
            self.skills = {r.skill_id: self._skill(r, granularity) for r in self.revision.skills}

    def restore_expert(self, expert_id: str) -> None:
        """Reads the promoted weights of one expert again; library and router stay."""
        version = next(v for v in self.revision.experts if v.expert_id == expert_id)
        stored = stored_expert(self.experts, self._artifacts, version)
        packed = stored.read()
        self.experts.remove(expert_id)
        self.experts.register(expert_id, stored, packed)
        self.versions[expert_id] = version.version

    def ref(self, expert_id: str) -> str:
        """`expert_1@2`: the expert with the version that is loaded."""
        return f"{expert_id}@{self.versions[expert_id]}"

    def version(self, name: str) -> ExpertVersion:
        """The live expert of this alias or id.

        Raises:
            PoolError: there is none.
        """
        return find_expert(self.revision, name)

    def alias(self, expert_id: str) -> str:
        """What people call the expert."""
        found = self.revision.expert(expert_id)
        return found.alias if found is not None else expert_id

    def record(self, name: str) -> SkillRecord:
        """The skill of this name or id, or the first one of the expert of this name.

        Raises:
            PoolError: there is none.
        """
        return find_skill(self.revision, name)

    def encode(
        self,
        examples: Sequence[Example],
        *,
        max_length: int | None = None,
        granularity: Granularity | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Rows:
        """Token ids and trunk states of examples.

        Args:
            max_length: tokens of a row; the model's context where None.
            granularity: of the routing that the rows are for; what the pool has where None.
            progress: called with (rows done, rows in all).

        Raises:
            ConfigError: `max_length` is beyond the model's context.
            DataError: a row is longer than the model's context (or `max_length`).
        """
        limit = self.limit(max_length)
        encoded, _ = encode_all(examples, self.base.tokenizer, self.fmt, limit)
        trunk = TrunkCache(
            self.base,
            encoded,
            folder=self.scratch,
            per_token=(granularity or self.router.granularity) == "token",
            progress=progress,
        )
        return Rows(tuple(encoded), trunk)

    def limit(self, max_length: int | None) -> int | None:
        """Tokens that a row may have: the model's context where nothing is given.

        Raises:
            ConfigError: `max_length` is beyond the model's context.
        """
        return self.base.limit(max_length)

    def within(
        self, examples: Sequence[Example], limit: int | None
    ) -> tuple[list[Example], list[Example]]:
        """The examples whose rows are no longer than the limit, and the others."""
        _, longer = encode_all(examples, self.base.tokenizer, self.fmt, limit, drop_long=True)
        left_out = {id(example) for example in longer}
        return [example for example in examples if id(example) not in left_out], longer

    def encode_validation(self) -> None:
        """Encodes every skill's validation rows that are not yet: before a training, so that what
        is wrong with them costs none."""
        for skill in self.skills.values():
            _ = skill.rows

    def read(self, files: tuple[Artifact, ...]) -> tuple[Example, ...]:
        """Stored examples, each content once, the newest file's first say."""
        return self._stored.examples(files)

    def keys_of(self, files: tuple[Artifact, ...]) -> frozenset[str]:
        """Keys of the stored examples."""
        return self._stored.keys(files)

    def _limit_experts(self, expert_memory: int | None) -> None:
        if expert_memory is not None and expert_memory < 1:
            raise ConfigError(f"{expert_memory} bytes hold no expert; give expert_memory more")
        on_device, in_memory = default_budgets(self.base.device)
        self.experts.keep_on_device(on_device if expert_memory is None else expert_memory)
        self.experts.keep_in_memory(in_memory)

    def _skill(self, record: SkillRecord, granularity: Granularity) -> LiveSkill:
        key = (granularity, record.validation)
        if key not in self._rows:
            examples = self.read(record.validation)
            encoded = cache(partial(self.encode, examples, granularity=granularity))
            self._rows[key] = (examples, encoded if examples else None)
        return LiveSkill(record.skill_id, record.name, record.expert_id, *self._rows[key])
